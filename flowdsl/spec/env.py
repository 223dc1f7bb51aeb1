"""What names mean inside a body: of a function, a map, or a derivative."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flowdsl.spec.core import Expr


@dataclass(frozen=True)
class Env:
    """What names mean inside a body: parameters and replaced names first, then moving ones.

    `values` binds parameters of functions and maps, and what a call replaces after its bar; a
    string stands for another network. `moving` binds the time and states that a surrounding
    `d/dX[…]` moves. `map_state` is the state of a map and its start, while its body is read.
    `replaced` is what the call of a map replaces after its bar, in the functions that it calls too.
    """

    values: Mapping[str, Expr | str] = field(default_factory=dict)
    moving: Mapping[str, Expr] = field(default_factory=dict)
    map_state: tuple[str, Expr] | None = None
    order: int = 0  # how many derivatives surround this place
    replaced: Mapping[str, Expr | str] = field(default_factory=dict)


TOP = Env()
