"""Consistency training in continuous time (Song et al., arXiv:2303.01469) on z = data + t noise.

The map to the data is f = sd^2 / a^2 z + t sd / a F(z / a, t) with a^2 = t^2 + sd^2. It is moved by
-t df/dt, the derivative taken along dz = noise, without gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, mean_squares, pad


def continuous(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
) -> Result:
    """Network `F(x, t)`; draws `noise t`."""
    del label, progress
    t, noise = draws["t"], draws["noise"]

    def clean(z: Tensor, t: Tensor) -> Tensor:
        size = (t**2 + sd**2).sqrt()
        x = z / pad(size, z)
        return pad(sd**2 / size**2, z) * z + pad(sd * t / size, z) * networks["F"](x, t)

    z = data + pad(t, data) * noise
    _, slope = torch.func.jvp(clean, (z, t), (noise, torch.ones_like(t)))
    prediction = clean(z, t)
    goal = (prediction - pad(t, z) * slope).detach()
    value = mean_squares(prediction - goal).mean()
    return value, {"target": value.detach()}
