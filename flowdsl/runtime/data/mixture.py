"""Points in the plane from a mixture of five Gaussians: data whose flow is known in closed form.

States have shape (2, 1, 1). The components have different weights, scales and axes, so the exact
flow bends and its Jacobians do not commute. `WEIGHTS`, `MEANS` and `COVARIANCES` are the whole law.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowdsl.diagnostics import fail
from flowdsl.runtime.data import refuse_argument
from flowdsl.runtime.dataset import SPLIT_SEED, DataCard, Dataset, Pixels, in_memory
from flowdsl.runtime.randomness import generator

SUMMARY = "points in the plane from five Gaussians, whose exact flow is known"

TRAIN_COUNT, HELD_OUT_COUNT = 60_000, 10_000

WEIGHTS = torch.tensor([0.30, 0.25, 0.20, 0.15, 0.10], dtype=torch.float64)


def _law() -> tuple[Tensor, Tensor]:
    """Means (5, 2) on a circle and covariances (5, 2, 2), long axes at an angle to the radius."""
    means, covariances = [], []
    for k in range(5):
        angle = 2 * math.pi * k / 5
        means.append([0.7 * math.cos(angle), 0.7 * math.sin(angle)])
        turn = angle + math.pi / 4
        axes = torch.tensor(
            [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]],
            dtype=torch.float64,
        )
        spread = torch.tensor([0.16, 0.05], dtype=torch.float64) * (0.8 + 0.1 * k)
        covariances.append(axes @ torch.diag(spread**2) @ axes.T)
    return torch.tensor(means, dtype=torch.float64), torch.stack(covariances)


MEANS, COVARIANCES = _law()


def draw(count: int, random: torch.Generator) -> Tensor:
    """Points (count, 2) in float64 from the mixture."""
    component = torch.multinomial(WEIGHTS, count, replacement=True, generator=random)
    normal = torch.randn(count, 2, generator=random, dtype=torch.float64)
    roots = torch.linalg.cholesky(COVARIANCES)
    return MEANS[component] + torch.einsum("nij,nj->ni", roots[component], normal)


def load(argument: str, size: int | None) -> Dataset:
    """Points (2, 1, 1), without labels: the exact flow is that of the whole mixture."""
    refuse_argument("mixture", argument)
    if size is not None:
        raise fail("dataset", "points of a mixture have no size in pixels", hint="leave it out")
    random = generator(SPLIT_SEED, "mixture")
    points = draw(TRAIN_COUNT + HELD_OUT_COUNT, random).float().view(-1, 2, 1, 1)
    card = DataCard("mixture", "mixture", (2, 1, 1), pixels=Pixels(-1.3, 1.3, "points"))
    return Dataset(card, in_memory(points[:TRAIN_COUNT]), in_memory(points[TRAIN_COUNT:]))
