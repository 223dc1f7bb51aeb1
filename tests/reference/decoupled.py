"""Decoupled MeanFlow (arXiv:2510.24474): an average-velocity loss and a velocity loss on the same
data, each with times and noise of its own, under a Cauchy distance with a learned scale.

    guided(x, q) = velocity + k (u(x, q, q | label) - u(x, q, q | null)) for q in [lo, hi];
    a row's loss is half of log(exp(-phi) E + offset) + weight phi, where E is the sum of squares,
    offset 1 and weight 1/2 (paper), or their mean, 0.01 and 1 (released code, but for its pairing
    of every phi with every error).
"""

from __future__ import annotations

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


def loss(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    k: float = 0.6,
    lo: float = 0.0,
    hi: float = 0.7,
    reduce: Callable[[Tensor], Tensor] = sum_squares,
    offset: float = 1.0,
    weight: float = 0.5,
) -> Result:
    """Networks `u(z, t, r | label)`, `phi(t, r)`; draws `noise noise' t r q dropped`."""
    del progress
    u, phi = networks["u"], networks["phi"]
    t, r, q, dropped = (draws[n] for n in ("t", "r", "q", "dropped"))
    label = given_label(label, data)
    shown = torch.where(dropped, null_of(label), label)

    def guided(x: Tensor, q: Tensor, velocity: Tensor) -> Tensor:
        with torch.no_grad():
            change = u(x, q, q, label=label) - u(x, q, q, label=null_of(label))
        plain = dropped | (q < lo) | (q > hi)
        return torch.where(pad(plain, x), velocity, velocity + k * change)

    def robust(error: Tensor, scale: Tensor) -> Tensor:
        return 0.5 * (torch.log(torch.exp(-scale) * error + offset) + weight * scale)

    z = (1 - pad(t, data)) * data + pad(t, data) * draws["noise"]
    direction = guided(z, t, draws["noise"] - data)
    moving = (direction, torch.ones_like(t), torch.zeros_like(r))
    _, slope = torch.func.jvp(lambda z, t, r: u(z, t, r, label=shown), (z, t, r), moving)
    goal = (direction - pad(t - r, z) * slope).detach()
    target = robust(reduce(u(z, t, r, label=shown) - goal), phi(t, r)).mean()

    x = (1 - pad(q, data)) * data + pad(q, data) * draws["noise'"]
    border = guided(x, q, draws["noise'"] - data)
    anchor = robust(reduce(u(x, q, q, label=shown) - border), phi(q, q)).mean()
    return target + anchor, {"target": target.detach(), "anchor": anchor.detach()}


released = partial(loss, reduce=mean_squares, offset=0.01, weight=1.0)
