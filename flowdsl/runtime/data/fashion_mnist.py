"""Fashion-MNIST: 70,000 grey images of clothes, 28x28, 10 classes, from files that are already on
the machine.

H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST", arXiv:1708.07747 (MIT licence). The four IDX
files are looked for in $FLOWDSL_DATA, where Debian's package puts them, and where torchvision does;
packed (.gz) or not.
"""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from flowdsl.diagnostics import fail
from flowdsl.runtime.data import refuse_argument
from flowdsl.runtime.dataset import DataCard, Dataset, in_memory

SUMMARY = "clothes, 28x28 grey, 10 classes, 70,000 images (Debian: dataset-fashion-mnist)"

CLASS_NAMES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
UNSIGNED_BYTE = 8  # the IDX code of the element type


def load(argument: str, size: int | None) -> Dataset:
    """Images in [-1, 1], shape (1, size, size), mirrored at random; the 10,000 test images are the
    held-out rows.

    `size` 32 pads with black, smaller sizes are resampled with antialiasing.
    """
    refuse_argument("fashion_mnist", argument)
    folder = _find_folder()
    parts = {}
    for part in ("train", "t10k"):
        images = read_idx(_file(folder, f"{part}-images-idx3-ubyte"), rank=3)
        labels = read_idx(_file(folder, f"{part}-labels-idx1-ubyte"), rank=1)
        if len(images) != len(labels):
            raise fail(
                "dataset",
                f"{part}: {len(images)} images but {len(labels)} labels in {folder}",
                hint="fetch the four files again",
            )
        parts[part] = in_memory(_resized(images.unsqueeze(1), size), labels.long())
    side = 28 if size is None else size
    card = DataCard("fashion_mnist", "fashion_mnist", (1, side, side), 10, CLASS_NAMES)
    return Dataset(card, parts["train"], parts["t10k"], flip=True)


def search_folders() -> tuple[Path, ...]:
    """Where the files are looked for, in order."""
    own = os.environ.get("FLOWDSL_DATA")
    roots = (Path(own),) if own else ()
    below = ("", "fashion-mnist", "fashion_mnist", "FashionMNIST/raw")
    relative = Path("data") / "FashionMNIST" / "raw"  # torchvision with root="data"
    return (*(root / part for root in roots for part in below), DEBIAN, relative)


def _find_folder() -> Path:
    folders = search_folders()
    for folder in folders:
        stem = folder / "train-images-idx3-ubyte"
        if stem.is_file() or stem.with_name(stem.name + ".gz").is_file():
            return folder
    raise fail(
        "dataset",
        "the files of Fashion-MNIST are not on this machine",
        facts=(("looked in", "\n".join(str(folder) for folder in folders)),),
        hint="on Debian or Ubuntu: apt install dataset-fashion-mnist\n"
        "or set FLOWDSL_DATA to the folder that holds train-images-idx3-ubyte.gz and the others",
    )


def _file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise fail("dataset", f"{name} is missing in {folder}", hint="all four IDX files are needed")


def read_idx(path: Path, rank: int) -> Tensor:
    """The bytes of an IDX file of this rank, packed or not.

    Layout: two zero bytes, the element type (8: unsigned byte), the rank, one big-endian int32 per
    axis, the data.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise fail("dataset", f"{path} cannot be read: {error}", hint="fetch it again") from error
    start = 4 + 4 * rank
    if len(content) < start or content[:4] != bytes((0, 0, UNSIGNED_BYTE, rank)):
        raise fail("dataset", f"{path} is not an IDX file of bytes with {rank} axes")
    axes = struct.unpack(f">{rank}i", content[4:start])
    count = 1
    for axis in axes:
        count *= axis
    if min(axes) < 1 or len(content) - start != count:
        raise fail(
            "dataset",
            f"{path} holds {len(content) - start} bytes, its header promises {count}",
            hint="the file was cut short: fetch it again",
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(*axes)


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size in (None, 28):
        return images
    if size == 32:
        return pad(images, (2, 2, 2, 2))
    parts = [
        interpolate(
            chunk.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
        )
        for chunk in torch.split(images, 4096)
    ]
    return torch.cat(parts).round().clamp(0, 255).to(torch.uint8)
