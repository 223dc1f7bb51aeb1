"""The few words every reference needs."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdsl.runtime.contract import NULL_LABEL

Result = tuple[Tensor, dict[str, Tensor]]


def pad(per_row: Tensor, state: Tensor) -> Tensor:
    """(batch,) to (batch, 1, 1, ...), to multiply states."""
    return per_row.reshape(-1, *([1] * (state.dim() - 1)))


def null_of(label: Tensor) -> Tensor:
    """The null label for every row."""
    return torch.full_like(label, NULL_LABEL)


def given_label(label: Tensor | None, data: Tensor) -> Tensor:
    """The label, or the null label where there is none at all."""
    if label is not None:
        return label
    return torch.full((data.shape[0],), NULL_LABEL, dtype=torch.long)


def nowhere(data: Tensor) -> Tensor:
    """A mask of no row."""
    return torch.zeros(data.shape[0], dtype=torch.bool)


def sum_squares(error: Tensor) -> Tensor:
    """(batch, ...) to (batch,): the squared norm of every row."""
    return (error**2).flatten(1).sum(dim=1)


def mean_squares(error: Tensor) -> Tensor:
    """(batch, ...) to (batch,): the mean square of every row."""
    return (error**2).flatten(1).mean(dim=1)


def adaptive(error: Tensor, power: float, offset: float) -> Tensor:
    """`error / sg((error + offset)^power)` (MeanFlow, arXiv:2505.13447, adaptive loss)."""
    return error / ((error + offset) ** power).detach()
