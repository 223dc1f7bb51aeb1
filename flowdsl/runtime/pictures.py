"""Samples of a network in a picture: a row per class, a block per number of steps, the same noise
in every block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from flowdsl.runtime.dataset import DataCard, Dataset
from flowdsl.runtime.grid import Block, picture
from flowdsl.runtime.protocols import CompiledLoss, Networks, takes_labels
from flowdsl.runtime.randomness import generator
from flowdsl.runtime.samplers import SampleOptions
from flowdsl.runtime.sampling import sample

ROWS, COLUMNS, POINTS = 8, 8, 1500
MOST_CLASSES = 10
DATA_COLUMNS, MOST_SEARCHED = 4, 1000  # of held-out data beside the samples


@dataclass(frozen=True)
class Layout:
    """Rows and columns of a block, and the class of each row (None: no classes)."""

    rows: int
    columns: int
    labels: tuple[int, ...] | None


def layout(card: DataCard, *, labelled: bool, labels: Sequence[int] | None = None) -> Layout:
    """A row per class asked for (or the first ten), else eight rows; points need no rows."""
    if card.pixels.kind == "points":
        return Layout(1, POINTS, None)
    if not labelled or card.classes is None:
        return Layout(ROWS, COLUMNS, None)
    chosen = tuple(range(min(card.classes, MOST_CLASSES)) if labels is None else labels)
    return Layout(len(chosen), COLUMNS, chosen)


def sample_blocks(
    loss: CompiledLoss,
    networks: Networks,
    card: DataCard,
    plan: Layout,
    steps: Sequence[int],
    *,
    seed: int,
    device: torch.device,
    options: SampleOptions | None = None,
) -> list[Block]:
    """One block per number of steps, states (rows, columns, *shape), all from one noise."""
    count = plan.rows * plan.columns
    noise = torch.randn(count, *card.shape, generator=generator(seed, "picture")).to(device)
    label = None
    if plan.labels is not None:
        label = torch.tensor(plan.labels).repeat_interleave(plan.columns).to(device)
    blocks = []
    for number in steps:
        fresh = generator(seed, "picture", number, device=device)
        states = sample(
            loss,
            networks,
            card.shape,
            count,
            number,
            label=label,
            noise=noise,
            generator=fresh,
            options=options,
        )
        caption = f"{number} step{'s' if number > 1 else ''}"
        blocks.append(Block(caption, states.view(plan.rows, plan.columns, *card.shape).cpu()))
    return blocks


def data_block(dataset: Dataset, plan: Layout) -> Block | None:
    """Held-out rows of the same classes, to compare samples with; None where there are too few."""
    columns = min(DATA_COLUMNS, plan.columns)
    batch = dataset.held_out.first(MOST_SEARCHED)
    if plan.labels is None or batch.label is None:
        rows = list(torch.split(batch.data, columns)[: plan.rows])
    else:
        rows = [batch.data[batch.label == label][:columns] for label in plan.labels]
    if len(rows) < plan.rows or any(len(row) < columns for row in rows):
        return None
    return Block("held-out data", torch.stack(rows))


def sample_picture(
    blocks: Sequence[Block],
    card: DataCard,
    plan: Layout,
    *,
    title: str,
    note: str = "",
    backdrop: Tensor | None = None,
) -> Image.Image:
    """The blocks with their title; rows carry the names of their classes."""
    names = () if plan.labels is None else tuple(card.class_name(k) for k in plan.labels)
    return picture(blocks, card.pixels, title=title, note=note, row_names=names, backdrop=backdrop)


def shows_labels(loss: CompiledLoss, card: DataCard) -> bool:
    """Whether samples can be asked for by class: the networks see labels and the data have them."""
    return takes_labels(loss.signature) and card.classes is not None
