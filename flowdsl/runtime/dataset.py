"""A dataset as the trainer, the sampler and the metrics see it.

Data are float32 states of shape `(count, *shape)`, images in [-1, 1]. Which rows a step sees is a
pure function of (seed, step): a permutation per epoch, read `size` rows at a time. So nothing about
the data is saved in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from flowdsl.runtime.randomness import generator

#: The seed of every split into training and held-out data: the same in every run, so results can be
#: compared.
SPLIT_SEED = 20_250_519


@dataclass(frozen=True)
class Batch:
    """Rows of a dataset: `data` (n, *shape) float32, `label` (n,) int64 or None."""

    data: Tensor
    label: Tensor | None

    def to(self, device: torch.device) -> Batch:
        label = None if self.label is None else self.label.to(device)
        return Batch(self.data.to(device), label)


@dataclass(frozen=True)
class Pixels:
    """How a state becomes a picture: `low` is black and `high` is white; points are drawn as a
    scatter plot.
    """

    low: float = -1.0
    high: float = 1.0
    kind: Literal["image", "points"] = "image"

    def picture(self, state: Tensor) -> Tensor:
        """Bytes (n, 1 or 3, height, width) of states (n, channels, height, width).

        Two channels show the first, more than three the first three (latents have no colours of
        their own).
        """
        channels = state.shape[1]
        shown = state[:, : 3 if channels >= 3 else 1].detach().to("cpu", torch.float32)
        unit = (shown - self.low) / (self.high - self.low)
        return (unit.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class DataCard:
    """What a run remembers of its data: enough to build the network and to show samples without the
    data.

    `spec` is what a user typed (`digits`, `folder:/photos`); `shape` is (channels, height, width);
    `classes` is None for data without labels; `patch` is the side of a patch for the bundled
    network where its own choice does not suit the data. `conditions` is the file of embeddings that
    stand in the place of classes, if there is one.
    """

    name: str
    spec: str
    shape: tuple[int, int, int]
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    patch: int | None = None
    pixels: Pixels = Pixels()
    conditions: str = ""

    def class_name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)


@dataclass(frozen=True, eq=False)
class Split:
    """`count` rows. `take` gives the states of some rows by their indices; `labels` (count,) int64
    or None; `ids` the place of each row among all the data, where conditions can go by it.
    """

    count: int
    take: Callable[[Tensor], Tensor]
    labels: Tensor | None = None
    ids: Tensor | None = None

    def rows(self, indices: Tensor) -> Batch:
        label = None if self.labels is None else self.labels[indices]
        return Batch(self.take(indices), label)

    def first(self, limit: int) -> Batch:
        """Up to `limit` rows in a fixed random order: the same rows whenever it is asked."""
        return self.rows(permutation(self.count, SPLIT_SEED, 0)[:limit])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and held-out rows with their card. `flip` mirrors training images left to right, by
    a coin per row; `files` are the names of all rows, where each is a file.
    """

    card: DataCard
    train: Split
    held_out: Split
    flip: bool = False
    files: tuple[str, ...] = ()

    def batch(self, step: int, seed: int, size: int) -> Batch:
        """The `size` training rows of this step: a pure function of (seed, step, size)."""
        batch = self.train.rows(step_indices(self.train.count, step, seed, size))
        if not self.flip:
            return batch
        mirrored = torch.rand(size, generator=generator(seed, "flip", step)) < 0.5
        data = torch.where(mirrored.view(-1, 1, 1, 1), batch.data.flip(-1), batch.data)
        return Batch(data, batch.label)


#: With fewer held-out rows than this an evaluation says little.
FEW = 100


def dataset_lines(dataset: Dataset, *, labelled: bool) -> list[str]:
    """What a run tells of its data: how many rows, how they are split, and into which classes.
    `labelled` says whether the objective looks at the classes.
    """
    card = dataset.card
    channels, height, width = card.shape
    what = "points" if card.pixels.kind == "points" else f"images of {width}x{height}x{channels}"
    train, held_out = dataset.train.count, dataset.held_out.count
    text = f"data: {train + held_out:,} {what}, {train:,} to train, {held_out:,} held out"
    if card.conditions:
        text += f", {card.classes:,} conditions from {card.conditions}"
    elif card.classes is not None:
        names = [card.class_name(k) for k in range(min(card.classes, 4))]
        more = ", …" if card.classes > len(names) else ""
        text += f", {card.classes} classes ({', '.join(names)}{more})"
        text += "" if labelled else ", which no network sees"
    lines = [text]
    if held_out < FEW:
        lines.append(f"note: {too_few(held_out)}")
    return lines


def too_few(held_out: int) -> str:
    """Why an evaluation on so few rows says little."""
    return (
        f"{held_out} held-out rows are few: the numbers of `flowdsl evaluate` mean little below "
        f"{FEW}"
    )


@lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the rows in one epoch. Cached because consecutive steps read the same one."""
    return torch.randperm(count, generator=generator(seed, "epoch", epoch))


def step_indices(count: int, step: int, seed: int, size: int) -> Tensor:
    """The rows of one step: positions step*size ... of the endless sequence of epochs."""
    first, last = step * size, (step + 1) * size
    parts = []
    while first < last:
        epoch, offset = divmod(first, count)
        part = permutation(count, seed, epoch)[offset : offset + last - first]
        parts.append(part)
        first += len(part)
    return torch.cat(parts)


def in_memory(data: Tensor, labels: Tensor | None = None) -> Split:
    """A split of states that are held as they are. Bytes are kept as bytes and become [-1, 1] when
    taken.
    """
    if data.dtype == torch.uint8:
        return Split(len(data), lambda rows: data[rows].float() / 127.5 - 1.0, labels)
    return Split(len(data), lambda rows: data[rows], labels)


def split(
    data: Tensor, labels: Tensor | None = None, *, held_out: float = 0.2
) -> tuple[Split, Split]:
    """Training and held-out rows, chosen once and for all by `SPLIT_SEED`; at least one row in
    each.
    """
    order = permutation(len(data), SPLIT_SEED, 0)
    kept = max(1, min(len(data) - 1, round(len(data) * (1 - held_out))))
    train, rest = order[:kept].sort().values, order[kept:].sort().values
    parts = []
    for rows in (train, rest):
        part = in_memory(data[rows], None if labels is None else labels[rows])
        parts.append(replace(part, ids=rows))
    return parts[0], parts[1]
