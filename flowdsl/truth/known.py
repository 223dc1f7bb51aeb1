"""Vectors of which some combinations are known: the data and noises of a row, given its states.

The state that a network sees, its velocity, and every other state that the network is shown are
combinations of the row's data and noises. Gauss' elimination turns these equations about, so that
any other combination is read off them, or is seen to have a part that is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flowdsl.calculus.field import Element
from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.state import State
from flowdsl.spec.core import Expr

Combination = Mapping[Expr, Element]


@dataclass
class Known:
    """Equations `Σ c_i leaf_i = state`, solved as they come: each is told by its own leaf, which
    occurs in no other."""

    scalars: Scalars
    zero: State
    rows: dict[Expr, tuple[dict[Expr, Element], State]] = field(default_factory=dict)

    def add(self, combination: Combination, value: State) -> State | None:
        """Take in an equation. What remains on its right where it has no leaf that the others leave
        open: zero where it says nothing new, else what the known states would have to fulfil."""
        rest, total = self.reduce(combination)
        value = value - total
        if not rest:
            return value
        leaf = next(iter(rest))
        own = {k: self.scalars.divide(c, rest[leaf]) for k, c in rest.items()}
        solved = own, value.over(rest[leaf])
        for name, (row, right) in list(self.rows.items()):
            factor = row.get(leaf)
            if factor:
                self.rows[name] = self._less(row, own, factor), right - solved[1].scaled(factor)
        self.rows[leaf] = solved
        return None

    def reduce(self, combination: Combination) -> tuple[dict[Expr, Element], State]:
        """A combination as what is free in it, and a state that is known."""
        rest = {leaf: c for leaf, c in combination.items() if c}
        total = self.zero
        for leaf, (row, right) in self.rows.items():
            factor = rest.get(leaf)
            if factor:
                rest = self._less(rest, row, factor)
                total = total + right.scaled(factor)
        return rest, total

    @property
    def leaves(self) -> set[Expr]:
        """Every leaf that an equation speaks of."""
        return {leaf for row, _ in self.rows.values() for leaf in row}

    def _less(self, one: Combination, other: Combination, factor: Element) -> dict[Expr, Element]:
        """`one - factor * other`, zeros left out."""
        scalars, total = self.scalars, dict(one)
        for leaf, c in other.items():
            step = scalars.product(factor, c)
            left = total[leaf] - step if leaf in total else -step
            total[leaf] = scalars.normal(left) if scalars.roots else left
        return {leaf: c for leaf, c in total.items() if c}
