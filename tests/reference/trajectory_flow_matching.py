"""Trajectory flow matching: AlphaFlow (arXiv:2510.20771) at alpha = 1, a part of its loss.

The average velocity's network u(z, t, r) is regressed on the guided velocity at z, whatever r.
Without guidance its solution is the marginal velocity v(z, t), not the average velocity. Guidance
and weight are those of the authors' AlphaFlow code: the MEAN of squares of a row, divided by itself
plus 1e-3; guidance strictly inside (lo, hi), with a dropped label null in both places. Nothing is
clipped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, adaptive, given_label, mean_squares, null_of, pad


def loss(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    omega: float = 1.0,
    kappa: float = 0.5,
    lo: float = 0.0,
    hi: float = 1.0,
    power: float = 1.0,
    offset: float = 1e-3,
) -> Result:
    """Networks `u(z, t, r | label)`; draws `noise`, `t`, `r`, `diagonal`, `dropped`.

    `power = 0` is the plain squared error; `omega = 1, kappa = 0` is no guidance.
    """
    del progress
    u, noise = networks["u"], draws["noise"]
    t, diagonal, dropped = draws["t"], draws["diagonal"], draws["dropped"]
    r = torch.where(diagonal, t, draws["r"])
    label = given_label(label, data)
    shown = torch.where(dropped, null_of(label), label)

    z = (1 - pad(t, data)) * data + pad(t, data) * noise
    velocity = noise - data

    with_label = u(z, t, t, label=shown)
    without = u(z, t, t, label=null_of(label))
    guided = omega * velocity + kappa * with_label + (1 - omega - kappa) * without
    guided = torch.where(pad((t <= lo) | (t >= hi), data), velocity, guided)

    error = mean_squares(u(z, t, r, label=shown) - guided.detach())
    value = adaptive(error, power, offset).mean()
    return value, {"target": value.detach()}
