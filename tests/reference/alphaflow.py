"""AlphaFlow (arXiv:2510.20771), with guidance, clipping and weights of the authors' code.

With s = t - alpha (t - r), rows off the diagonal have the target, without gradient,

    clip(alpha guided + (1 - alpha) u(z - (t - s) guided, s, r), -4, 4)     for 0 < alpha < 1,
    clip(guided, -4, 4)                                                     for alpha = 1,
    guided - (t - r) du/dt, du/dt along (guided, 1, 0), not clipped         for alpha = 0.

Rows on the diagonal, whose times have a law of their own, have the target `guided`. alpha falls
along a sigmoid of the progress of training and snaps to 0 and 1 within 0.005 of them. The error of
a row is its MEAN of squares; rows off the diagonal weigh alpha / (error + 1e-3), the others, and
all rows when alpha = 0, weigh 1 / (error + 1e-3). Guidance acts strictly inside (lo, hi). A dropped
label is null in both of its places, so that dropped rows have omega velocity + (1 - omega) u(null).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, adaptive, given_label, mean_squares, nowhere, null_of, pad


def schedule(progress: float, begin: float = 0.0, end: float = 1.0) -> float:
    """`snap(1 - sigmoid(25 (progress - 1/2)), 0.005)`, of the progress between begin and end."""
    progress = (progress - begin) / (end - begin)
    alpha = 1 - 1 / (1 + math.exp(-25 * (progress - 0.5)))
    if alpha < 0.005:
        return 0.0
    if alpha > 1 - 0.005:
        return 1.0
    return alpha


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
    bound: float = 4.0,
    alpha: float | None = None,
    squared: bool = False,
) -> Result:
    """Networks `u(z, t, r | label)`; draws `noise`, `t`, `r`, `diagonal`, `dropped`.

    `alpha` replaces the schedule's value; `power = 0` is the plain squared error (times alpha off
    the diagonal); `squared` is the sum of squares over alpha, as the paper's theory has it. Without
    `dropped` no label is dropped.
    """
    u, noise = networks["u"], draws["noise"]
    t, diagonal = draws["t"], draws["diagonal"]
    r = torch.where(diagonal, t, draws["r"])
    alpha = schedule(progress) if alpha is None else alpha
    label = given_label(label, data)
    dropped = draws.get("dropped", nowhere(data))
    shown = torch.where(dropped, null_of(label), label)

    z = (1 - pad(t, data)) * data + pad(t, data) * noise
    velocity = noise - data

    with_label = u(z, t, t, label=shown)
    without = u(z, t, t, label=null_of(label))
    guided = omega * velocity + kappa * with_label + (1 - omega - kappa) * without
    guided = torch.where(pad((t <= lo) | (t >= hi), data), velocity, guided)

    if alpha == 0:
        _, derivative = torch.func.jvp(
            lambda z, t, r: u(z, t, r, label=shown),
            (z, t, r),
            (guided, torch.ones_like(t), torch.zeros_like(r)),
        )
        goal = guided - pad(t - r, data) * derivative
    elif alpha == 1:
        goal = guided.clamp(-bound, bound)
    else:
        s = t - alpha * (t - r)
        moved = z - pad(t - s, data) * guided
        goal = alpha * guided + (1 - alpha) * u(moved, s, r, label=shown)
        goal = goal.clamp(-bound, bound)
    goal = torch.where(pad(diagonal, data), guided, goal)

    error = mean_squares(u(z, t, r, label=shown) - goal.detach())
    if squared:
        over = torch.ones_like(t) if alpha == 0 else torch.full_like(t, 1 / alpha)
        rows = torch.where(diagonal, torch.ones_like(t), over) * error * data[0].numel()
        return rows.mean(), {"target": rows.mean().detach()}
    ones = torch.ones_like(t)
    weight = ones if alpha == 0 else torch.where(diagonal, ones, alpha * ones)
    value = (weight * adaptive(error, power, offset)).mean()
    return value, {"target": value.detach()}


def plain(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
) -> Result:
    """Without guidance: every label is shown, and the velocity is the conditional one."""
    return loss(networks, data, draws, label, progress, omega=1.0, kappa=0.0)


def in_theory(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
) -> Result:
    """The squared error over alpha, without guidance and clipping."""
    return loss(networks, data, draws, label, progress, kappa=0.0, bound=math.inf, squared=True)


def largest(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    omega: float = 0.2,
    kappa: float = 0.92,
    lo: float = 0.0,
    hi: float = 0.75,
) -> Result:
    """The recipe of the XL/2 network: alpha falls between 1/2 and 5/6 of the training."""
    alpha = schedule(progress, 600 / 1200, 1000 / 1200)
    return loss(networks, data, draws, label, omega=omega, kappa=kappa, lo=lo, hi=hi, alpha=alpha)
