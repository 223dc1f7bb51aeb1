"""The field to be learned: the data's velocity, guided as the spec says, piece by piece in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import torch
from torch import Tensor

from flowdsl.certify.solution import Solution
from flowdsl.exact.field import MixtureField, label_column
from flowdsl.exact.paths import Clock
from flowdsl.exact.variation import Prepared

Scalars = Mapping[str, Tensor]
GRID = 601  #: times at which the guidance is looked at for jumps


@dataclass(frozen=True)
class Strength:
    """How much of the labelled velocity the field holds: 1 is the data's own.

    `cuts` are the times at which it jumps; `steady` says that it is constant in between.
    """

    solution: Solution
    guided: bool
    cuts: tuple[float, ...]
    steady: bool

    def at(self, time: Tensor, scalars: Scalars) -> Tensor:
        """The strength at times (rows,) under conditions (rows,)."""
        return self.solution.relation(time, False, scalars).labelled

    def pieces(self, scalars: Scalars, rows: int) -> list[Tensor]:
        """A steady strength between its cuts, for each row."""
        if self._constant is not None:
            return [level.expand(rows) for level in self._constant]
        like = torch.zeros(rows, dtype=torch.float64)
        return [self.at(like + middle, scalars) for middle in self._middles]

    @property
    def _middles(self) -> list[float]:
        low, high = self.solution.span
        return [(a + b) / 2 for a, b in pairwise([low, *self.cuts, high])]

    @cached_property
    def _constant(self) -> list[Tensor] | None:
        """The strength between its cuts where no condition of a row decides it."""
        equation = self.solution.equation(False)
        if equation is None or equation.place.parameters:
            return None
        return [self.at(torch.tensor([m], dtype=torch.float64), {}) for m in self._middles]


def strength_of(solution: Solution) -> Strength:
    """Find out whether the field is guided, where its guidance jumps, and whether it is steady."""
    equation = solution.equation(False)
    if equation is None:
        return Strength(solution, False, (), True)
    low, high = solution.span

    def value(time: Tensor) -> Tensor:
        scalars = solution.parameters(equation.place, time)
        return solution.relation(time, False, scalars).labelled.detach()

    grid = torch.linspace(low, high, GRID, dtype=torch.float64)
    values = value(grid)
    rises = (values[1:] - values[:-1]).abs()
    jumps = torch.nonzero(rises > 10 * float(rises.median()) + 1e-9).flatten().tolist()
    cuts = [_bisect(value, grid[k : k + 1], grid[k + 1 : k + 2]) for k in jumps]
    smooth = [float(r) for k, r in enumerate(rises) if k not in jumps]
    return Strength(solution, True, tuple(cuts), max(smooth, default=0.0) < 1e-12)


def _bisect(value: Callable[[Tensor], Tensor], left: Tensor, right: Tensor) -> float:
    """The time between two at which the value jumps."""
    first, half = value(left), (value(right) - value(left)).abs() / 2
    for _ in range(60):
        middle = (left + right) / 2
        if bool((value(middle) - first).abs() > half):
            right = middle
        else:
            left = middle
    return float(right)


@dataclass(frozen=True, eq=False)
class GuidedField:
    """The field that an objective defines, under scalar conditions (rows,)."""

    data: MixtureField
    strength: Strength
    scalars: Scalars
    levels: list[Tensor]  # a steady strength between its cuts

    @classmethod
    def under(
        cls, data: MixtureField, strength: Strength, scalars: Scalars, rows: int
    ) -> GuidedField:
        """The field under conditions, for so many rows."""
        known = strength.guided and strength.steady
        return cls(data, strength, scalars, strength.pieces(scalars, rows) if known else [])

    @property
    def clock(self) -> Clock | None:
        return self.data.clock

    @property
    def cuts(self) -> tuple[float, ...]:
        return self.strength.cuts

    def velocity(
        self,
        state: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """The guided velocity; `scale` is unused: the spec says how strong guidance is."""
        del scale
        if label is None or not self.strength.guided:
            return self.data.velocity(state, time, label)
        return self.data.velocity(state, time, label, self._at(time))

    def prepared(
        self, rows: Tensor, label: Tensor | None = None, scale: Tensor | None = None
    ) -> Prepared:
        """The guided velocity, prepared for many times: see `MixtureField.prepared`."""
        del scale
        if label is None or not self.strength.guided:
            return self.data.prepared(rows, label)
        names = list(self.scalars)
        given = self.levels or [self.scalars[n] for n in names]
        columns = torch.cat([label_column(rows, label), *(g[:, None] for g in given)], 1)

        def strength(times: Tensor, columns: Tensor) -> Tensor:
            own = list(columns[:, 1:].unbind(1))
            if self.levels:
                return self._steady(times, own)
            return self.strength.at(times, dict(zip(names, own, strict=True)))

        return Prepared(columns, partial(self.data.stages, strength=strength))

    def _at(self, time: Tensor) -> Tensor:
        """The strength at times (rows,) or (many, rows)."""
        if not self.levels:
            return self.strength.at(time, self.scalars)
        return self._steady(time, self.levels)

    def _steady(self, time: Tensor, levels: list[Tensor]) -> Tensor:
        found = levels[0].expand_as(time)
        for cut, level in zip(self.cuts, levels[1:], strict=True):
            found = torch.where(time < cut, found, level)
        return found
