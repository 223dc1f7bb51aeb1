"""Random square crops of two colour photographs: RGB patches without end, no labels, no download.

The photographs are scikit-learn's `load_sample_images` (a Chinese temple and a flower, 427x640,
CC-BY 2.0 each).
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdsl.diagnostics import fail
from flowdsl.runtime.data import refuse_argument
from flowdsl.runtime.dataset import DataCard, Dataset, Split

SUMMARY = "random RGB crops of two photographs, 16x16 by default, no labels (inside scikit-learn)"

#: Crops right of this share of the width are held out; no held-out pixel is ever trained on.
TRAIN_WIDTH = 0.8


def load(argument: str, size: int | None) -> Dataset:
    """Crops in [-1, 1], shape (3, size, size), mirrored at random."""
    from sklearn.datasets import load_sample_images

    refuse_argument("photos", argument)
    size = 16 if size is None else size
    photos = torch.stack([torch.from_numpy(i.copy()) for i in load_sample_images().images])
    photos = photos.permute(0, 3, 1, 2)  # (2, 3, height, width), bytes
    border = int(photos.shape[-1] * TRAIN_WIDTH)
    if size > photos.shape[-1] - border:
        raise fail(
            "dataset",
            f"the photographs are too small for held-out crops of {size} pixels",
            hint=f"a size up to {photos.shape[-1] - border}",
        )
    card = DataCard("photos", "photos", (3, size, size))
    train, held_out = photos[..., :border], photos[..., border:]
    return Dataset(card, _crops(train, size), _crops(held_out, size), flip=True)


def _crops(photos: Tensor, size: int) -> Split:
    """Every position of a size x size window in every photograph is one row."""
    windows = photos.unfold(2, size, 1).unfold(3, size, 1)  # a view: no crop is copied
    windows = windows.permute(0, 2, 3, 1, 4, 5)  # (photo, y, x, channel, height, width)
    count, high, wide = windows.shape[:3]

    def take(rows: Tensor) -> Tensor:
        photo, place = rows // (high * wide), rows % (high * wide)
        return windows[photo, place // wide, place % wide].float() / 127.5 - 1.0

    return Split(count * high * wide, take)
