"""Pictures for people: labelled grids of samples as PNG, small images enlarged so that each pixel
is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowdsl.runtime.dataset import Pixels

TILE = 48  # an image is enlarged by a whole factor to at least this many pixels
GAP, BLOCK_GAP, MARGIN = 4, 24, 16
TITLE_SIZE, TEXT_SIZE = 18, 14
BACKGROUND, INK, SOFT_INK, RULE = (255, 255, 255), (20, 20, 30), (110, 110, 120), (225, 225, 230)
PANEL = 300  # side of a scatter plot

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, eq=False)
class Block:
    """Samples that belong together under one caption: states (rows, columns, *shape)."""

    caption: str
    states: Tensor


def picture(
    blocks: Sequence[Block],
    pixels: Pixels,
    *,
    title: str,
    note: str = "",
    row_names: Sequence[str] = (),
    backdrop: Tensor | None = None,
) -> Image.Image:
    """One picture of all blocks side by side.

    Rows share their names at the left. States of kind "points" become scatter plots, with the
    points of `backdrop` (n, 2, 1, 1), real data, in grey behind them.
    """
    if pixels.kind == "points":
        tiles = [_scatter(block.states, pixels, backdrop) for block in blocks]
        row_names = ()
    else:
        tiles = [_mosaic(block.states, pixels) for block in blocks]
    return _assembled(tiles, [b.caption for b in blocks], title, note, row_names)


def save_picture(image: Image.Image, path: Path) -> None:
    """Writes the PNG by way of a temporary file, so that nobody ever reads half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    image.save(partial, format="PNG")
    partial.replace(path)


def _mosaic(states: Tensor, pixels: Pixels) -> Image.Image:
    """Tiles of (rows, columns, channels, height, width), enlarged without smoothing."""
    rows, columns = states.shape[:2]
    tiles = pixels.picture(states.flatten(0, 1))
    scale = max(1, -(-TILE // tiles.shape[-2]))
    tiles = tiles.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    if tiles.shape[1] == 1:
        tiles = tiles.expand(-1, 3, -1, -1)
    high, wide = tiles.shape[-2:]
    canvas = torch.full(
        (rows * (high + GAP) - GAP, columns * (wide + GAP) - GAP, 3), 255, dtype=torch.uint8
    )
    for index, tile in enumerate(tiles):
        y, x = (index // columns) * (high + GAP), (index % columns) * (wide + GAP)
        canvas[y : y + high, x : x + wide] = tile.permute(1, 2, 0)
    return Image.fromarray(canvas.numpy())


def _scatter(states: Tensor, pixels: Pixels, backdrop: Tensor | None) -> Image.Image:
    """Points of (rows, columns, 2, 1, 1) in a square from `pixels.low` to `pixels.high`."""
    image = Image.new("RGB", (PANEL, PANEL), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, PANEL - 1, PANEL - 1), outline=RULE)
    layers = [] if backdrop is None else [(backdrop, (205, 205, 212), 1.0)]
    for points, colour, radius in [*layers, (states.flatten(0, 1), (200, 60, 40), 1.5)]:
        unit = (points.detach().cpu().float().flatten(1) - pixels.low) / (pixels.high - pixels.low)
        for x, y in unit[unit.isfinite().all(1)].tolist():
            if 0 <= x <= 1 and 0 <= y <= 1:
                left, top = x * (PANEL - 1), (1 - y) * (PANEL - 1)
                box = (left - radius, top - radius, left + radius, top + radius)
                draw.ellipse(box, fill=colour)
    return image


def _assembled(
    tiles: Sequence[Image.Image],
    captions: Sequence[str],
    title: str,
    note: str,
    row_names: Sequence[str],
) -> Image.Image:
    title_font, font = _font(TITLE_SIZE), _font(TEXT_SIZE)
    left = MARGIN + (max(_width(name, font) for name in row_names) + 10 if row_names else 0)
    widths = [max(t.width, _width(c, font)) for t, c in zip(tiles, captions, strict=True)]
    right = left + sum(widths) + BLOCK_GAP * (len(tiles) - 1)
    total = max(right, MARGIN + _width(title, title_font), MARGIN + _width(note, font)) + MARGIN
    top = MARGIN + TITLE_SIZE + 8 + (TEXT_SIZE + 6 if note else 0) + TEXT_SIZE + 10
    high = max(tile.height for tile in tiles)
    image = Image.new("RGB", (total, top + high + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=title_font)
    if note:
        draw.text((MARGIN, MARGIN + TITLE_SIZE + 8), note, fill=SOFT_INK, font=font)
    step = high / len(row_names) if row_names else 0
    for row, name in enumerate(row_names):
        place = (left - 10, top + (row + 0.5) * step)
        draw.text(place, name, fill=INK, font=font, anchor=_anchor(font, "rm"))
    x = left
    for tile, caption, width in zip(tiles, captions, widths, strict=True):
        draw.text((x, top - TEXT_SIZE - 6), caption, fill=INK, font=font)
        image.paste(tile, (x, top))
        x += width + BLOCK_GAP
    return image


def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _anchor(font: Font, wanted: str) -> str | None:
    """Bitmap fonts, all there is without FreeType, know no anchors."""
    return wanted if isinstance(font, ImageFont.FreeTypeFont) else None


def _width(text: str, font: Font) -> int:
    return round(font.getlength(text))
