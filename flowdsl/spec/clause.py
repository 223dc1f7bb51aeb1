"""What a section keyword is to the later stages: how it merges, and what its lines mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flowdsl.spec.core import Kind
from flowdsl.syntax.grammar import SectionSyntax
from flowdsl.syntax.tree import Line

if TYPE_CHECKING:
    from flowdsl.spec.scope import Scope

#: Under `extends`: lines merge name by name, the section is replaced whole, or it is never
# inherited.
Merge = Literal["names", "whole", "never"]

#: Enters the lines of one section into the scope. Order does not matter: names are looked up later.
Enter = Callable[["Scope", Sequence[Line]], None]


@dataclass(frozen=True)
class Clause:
    """One section keyword. `summary` is a sentence for `flowdsl explain` and the documentation."""

    syntax: SectionSyntax
    merge: Merge
    enter: Enter
    summary: str
    example: str
    place: int  # where the heading stands in a printed spec
    draws: Kind = Kind.SCALAR  # what a name drawn under this heading is, unless its law says more
    transparent: bool = False  # whether `d/dX[…]` looks into names defined under this heading
    group: bool = False  # whether the heading groups terms

    @property
    def keyword(self) -> str:
        return self.syntax.keyword
