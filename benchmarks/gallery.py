"""The samples of `docs/samples` in one picture, a row for each objective in its fewest steps.

python benchmarks/gallery.py     # after benchmarks/measure.py; writes docs/samples.png
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from flowdsl.cli.family import family
from flowdsl.cli.measured import Measured, read

DOCS = Path(__file__).parent.parent / "docs"
PANELS, LEFT, MARGIN, GAP, SIZE = 2, 260, 12, 4, 14  # pixels but for the panels
INK, SOFT = (20, 20, 30), (110, 110, 120)


def main() -> None:
    measured = read(DOCS / "measured.json")
    names = [name for name, _ in family() if name in measured]
    gallery(measured, names).save(DOCS / "samples.png", optimize=True)


def gallery(measured: dict[str, Measured], names: list[str]) -> Image.Image:
    """Names and figures left of the digits, in panels side by side."""
    rows = [first_row(measured[name], DOCS / "samples" / f"{name}.png") for name in names]
    high, wide = max(row.height for row in rows) + GAP, max(row.width for row in rows) + LEFT
    each = -(-len(rows) // PANELS)
    size = (PANELS * (wide + 2 * MARGIN), each * high - GAP + 2 * MARGIN)
    canvas = Image.new("RGB", size, (255, 255, 255))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=SIZE)
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        x = MARGIN + place // each * (wide + 2 * MARGIN)
        y = MARGIN + place % each * high
        draw.text((x, y + 1), name, fill=INK, font=font)
        draw.text((x, y + 2 + SIZE), said(measured[name]), fill=SOFT, font=font)
        canvas.paste(row, (x + LEFT, y))
    return canvas.quantize(64)


def first_row(found: Measured, file: Path) -> Image.Image:
    """The samples in the fewest steps, of a picture that has a row for each number of steps."""
    with Image.open(file) as image:
        high = (image.height + 2) // len(found.after)
        return image.crop((0, 0, image.width, high - 2))


def said(found: Measured) -> str:
    steps = found.after[0].steps
    return f"{steps} step{'s' if steps > 1 else ''}"


if __name__ == "__main__":
    main()
