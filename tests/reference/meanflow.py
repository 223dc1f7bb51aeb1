"""MeanFlow (Geng et al., arXiv:2505.13447): its Algorithm 1, with guidance.

Semantics of the authors' ImageNet code. u(z, t, r) predicts the average velocity from r to t. By
the MeanFlow identity u = v - (t - r) du/dt, the target is

    guided - (t - r) du/dt,   du/dt the derivative of u along (guided, 1, 0), all without gradient;
    guided = omega velocity + kappa u(z, t, t | label) + (1 - omega - kappa) u(z, t, t | null)

with labels as they were before dropping. Rows with a dropped label, and times outside [lo, hi],
have the plain velocity. The error of a row is its SUM of squares, divided by (error + offset)^power
without gradient; ImageNet has power 1, offset 1e-2. The diagonal rows keep the larger of their two
times.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, adaptive, given_label, null_of, pad, sum_squares


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
    offset: float = 1e-2,
    sign: float = -1.0,
) -> Result:
    """Networks `u(z, t, r | label)`; draws `noise`, `t`, `r`, `diagonal`, `dropped`.

    `power = 0` is the plain squared error; `sign = +1` is the well-known wrong target.
    """
    del progress
    error = errors(networks, data, draws, label, omega, kappa, lo, hi, sign)
    value = adaptive(error, power, offset).mean()
    return value, {"target": value.detach()}


def errors(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    omega: float,
    kappa: float,
    lo: float,
    hi: float,
    sign: float = -1.0,
) -> Tensor:
    """(batch,): the sum of squares of every row's residual."""
    u, noise = networks["u"], draws["noise"]
    t, diagonal, dropped = draws["t"], draws["diagonal"], draws["dropped"]
    r = torch.where(diagonal, t, draws["r"])
    label = given_label(label, data)
    shown = torch.where(dropped, null_of(label), label)

    z = (1 - pad(t, data)) * data + pad(t, data) * noise
    velocity = noise - data

    with_label = u(z, t, t, label=label)
    without = u(z, t, t, label=null_of(label))
    guided = omega * velocity + kappa * with_label + (1 - omega - kappa) * without
    plain = dropped | (t < lo) | (t > hi)
    guided = torch.where(pad(plain, data), velocity, guided)

    _, derivative = torch.func.jvp(
        lambda z, t, r: u(z, t, r, label=shown),
        (z, t, r),
        (guided, torch.ones_like(t), torch.zeros_like(r)),
    )
    target = (guided + sign * pad(t - r, data) * derivative).detach()
    return sum_squares(u(z, t, r, label=shown) - target)


def without_labels(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    power: float = 0.75,
    offset: float = 1e-3,
) -> Result:
    """The authors' CIFAR-10 code: `u(z, t, r)`, the conditional velocity in target and tangent."""
    del label, progress
    u, noise, t = networks["u"], draws["noise"], draws["t"]
    r = draws["r"] if "q" not in draws else torch.minimum(t, draws["q"])
    r = torch.where(draws["diagonal"], t, r)
    z = (1 - pad(t, data)) * data + pad(t, data) * noise
    tangents = (noise - data, torch.ones_like(t), torch.zeros_like(r))
    _, derivative = torch.func.jvp(u, (z, t, r), tangents)
    target = (noise - data - pad(t - r, data) * derivative).detach()
    value = adaptive(sum_squares(u(z, t, r) - target), power, offset).mean()
    return value, {"target": value.detach()}
