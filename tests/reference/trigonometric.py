"""The trigonometric path (Lu & Song, arXiv:2410.11081): its velocity, and continuous-time
consistency models trained from data (sCT) and from a frozen velocity (sCD), the latter also with
distribution matching on the map's own samples (rCM, arXiv:2510.08431).

z = cos t data + sin t sd noise, the map to the data cos t z - sin t sd F(z / sd, t). With D the
derivative of F(z / sd, t) along dz,

    g = -cos^2 t (sd F - dz) - r cos t sin t (z + sd D),   F to sg(F + g / (|g| + 0.1)),

r the warm-up; a row's loss is exp(v(t)) mse - v(t).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, mean_squares, pad, sum_squares


def flow(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
) -> Result:
    """`v(z, t)` to the velocity, in units of the data's deviation."""
    del label, progress
    z, velocity, t = _moment(data, draws, sd)
    value = mean_squares((networks["v"](z, t) - velocity) / sd).mean()
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
    """Networks `F(x, t)`, `v(t)`, and a frozen `teacher(x, t)` where there is one."""
    del label, progress
    F = networks["F"]
    z, velocity, t = _moment(data, draws, sd)
    if "teacher" in networks:
        velocity = networks["teacher"](z, t)
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
    sd: float = 0.5,
    warmup: float = 1000.0,
    top: float = 1.5646,
    mid: float = 1.1,
    step: int = 0,
) -> Result:
    """Networks `F(x, t)`, frozen `teacher(x, t)`, and `fake(x, t)`, which learns on the samples."""
    del label, progress
    F, teacher, fake = (networks[n] for n in ("F", "teacher", "fake"))
    z, _, t = _moment(data, draws, sd)
    prediction, g = _towards(F, z, teacher(z, t).detach(), t, sd, min(1.0, step / warmup))
    forward = 100 * sum_squares(prediction - (prediction + g).detach()).mean()

    def landed(x: Tensor, time: Tensor) -> Tensor:
        return pad(time.cos(), x) * x - pad(time.sin(), x) * sd * F(x / sd, time)

    def between(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return pad(time.cos(), clean) * clean + pad(time.sin(), clean) * sd * noise

    high, low = torch.full_like(t, top), torch.full_like(t, mid)
    start = between(data, draws["noise"], high)
    with torch.no_grad():
        second = between(landed(start, high), draws["noise'"], low)
    again = draws["again"]
    generated = landed(torch.where(pad(again, start), second, start), torch.where(again, low, high))
    q, fresh = draws["q"], draws["noise''"]
    x, cos, sin = between(generated.detach(), fresh, q), pad(q.cos(), data), pad(q.sin(), data)
    with torch.no_grad():
        known = teacher(x, q)
        away = (generated - (cos * x - sin * known)).abs().flatten(1).mean(dim=1)
        goal = generated - sin * (known - fake(x, q)) / pad(away, x)
    reverse = mean_squares(generated - goal).mean() / 2
    miss = fake(x, q) - (cos * sd * fresh - sin * generated.detach())
    critic = (mean_squares(miss) / q.sin() ** 2).mean()
    terms = {"forward": forward, "reverse": reverse, "critic": critic}
    return forward + reverse + critic, {name: term.detach() for name, term in terms.items()}


def _towards(
    F: nn.Module, z: Tensor, velocity: Tensor, t: Tensor, sd: float, warm: float
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
