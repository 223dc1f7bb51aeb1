"""Handwritten digits, 8x8 grey, 1,797 images in 10 classes: inside scikit-learn, no download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998.
"""

from __future__ import annotations

import torch

from flowdsl.diagnostics import fail
from flowdsl.runtime.data import refuse_argument
from flowdsl.runtime.dataset import DataCard, Dataset, split

SUMMARY = "handwritten digits, 8x8 grey, 10 classes, 1,797 images (inside scikit-learn)"

#: Four patches of a digit learn as well as sixty-four, in an eighth of the time.
PATCH = 4


def load(argument: str, size: int | None) -> Dataset:
    """Digits in [-1, 1], shape (1, 8, 8). Never mirrored: a mirrored 2 is not a 2."""
    from sklearn.datasets import load_digits

    refuse_argument("digits", argument)
    if size not in (None, 8):
        raise fail("dataset", f"digits have 8x8 pixels, not {size}x{size}", hint="leave it out")
    raw = load_digits()
    data = torch.from_numpy(raw.images).float().unsqueeze(1) / 8.0 - 1.0  # values 0 ... 16
    labels = torch.from_numpy(raw.target).long()
    train, held_out = split(data, labels)
    names = tuple(str(digit) for digit in range(10))
    card = DataCard("digits", "digits", (1, 8, 8), 10, names, patch=PATCH)
    return Dataset(card, train, held_out)
