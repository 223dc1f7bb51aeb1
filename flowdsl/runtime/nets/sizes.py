"""Sizes of the bundled network by name, and how a picture is cut into patches."""

from __future__ import annotations

from dataclasses import dataclass

from flowdsl.diagnostics import did_you_mean, fail


@dataclass(frozen=True)
class Size:
    """Blocks, features of a token, heads of attention; and into how many tokens a picture is cut
    at most, unless a patch is chosen.
    """

    name: str
    depth: int
    width: int
    heads: int
    tokens: int = 64


#: S, B, L, XL: DiT, arXiv:2212.09748, table 1. The others are for small pictures and CPUs.
SIZES: dict[str, Size] = {
    size.name: size
    for size in (
        Size("nano", depth=4, width=96, heads=3),
        Size("micro", depth=6, width=192, heads=3),
        Size("S", depth=12, width=384, heads=6, tokens=256),
        Size("B", depth=12, width=768, heads=12, tokens=256),
        Size("L", depth=24, width=1024, heads=16, tokens=256),
        Size("XL", depth=28, width=1152, heads=16, tokens=256),
    )
}


def find_size(name: str) -> Size:
    """The size with this name; raises a diagnostic for an unknown one."""
    if name in SIZES:
        return SIZES[name]
    meant = next((known for known in SIZES if known.lower() == name.lower()), None)
    raise fail(
        "network",
        f'no network size is called "{name}"',
        facts=[("sizes", ", ".join(SIZES))],
        hint=f'did you mean "{meant}"?' if meant else did_you_mean(name, SIZES),
    )


def choose_patch(size: Size, height: int, width: int) -> int:
    """The smallest power of two that divides the picture and makes at most `size.tokens` tokens,
    and of pictures from 8 x 8 no more tokens than a patch of 2 makes.

    Where no such power makes so few, the largest that divides.
    """
    limit = min(size.tokens, max(height * width // 4, 16))
    patch = 1
    # Two numbers are both divisible by a power of two when their bits together are.
    while height * width > limit * patch**2 and (height | width) % (2 * patch) == 0:
        patch *= 2
    return patch


def check_patch(patch: int, height: int, width: int) -> None:
    """Raises a diagnostic unless squares of this side tile the picture."""
    if patch >= 1 and height % patch == 0 and width % patch == 0:
        return
    fitting = [p for p in range(1, min(height, width) + 1) if height % p == 0 == width % p]
    padded = f", or pad it to {height + -height % patch} x {width + -width % patch}"
    raise fail(
        "network",
        f"a picture of {height} x {width} cannot be cut into patches of {patch} x {patch}",
        facts=[("patches that fit", ", ".join(map(str, fitting)))],
        hint=f"choose one of these{padded if patch >= 1 else ''}",
    )
