"""Sliced Wasserstein distance of samples and training data, on the states themselves.

Root mean square over random directions of the 2-Wasserstein distance of the projections: J. Rabin
et al. (2011). It sees what a classifier overlooks, such as faint noise. In units of the data along
one direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdsl.runtime.metrics import Better, Evidence
from flowdsl.runtime.randomness import generator

SUMMARY = "sliced Wasserstein distance on the states themselves"
BETTER: Better = "lower"

DIRECTIONS, SEED = 256, 2


def measure(evidence: Evidence) -> dict[str, float]:
    distance = sliced_wasserstein(evidence.generated.data, evidence.real.data)
    return {"sliced-W2": distance}


def sliced_wasserstein(first: Tensor, second: Tensor, directions: int = DIRECTIONS) -> float:
    """Between rows (n, ...) and (m, ...), along fixed random unit directions.

    Projections of unequal counts are compared at the quantiles of the smaller set.
    """
    one, two = first.cpu().flatten(1).double(), second.cpu().flatten(1).double()
    if not bool(one.isfinite().all() & two.isfinite().all()):
        return float("inf")
    random = generator(SEED, "directions")
    axes = torch.randn(one.shape[1], directions, generator=random, dtype=torch.float64)
    axes = axes / axes.norm(dim=0)
    count = min(len(one), len(two))
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    gaps = _quantiles(one @ axes, places) - _quantiles(two @ axes, places)
    return float(gaps.square().mean().sqrt())


def _quantiles(values: Tensor, places: Tensor) -> Tensor:
    """The quantile function of each column at places in (0, 1), linear between the sample's own
    places.
    """
    ordered = values.sort(dim=0).values
    count = len(ordered)
    position = (places * count - 0.5).clamp(0, count - 1)
    low = position.floor().long()
    high = (low + 1).clamp_max(count - 1)
    weight = (position - low).unsqueeze(1)
    return ordered[low] * (1 - weight) + ordered[high] * weight
