"""Your own folder of images: `folder:/path`. Subfolders, where there are any, are the classes.

Images are cut to a centred square and scaled to `size`. The bytes of prepared images stay in memory
up to a limit, so each file is decoded once.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flowdsl.diagnostics import fail
from flowdsl.runtime.data import require_argument
from flowdsl.runtime.dataset import SPLIT_SEED, DataCard, Dataset, Split, permutation

SUMMARY = "your own images: folder:/path, one subfolder per class or none"

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"))
DEFAULT_SIZE = 32
MEMORY_LIMIT = 2 * 1024**3  # bytes of prepared images that are kept


def load(argument: str, size: int | None) -> Dataset:
    """Images in [-1, 1], shape (1 or 3, size, size); one channel when every file is grey.

    A tenth of the files is held out. Mirrored at random.
    """
    require_argument("folder", argument, "folder:/home/me/photos")
    root = Path(argument).expanduser()
    files, labels, names = _list_files(root)
    size = DEFAULT_SIZE if size is None else size
    grey = all(_is_grey(file) for file in files)
    images = _Images(files, size, channels=1 if grey else 3)
    order = permutation(len(files), SPLIT_SEED, 0)
    kept = max(1, min(len(files) - 1, round(len(files) * 0.9)))
    card = DataCard(
        "folder",
        f"folder:{argument}",
        (images.channels, size, size),
        len(names) or None,
        names,
    )
    label = torch.tensor(labels) if names else None
    return Dataset(
        card,
        _part(images, order[:kept].sort().values, label),
        _part(images, order[kept:].sort().values, label),
        flip=True,
        files=tuple(file.relative_to(root).as_posix() for file in files),
    )


def _list_files(root: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """The image files in order, the label of each, and the names of the classes (none without
    subfolders).
    """
    if not root.is_dir():
        raise fail("dataset", f"{root} is not a folder", hint="folder:/path/to/images")
    direct = _images_in(root)
    classes = [f for f in sorted(root.iterdir()) if f.is_dir() and not f.name.startswith(".")]
    inside = {f.name: files for f in classes if (files := _images_below(f))}
    if direct and inside:
        raise fail(
            "dataset",
            f"{root} holds images beside subfolders of images",
            hint="either images alone (no labels) or one subfolder per class",
        )
    files = direct or [file for part in inside.values() for file in part]
    if len(files) < 2:
        raise fail(
            "dataset",
            f"{root} holds {len(files)} images; at least two are needed",
            facts=(("file types", " ".join(sorted(SUFFIXES))),),
        )
    labels = [k for k, part in enumerate(inside.values()) for _ in part]
    return files, labels, tuple(inside)


def _images_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())


def _images_below(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> Exception:
    return fail(
        "dataset", f"{file} cannot be read as an image: {error}", hint="remove or repair the file"
    )


def _is_grey(file: Path) -> bool:
    with _open(file) as image:
        return image.mode in ("1", "L", "LA", "I;16")


class _Images:
    """Prepared bytes (channels, size, size) of each file, decoded when first used."""

    def __init__(self, files: list[Path], size: int, channels: int) -> None:
        self.files, self.size, self.channels = files, size, channels
        fits = len(files) * channels * size * size <= MEMORY_LIMIT
        self._kept: dict[int, Tensor] | None = {} if fits else None

    def take(self, rows: Tensor) -> Tensor:
        data = torch.stack([self._prepared(int(row)) for row in rows])
        return data.float() / 127.5 - 1.0

    def _prepared(self, row: int) -> Tensor:
        if self._kept is None:
            return self._decode(self.files[row])
        if row not in self._kept:
            self._kept[row] = self._decode(self.files[row])
        return self._kept[row]

    def _decode(self, file: Path) -> Tensor:
        try:
            with _open(file) as image:
                upright = ImageOps.exif_transpose(image).convert(
                    "L" if self.channels == 1 else "RGB"
                )
                square = ImageOps.fit(upright, (self.size, self.size), Image.Resampling.LANCZOS)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _unreadable(file, error) from error
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        return pixels.view(self.size, self.size, self.channels).permute(2, 0, 1).contiguous()


def _part(images: _Images, rows: Tensor, labels: Tensor | None) -> Split:
    return Split(
        len(rows),
        lambda indices: images.take(rows[indices]),
        None if labels is None else labels[rows],
        rows,
    )
