"""The trigonometric path (Lu & Song, arXiv:2410.11081): its velocity, and continuous-time
consistency models trained from data (sCT) and from a frozen velocity (sCD), the latter also with
distribution matching on the map's own samples (rCM, arXiv:2510.08431).

z = cos t data + sin t sd noise, the map to the data cos t z - sin t sd F(z / sd, t). With D the
derivative of F(z / sd, t) along dz,

    g = -cos^2 t (sd F - dz) - r cos t sin t (z + sd D),   F to sg(F + g / (|g| + 0.1)),

r the warm-up; a row's loss is exp(v(t)) mse - v(t).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tests.reference.plain import (
    Result,
    given_label,
    mean_squares,
    null_of,
    pad,
    sum_squares,
)


def flow(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
) -> Result:
    """`F(x, t | label)` to the velocity, both in units of the data's deviation."""
    del progress
    z, velocity, t = _moment(data, draws, sd)
    label = given_label(label, data)
    shown = torch.where(draws["dropped"], null_of(label), label)
    value = mean_squares(networks["F"](z / sd, t, label=shown) - velocity / sd).mean()
    return value, {"target": value.detach()}


def consistency(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
    warmup: float = 10000.0,
    step: int = 0,
) -> Result:
    """Networks `F(x, t)` and `v(t)`; with a frozen `teacher(x, t | label)`, guided at the drawn
    `scale`, it is `F(x, t | label, scale)`."""
    del progress
    F = networks["F"]
    z, velocity, t = _moment(data, draws, sd)
    if "teacher" in networks:
        label, scale = given_label(label, data), draws["scale"]
        F = partial(F, label=label, scale=scale)
        velocity = sd * _guided(networks["teacher"], z / sd, t, label, pad(scale, z))
    prediction, g = _towards(F, z, velocity, t, sd, min(1.0, step / warmup))
    balance = networks["v"](t)
    error = mean_squares(prediction - (prediction + g).detach())
    value = (balance.exp() * error - balance).mean()
    return value, {"target": value.detach()}


def regularised(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    warmup: float = 1000.0,
    scale: float = 5.0,
    step: int = 0,
) -> Result:
    """Networks `F`, frozen `teacher` and `fake`, which learns on the samples, all (x, t | label),
    at unit scale. Samples begin at pure noise; `again` rows go through a level in between, whose
    tangent is p / (1 - p)."""
    del progress
    label = given_label(label, data)
    F, fake = (partial(networks[name], label=label) for name in ("F", "fake"))
    z, _, t = _moment(data, draws, 1.0)
    velocity = _guided(networks["teacher"], z, t, label, scale)
    prediction, g = _towards(F, z, velocity, t, 1.0, min(1.0, step / warmup))
    forward = 100 * sum_squares(prediction - (prediction + g).detach()).mean()

    def landed(x: Tensor, time: Tensor) -> Tensor:
        return pad(time.cos(), x) * x - pad(time.sin(), x) * F(x, time)

    def between(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return pad(time.cos(), clean) * clean + pad(time.sin(), clean) * noise

    def level(share: Tensor) -> Tensor:
        return torch.arctan2(share, 1 - share)

    start, high, low = draws["noise"], torch.full_like(t, math.pi / 2), level(draws["p"])
    with torch.no_grad():
        second = between(landed(start, high), draws["noise'"], low)
    again = draws["again"]
    generated = landed(torch.where(pad(again, start), second, start), torch.where(again, low, high))
    q, fresh = level(draws["p'"]), draws["noise''"]
    x, cos, sin = between(generated.detach(), fresh, q), pad(q.cos(), data), pad(q.sin(), data)
    with torch.no_grad():
        known = _guided(networks["teacher"], x, q, label, scale)
        away = (generated - (cos * x - sin * known)).abs().flatten(1).mean(dim=1)
        goal = generated - sin * (known - fake(x, q)) / pad(away, x)
    reverse = mean_squares(generated - goal).mean() / 2
    miss = fake(x, q) - (cos * fresh - sin * generated.detach())
    critic = (mean_squares(miss) / q.sin() ** 2).mean()
    terms = {"forward": forward, "reverse": reverse, "critic": critic}
    return forward + reverse + critic, {name: term.detach() for name, term in terms.items()}


def _guided(
    teacher: nn.Module, x: Tensor, t: Tensor, label: Tensor, scale: float | Tensor
) -> Tensor:
    """What a teacher tells without a label, and `scale` times what the label adds."""
    with torch.no_grad():
        plain = teacher(x, t, label=null_of(label))
        told: Tensor = plain + scale * (teacher(x, t, label=label) - plain)
    return told


def _towards(
    F: Callable[..., Tensor], z: Tensor, velocity: Tensor, t: Tensor, sd: float, warm: float
) -> tuple[Tensor, Tensor]:
    """The prediction, and the normalised step that it is to take."""
    moving = (velocity / sd, torch.ones_like(t))
    _, slope = torch.func.jvp(F, (z / sd, t), moving)
    prediction, cos, sin = F(z / sd, t), pad(t.cos(), z), pad(t.sin(), z)
    g = -(cos**2) * (sd * prediction - velocity)
    g = g - warm * cos * sin * (z + sd * slope)
    return prediction, g / (pad(sum_squares(g).sqrt(), z) + 0.1)


def _moment(data: Tensor, draws: dict[str, Tensor], sd: float) -> tuple[Tensor, Tensor, Tensor]:
    t, noise = draws["t"], sd * draws["noise"]
    cos, sin = pad(t.cos(), data), pad(t.sin(), data)
    return cos * data + sin * noise, cos * noise - sin * data, t
