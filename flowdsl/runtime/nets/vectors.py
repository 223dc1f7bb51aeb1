"""Conditions that are vectors from a table which is given, not learned: embeddings of captions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.runtime.nets.layers import Linear


class Table:
    """A table of vectors, once on every device, however many networks and averages read it."""

    def __init__(self, vectors: Tensor) -> None:
        self._on = {vectors.device: vectors}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._on:
            self._on[device] = next(iter(self._on.values())).to(device)
        return self._on[device]

    def __deepcopy__(self, memo: object) -> Table:
        return self


class VectorEmbedding(nn.Module):
    """Rows `(batch,)` of the table, and the null label, as vectors `(batch, width)`.

    The table's vectors are brought to the size one per entry and projected; null is a vector of its
    own. The table is no part of the weights: `show` gives it, and another one for other captions.
    """

    def __init__(self, count: int, inner: int, width: int) -> None:
        super().__init__()
        self.projection = Linear(inner, width)
        self.null = nn.Parameter(torch.empty(width))
        self.table = Table(torch.zeros(count, inner))

    def show(self, vectors: Tensor) -> None:
        """The table to look up in, (count, inner)."""
        self.table = Table(functional.rms_norm(vectors, vectors.shape[1:]))

    @property
    def vectors(self) -> Tensor:
        """The table where the weights are."""
        return self.table.on(self.null.device)

    def forward(self, label: Tensor) -> Tensor:
        known = label != NULL_LABEL
        rows = functional.embedding(torch.where(known, label, 0), self.vectors)
        shown: Tensor = self.projection(rows.to(self.projection.weight.dtype))
        return torch.where(known[:, None], shown, self.null.to(shown.dtype))
