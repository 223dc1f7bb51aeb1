"""Noise prediction: DDPM (arXiv:2006.11239, L_simple), the variance-preserving SDE
(arXiv:2011.13456).

DDPM's log of abar_k = (1 - beta_1) … (1 - beta_k) is summed up step by step here, by the two terms
-beta - beta^2 / 2 of each logarithm, which the spec has in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, mean_squares, pad


def log_products(first: float, last: float, count: int, terms: int | None = 2) -> Tensor:
    """(count + 1,): log abar_k for k = 0 … count; `terms` of each logarithm's series, or all."""
    beta = torch.linspace(first, last, count, dtype=torch.float64)
    logs = torch.log1p(-beta)
    if terms is not None:
        logs = sum(-(beta**k) / k for k in range(1, terms + 1))
    return torch.cat([torch.zeros(1, dtype=torch.float64), logs.cumsum(0)])


def ddpm(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    first: float = 1e-4,
    last: float = 0.02,
) -> Result:
    """Networks `epsilon(z, t)`; draws `noise t`, t = k / 1000."""
    del label, progress
    k = (1000 * draws["t"]).round().long()
    product = torch.exp(log_products(first, last, 1000))[k]
    return _noise_prediction(networks, data, draws, product)


def variance_preserving(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    lo: float = 0.1,
    hi: float = 20.0,
) -> Result:
    """abar = exp(-∫ beta), beta(t) = lo + t (hi - lo)."""
    del label, progress
    t = draws["t"]
    return _noise_prediction(networks, data, draws, torch.exp(-(lo * t + (hi - lo) * t * t / 2)))


def _noise_prediction(
    networks: dict[str, nn.Module], data: Tensor, draws: dict[str, Tensor], product: Tensor
) -> Result:
    noise = draws["noise"]
    z = pad(product.sqrt(), data) * data + pad((1 - product).sqrt(), data) * noise
    value = mean_squares(networks["epsilon"](z, draws["t"]) - noise).mean()
    return value, {"target": value.detach()}
