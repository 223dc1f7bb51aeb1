"""Understanding, Accelerating and Improving MeanFlow Training (arXiv:2511.19065).

MeanFlow's rows and adaptive normalisation, then a weight outside of it: with s the share of
training that remains and h = t - r, rows off the diagonal weigh 1 - s + balance s (1 - h); rows on
it weigh min(snr, gamma) / (snr + 1), snr = ((1 - t) / t)^2, or 1 where times are accelerated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference import meanflow
from tests.reference.plain import Result, adaptive


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
    balance: float = 1.3043,
    gamma: float = 5.0,
) -> Result:
    """Networks `u(z, t, r | label)`; draws of MeanFlow."""
    error = meanflow.errors(networks, data, draws, label, omega, kappa, lo, hi)
    t, h, remaining = draws["t"], draws["t"] - draws["r"], 1 - progress
    apart = 1 - remaining + balance * remaining * (1 - h)
    ratio = (1 / t - 1) ** 2
    border = ratio.clamp(max=gamma) / (ratio + 1)
    weight = torch.where(draws["diagonal"], border, apart)
    value = (weight * adaptive(error, 1, 1e-2)).mean()
    return value, {"target": value.detach()}


def sampling(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    omega: float = 1.0,
    kappa: float = 0.5,
    balance: float = 1.3043,
) -> Result:
    """Rows on the diagonal weigh 1: their times are accelerated instead."""
    error = meanflow.errors(networks, data, draws, label, omega, kappa, 0.0, 1.0)
    h, remaining = draws["t"] - draws["r"], 1 - progress
    apart = 1 - remaining + balance * remaining * (1 - h)
    weight = torch.where(draws["diagonal"], torch.ones_like(h), apart)
    value = (weight * adaptive(error, 1, 1e-2)).mean()
    return value, {"target": value.detach()}
