"""Your own arrays or latents: `array:/path.npy` (also .npz, .pt, .safetensors), used as they are.

The states are the first axis: (n, channels, height, width), (n, height, width) or (n, numbers). A
file of several arrays holds the states under `data`, `images`, `latents` or `x`, and labels, where
there are any, under `label`, `labels` or `y`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowdsl.diagnostics import fail
from flowdsl.runtime.data import require_argument
from flowdsl.runtime.dataset import DataCard, Dataset, Pixels, split

SUMMARY = "your own arrays or latents: array:/path.npy, .npz, .pt or .safetensors"

DATA_KEYS = ("data", "images", "latents", "x")
LABEL_KEYS = ("label", "labels", "y")


def load(argument: str, size: int | None) -> Dataset:
    """States as float32, unscaled, except bytes: those are pixels and become [-1, 1]. A tenth is
    held out.
    """
    require_argument("array", argument, "array:/home/me/latents.npy")
    if size is not None:
        raise fail("dataset", "arrays are used as they are, without a size", hint="leave it out")
    path = Path(argument).expanduser()
    if not path.is_file():
        raise fail("dataset", f"{path} is not a file", hint="array:/path/to/data.npy")
    data, labels = _read(path)
    states = _states(path, data)
    label, classes = _labels(path, labels, len(states))
    shape = (states.shape[1], states.shape[2], states.shape[3])
    train, held_out = split(states, label, held_out=0.1)
    card = DataCard("array", f"array:{argument}", shape, classes, pixels=_pixels(states))
    return Dataset(card, train, held_out)


def _read(path: Path) -> tuple[Tensor, Tensor | None]:
    try:
        content = _content(path)
    except DataError as error:
        raise fail("dataset", f"{path}: {error}", hint=SUMMARY) from error
    except Exception as error:  # each reader has its own errors; all mean the same to the user
        raise fail("dataset", f"{path} cannot be read: {error}", hint=SUMMARY) from error
    if not isinstance(content, Mapping):
        return torch.as_tensor(content), None
    data = next((content[key] for key in DATA_KEYS if key in content), None)
    labels = next((content[key] for key in LABEL_KEYS if key in content), None)
    if data is None:
        raise fail(
            "dataset",
            f"{path} holds no states under a known name",
            facts=(("found", ", ".join(content)), ("known", ", ".join(DATA_KEYS))),
        )
    return torch.as_tensor(data), None if labels is None else torch.as_tensor(labels)


class DataError(Exception):
    """A file of a kind that is not read."""


def _content(path: Path) -> Any:
    match path.suffix.lower():
        case ".npy":
            return np.load(path, allow_pickle=False)
        case ".npz":
            return dict(np.load(path, allow_pickle=False))
        case ".pt" | ".pth":
            return torch.load(path, map_location="cpu", weights_only=True)
        case ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        case suffix:
            raise DataError(f'files of the kind "{suffix}" are not read')


def _states(path: Path, data: Tensor) -> Tensor:
    """Bytes or float32 of shape (n, channels, height, width)."""
    if not (data.is_floating_point() or data.dtype == torch.uint8):
        data = data.to(torch.float32)
    elif data.is_floating_point():
        data = data.to(torch.float32)
        if not bool(data.isfinite().all()):
            raise fail("dataset", f"{path} holds numbers that are not finite")
    match data.ndim:
        case 4:
            shaped = data
        case 3:
            shaped = data.unsqueeze(1)
        case 2:
            shaped = data[:, :, None, None]
        case rank:
            raise fail("dataset", f"{path} has {rank} axes", hint="two, three or four: n first")
    if len(shaped) < 2:
        raise fail("dataset", f"{path} holds {len(shaped)} states; at least two are needed")
    return shaped.contiguous()


def _labels(path: Path, labels: Tensor | None, count: int) -> tuple[Tensor | None, int | None]:
    if labels is None:
        return None, None
    whole = labels.ndim == 1 and len(labels) == count and not labels.is_floating_point()
    if not whole or int(labels.min()) < 0:
        raise fail(
            "dataset",
            f"{path}: labels of shape {tuple(labels.shape)} and type {labels.dtype}",
            hint=f"whole numbers from 0, one for each of the {count} states",
        )
    return labels.long(), int(labels.max()) + 1


def _pixels(states: Tensor) -> Pixels:
    """Black and white at the 1st and 99th percentile; points are drawn as points."""
    if states.dtype == torch.uint8:
        return Pixels()
    sample = states.flatten()[:: max(1, states.numel() // 100_000)]
    low, high = (float(q) for q in sample.quantile(torch.tensor([0.01, 0.99])))
    kind = "points" if states.shape[1:] == (2, 1, 1) else "image"
    return Pixels(low, high if high > low else low + 1.0, "points" if kind == "points" else "image")
