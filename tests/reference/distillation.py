"""Flow maps taught by a frozen velocity: flow map matching (arXiv:2406.07507), Align Your Flow
(arXiv:2506.14603), SplitMeanFlow (arXiv:2507.16884), data-free distillation (arXiv:2511.19428).

All on the straight path with data at time 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.plain import (
    Result,
    adaptive,
    given_label,
    mean_squares,
    null_of,
    pad,
    sum_squares,
)

Networks = dict[str, nn.Module]
Draws = dict[str, Tensor]


def between(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    return (1 - pad(t, data)) * data + pad(t, data) * noise


def matching_lagrangian(
    networks: Networks, data: Tensor, draws: Draws, label: Tensor | None, progress: float = 0.0
) -> Result:
    """X = z + (t - s) (F - z); d/ds X to teacher(X, s), everything live but the teacher."""
    del label, progress
    F, t, s = networks["F"], draws["t"], draws["s"]
    z = between(data, draws["noise"], t)
    landed, slope = torch.func.jvp(
        lambda s: z + pad(t - s, z) * (F(z, t, s) - z), (s,), (torch.ones_like(s),)
    )
    value = sum_squares(slope - networks["teacher"](landed, s)).mean()
    return value, {"target": value.detach()}


def matching_eulerian(
    networks: Networks, data: Tensor, draws: Draws, label: Tensor | None, progress: float = 0.0
) -> Result:
    """|∂_t X + grad X teacher(z, t)|^2, everything live but the teacher."""
    del label, progress
    F, t, s = networks["F"], draws["t"], draws["s"]
    z = between(data, draws["noise"], t)
    moving = (networks["teacher"](z, t), torch.ones_like(t))
    _, slope = torch.func.jvp(lambda z, t: z + pad(t - s, z) * (F(z, t, s) - z), (z, t), moving)
    value = sum_squares(slope).mean()
    return value, {"target": value.detach()}


def align(
    networks: Networks,
    data: Tensor,
    draws: Draws,
    label: Tensor | None,
    progress: float = 0.0,
    *,
    cap: float = 1.0,
    warmup: float = 10000.0,
    step: int = 0,
    lagrangian: bool = False,
) -> Result:
    """F to sg(F - g / (|g| + 0.1)), g the residual of the Eulerian (or Lagrangian) equation."""
    del progress
    F, teacher, weak = (networks[n] for n in ("F", "teacher", "weak"))
    t, s = draws["t"], draws["s"]
    label = given_label(label, data)
    z = between(data, draws["noise"], t)

    def student(z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return F(z, t, s, label=label, scale=draws["scale"])

    def guided(x: Tensor, q: Tensor) -> Tensor:
        poor = weak(x, q, label=label)
        return poor + pad(draws["scale"], x) * (teacher(x, q, label=label) - poor)

    prediction = student(z, t, s)
    if lagrangian:
        landed, residual = torch.func.jvp(
            lambda s: z + pad(s - t, z) * student(z, t, s), (s,), (torch.ones_like(s),)
        )
        residual = residual - guided(landed, s)
    else:
        velocity = guided(z, t)
        moving = (velocity, torch.ones_like(t), torch.zeros_like(s))
        _, total = torch.func.jvp(student, (z, t, s), moving)
        warm = min(cap, step / warmup)
        residual = prediction - velocity + warm * pad(t - s, z) * total
    length = sum_squares(residual).sqrt()
    goal = (prediction - residual / pad(length + 0.1, z)).detach()
    value = sum_squares(prediction - goal).mean()
    return value, {"target": value.detach()}


def split(
    networks: Networks,
    data: Tensor,
    draws: Draws,
    label: Tensor | None,
    progress: float = 0.0,
    *,
    scale: float = 2.0,
) -> Result:
    """Off the diagonal two steps, weighted by their lengths; on it the guided teacher."""
    del progress
    u, teacher, t = networks["u"], networks["teacher"], draws["t"]
    diagonal, part = draws["diagonal"], draws["part"]
    r = torch.where(diagonal, t, draws["r"])
    label = given_label(label, data)
    z = between(data, draws["noise"], t)
    s = t - part * (t - r)
    with torch.no_grad():
        first = u(z, t, s, label=label)
        second = u(z - pad(t - s, z) * first, s, r, label=label)
        whole = pad(part, z) * first + pad(1 - part, z) * second
        null = teacher(z, t, label=null_of(label))
        guided = null + scale * (teacher(z, t, label=label) - null)
    prediction, none = u(z, t, r, label=label), torch.zeros_like(t)
    target = torch.where(diagonal, none, mean_squares(prediction - whole)).mean()
    anchor = torch.where(diagonal, mean_squares(prediction - guided), none).mean()
    return target + anchor, {"target": target.detach(), "anchor": anchor.detach()}


def without_data(
    networks: Networks,
    data: Tensor,
    draws: Draws,
    label: Tensor | None,
    progress: float = 0.0,
    *,
    gamma: float = 2.0,
    strength: float = 1.0,
) -> Result:
    """The map z + (s - 1) F(z, s) from pure noise; prediction, correction and critic."""
    del progress
    F, teacher, fake = (networks[n] for n in ("F", "teacher", "fake"))
    noise, s, r, corrected = draws["noise"], draws["s"], draws["r"], draws["corrected"]
    label = given_label(label, data)

    def guided(x: Tensor, q: Tensor) -> Tensor:
        null = teacher(x, q, label=null_of(label))
        return null + gamma * (teacher(x, q, label=label) - null)

    def student(s: Tensor) -> Tensor:
        return F(noise, s, label=label)

    landed, slope = torch.func.jvp(
        lambda s: noise + pad(s - 1, noise) * student(s), (s,), (torch.ones_like(s),)
    )
    drift = (slope - guided(landed, s)).detach()
    zero = torch.zeros_like(s)
    generated = (noise - student(zero)).detach()
    x = between(generated, draws["noise'"], r)
    excess = (fake(x, r, label=label) - guided(x, r)).detach()
    balance = strength * sum_squares(drift).sqrt().mean() / sum_squares(excess).sqrt().mean()

    target = adaptive(mean_squares(student(s) - (student(s).detach() - drift)), 1, 1e-4)
    pull = student(zero) - (student(zero).detach() - balance * excess)
    correction = adaptive(mean_squares(pull), 1, 1e-4)
    target = torch.where(corrected, zero, target).mean()
    correction = torch.where(corrected, correction, zero).mean()
    critic = sum_squares(fake(x, r, label=label) - (draws["noise'"] - generated)).mean()
    terms = {"target": target, "correction": correction, "critic": critic}
    return target + correction + critic, {name: term.detach() for name, term in terms.items()}
