"""A batch in parts, one after the other: the gradient of a large batch in the memory of a small
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowdsl.diagnostics import fail
from flowdsl.runtime.contract import ObjectiveSignature, Share
from flowdsl.runtime.dataset import Batch
from flowdsl.runtime.protocols import CompiledLoss


@dataclass(frozen=True)
class Part:
    """Some rows of a batch, and every random number of the loss on them."""

    batch: Batch
    draws: Mapping[str, Tensor]


@dataclass(frozen=True)
class Moment:
    """Where training stands: this step of so many."""

    step: int
    steps: int

    @property
    def progress(self) -> float:
        return self.step / self.steps


def check_parts(signature: ObjectiveSignature, batch: int, count: int) -> None:
    """Raises a diagnostic where the parts together have other shares of rows than the batch."""
    for share in signature.shares:
        whole, part = (share_rows(signature, share, n) for n in (batch, batch // count))
        if part * count != whole:
            raise fail(
                "config",
                f"{count} parts of {batch // count} rows are not one batch of {batch}: "
                f"`{share.name}` holds on {part * count} rows instead of {whole}",
                facts=(("its share", f"{share.numerator} / {share.denominator}, rounded down"),),
                hint="choose fewer parts, or a larger batch",
            )


def share_rows(signature: ObjectiveSignature, share: Share, rows: int) -> int:
    """On how many of so many rows a share holds."""
    if share.on is not None:
        outer = next(s for s in signature.shares if s.name == share.on)
        inside = share_rows(signature, outer, rows)
        rows = rows - inside if share.on_others else inside
    return share.numerator * rows // share.denominator


def in_parts(
    loss: CompiledLoss, batch: Batch, count: int, moment: Moment, random: torch.Generator
) -> list[Part]:
    """The rows in `count` parts of one size, which divides their number, with draws for each.

    A share of the rows is drawn by count within every part (see `check_parts`), and a `batch_mean`
    is that of a part: the parts are what ranks are to each other in distributed training.
    """
    size = len(batch.data) // count
    parts = []
    for start in range(0, size * count, size):
        rows = slice(start, start + size)
        label = None if batch.label is None else batch.label[rows]
        data = batch.data[rows]
        draws = loss.draw(
            data,
            generator=random,
            progress=moment.progress,
            step=moment.step,
            steps=moment.steps,
        )
        parts.append(Part(Batch(data, label), draws))
    return parts


def backward(
    run: Callable[..., tuple[Tensor, Mapping[str, Tensor]]],
    parts: list[Part],
    moment: Moment,
    *,
    terms: tuple[str, ...] | None,
    labelled: bool,
    context: Callable[[], Any],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Adds the gradient of the mean loss over the parts to the parameters'; that mean, and those
    of the terms. `context` is entered around every forward pass.
    """
    values: list[Tensor] = []
    found: dict[str, list[Tensor]] = {}
    for part in parts:
        with context():
            value, metrics = run(
                part.batch.data,
                label=part.batch.label if labelled else None,
                draws=part.draws,
                progress=moment.progress,
                step=moment.step,
                steps=moment.steps,
                terms=terms,
            )
        share: Any = value / len(parts) if len(parts) > 1 else value
        share.backward()
        values.append(value.detach())
        for name, number in metrics.items():
            found.setdefault(name, []).append(number)
    return _mean(values), {name: _mean(numbers) for name, numbers in found.items()}


def _mean(numbers: list[Tensor]) -> Tensor:
    return numbers[0] if len(numbers) == 1 else torch.stack(numbers).mean()
