"""Frechet distance between Gaussians fitted to the features of samples and of training data.

|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): D. Dowson and B. Landau (1982); for generative models
M. Heusel et al., arXiv:1706.08500. The features are those of `flowdsl.runtime.features`, so the
number is no FID and is not named so. It falls with the number of samples: compare only equal
counts, and with the held-out data's own number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdsl.runtime.metrics import Better, Evidence

SUMMARY = "Frechet distance in the features of a small classifier (not FID)"
BETTER: Better = "lower"


def measure(evidence: Evidence) -> dict[str, float]:
    features = evidence.features
    generated = features.embed(evidence.generated.data)
    if len(generated) < 2:
        return {}
    return {f"FD-{features.name}": frechet_distance(generated, features.embed(evidence.real.data))}


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Of Gaussians fitted to the rows of (n, d) and (m, d); infinite for rows not finite."""
    if not bool(first.isfinite().all() & second.isfinite().all()):
        return float("inf")
    first, second = first.double(), second.double()
    between = (first.mean(0) - second.mean(0)).square().sum()
    one, two = _covariance(first), _covariance(second)
    root = _root(one)
    cross = torch.linalg.eigvalsh(root @ two @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float(between + one.trace() + two.trace() - 2 * cross))


def _covariance(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    return centred.T @ centred / (len(rows) - 1)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    return root
