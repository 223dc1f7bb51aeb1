"""The trigonometric path (Lu & Song, arXiv:2410.11081): its velocity, and continuous-time
consistency models trained from data (sCT) and from a frozen velocity (sCD).

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
    moving = (velocity / sd, torch.ones_like(t))
    _, slope = torch.func.jvp(F, (z / sd, t), moving)
    prediction, cos, sin = F(z / sd, t), pad(t.cos(), z), pad(t.sin(), z)
    g = -(cos**2) * (sd * prediction - velocity)
    g = g - min(1.0, step / warmup) * cos * sin * (z + sd * slope)
    g = g / (pad(sum_squares(g).sqrt(), z) + 0.1)
    balance = networks["v"](t)
    error = mean_squares(prediction - (prediction + g).detach())
    value = (balance.exp() * error - balance).mean()
    return value, {"target": value.detach()}


def _moment(data: Tensor, draws: dict[str, Tensor], sd: float) -> tuple[Tensor, Tensor, Tensor]:
    t, noise = draws["t"], sd * draws["noise"]
    cos, sin = pad(t.cos(), data), pad(t.sin(), data)
    return cos * data + sin * noise, cos * noise - sin * data, t
