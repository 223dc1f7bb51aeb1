"""Precision and recall of samples by nearest neighbours in feature space.

A sample is precise when it lies within the distance of some real row to that row's third nearest
real neighbour; recall is the same with the roles exchanged. T. Kynkaanniemi et al.,
arXiv:1904.06991.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdsl.runtime.metrics import Better, Evidence

SUMMARY = "precision and recall by three nearest neighbours in the classifier's features"
BETTER: Better = "higher"

NEIGHBOURS, MOST_ROWS = 3, 2000


def measure(evidence: Evidence) -> dict[str, float]:
    generated = evidence.features.embed(evidence.generated.data)
    real = evidence.features.embed(evidence.real.data)
    count = min(len(generated), len(real), MOST_ROWS)
    if count <= NEIGHBOURS or not bool(generated.isfinite().all()):
        return {}
    generated, real = generated[:count], real[:count]
    return {
        "precision": covered(generated, real),
        "recall": covered(real, generated),
    }


def covered(points: Tensor, support: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """The share of points (n, d) inside some ball of support (m, d), each to its k-th neighbour."""
    # the smallest distance is that to itself, so the k-th neighbour is the (k + 1)-th smallest
    radii = torch.cdist(support, support).kthvalue(neighbours + 1, dim=1).values
    inside = torch.cdist(points, support) <= radii
    return float(inside.any(1).double().mean())
