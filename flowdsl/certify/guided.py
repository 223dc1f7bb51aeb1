"""The field to be learned: the data's velocity, guided as the spec says, piece by piece in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import torch
from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.solution import Equation, Solution
from flowdsl.exact.field import MixtureField, label_column
from flowdsl.exact.paths import Clock
from flowdsl.exact.variation import Prepared
from flowdsl.spec.core import Apply, Expr, Formal, Kind, walk

Scalars = Mapping[str, Tensor]
Cuts = tuple[float, ...] | tuple[Tensor, ...]
GRID = 601  #: times at which the guidance is looked at for jumps


@dataclass(frozen=True)
class Strength:
    """How much of the labelled velocity the field holds: 1 is the data's own.

    `cuts` are the times at which it jumps, `borders` these times where conditions of a row decide
    them, as trees over the parameters; `steady` says that it is constant in between.
    """

    solution: Solution
    guided: bool
    cuts: tuple[float, ...]
    steady: bool
    borders: tuple[Expr, ...] = ()

    def at(self, time: Tensor, scalars: Scalars) -> Tensor:
        """The strength at times (rows,) under conditions (rows,)."""
        return self.solution.relation(time, False, scalars).labelled

    def cut(self, scalars: Scalars, like: Tensor) -> tuple[float, ...] | tuple[Tensor, ...]:
        """The times at which it jumps under conditions, in order: (rows,) where these decide."""
        if not self.borders:
            return self.cuts
        bound: dict[Expr, Tensor] = {Formal(n, Kind.SCALAR): v for n, v in scalars.items()}
        numbers = self.solution.reader.numbers
        found = torch.stack([numbers.rows(b, bound, like) for b in self.borders]).detach()
        return tuple(found.sort(0).values)

    def pieces(self, scalars: Scalars, cuts: Cuts, like: Tensor) -> list[Tensor]:
        """A steady strength between its cuts, for each row."""
        if self._constant is not None:
            return [level.expand_as(like) for level in self._constant]
        low, high = (torch.full_like(like, end) for end in self.solution.span)
        if cuts:  # flows may run beyond the times at which states are drawn
            low = torch.where(low < cuts[0], low, like * 0)
            high = torch.where(high > cuts[-1], high, cuts[-1] + 0.01)
        ends = [low, *cuts, high]
        middles = torch.cat([like * 0 + (a + b) / 2 for a, b in pairwise(ends)])
        count = len(ends) - 1  # all at once: one evaluation takes as long as many rows of it
        repeated = {name: value.repeat(count) for name, value in scalars.items()}
        return list(self.at(middles, repeated).reshape(count, -1))

    @cached_property
    def _constant(self) -> list[Tensor] | None:
        """The strength between its cuts where no condition of a row decides it."""
        equation = self.solution.equation(False)
        if equation is None or equation.place.parameters:
            return None
        ends = [self.solution.span[0], *self.cuts, self.solution.span[1]]
        middles = [torch.tensor([(a + b) / 2], dtype=torch.float64) for a, b in pairwise(ends)]
        return [self.at(middle, {}) for middle in middles]


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
    cuts = tuple(_bisect(value, grid[k : k + 1], grid[k + 1 : k + 2]) for k in jumps)
    smooth = [float(r) for k, r in enumerate(rises) if k not in jumps]
    steady = max(smooth, default=0.0) < 1e-12
    return Strength(solution, True, cuts, steady, _borders(solution, equation, cuts))


def _borders(solution: Solution, equation: Equation, cuts: tuple[float, ...]) -> tuple[Expr, ...]:
    """The times with which the row's time is compared, where its conditions decide one of them.

    Raises `Uncertified` where the field jumps at another time than these.
    """
    place = equation.place
    roots = (equation.along, place.term.prediction, place.term.target)
    found: dict[Expr, None] = {}
    for node in (n for root in roots if root is not None for n in walk(place.reduce(root))):
        if isinstance(node, Apply) and node.op in ("lt", "le", "gt", "ge"):
            for one, other in (node.args, node.args[::-1]):
                if one == place.base.time and not any(n == one for n in walk(other)):
                    found[other] = None
    if not any(n in place.parameters.values() for border in found for n in walk(border)):
        return ()
    like = torch.zeros(1, dtype=torch.float64)
    scalars = solution.parameters(place, like)
    bound: dict[Expr, Tensor] = {Formal(n, Kind.SCALAR): v for n, v in scalars.items()}
    at = [float(solution.reader.numbers.rows(border, bound, like)) for border in found]
    if any(min(abs(cut - time) for time in at) > 1e-6 for cut in cuts):
        raise Uncertified("it is not known where guidance begins and ends", place.term.span)
    return tuple(found)


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
    cuts: Cuts

    @classmethod
    def under(
        cls, data: MixtureField, strength: Strength, scalars: Scalars, like: Tensor
    ) -> GuidedField:
        """The field under conditions, for as many rows as `like` has."""
        like = torch.zeros_like(like.detach())
        cuts = strength.cut(scalars, like)
        known = strength.guided and strength.steady
        levels = strength.pieces(scalars, cuts, like) if known else []
        return cls(data, strength, scalars, levels, cuts)

    @property
    def clock(self) -> Clock | None:
        return self.data.clock

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
        moving = [cut for cut in self.cuts if isinstance(cut, Tensor)] if self.levels else []
        columns = torch.cat([label_column(rows, label), *(g[:, None] for g in given + moving)], 1)

        def strength(times: Tensor, columns: Tensor) -> Tensor:
            own = list(columns[:, 1:].unbind(1))
            if self.levels:
                count = len(self.levels)
                return _steady(times, own[:count], tuple(own[count:]) if moving else self.cuts)
            return self.strength.at(times, dict(zip(names, own, strict=True)))

        return Prepared(columns, partial(self.data.stages, strength=strength))

    def _at(self, time: Tensor) -> Tensor:
        """The strength at times (rows,) or (many, rows)."""
        if not self.levels:
            return self.strength.at(time, self.scalars)
        return _steady(time, self.levels, self.cuts)


def _steady(time: Tensor, levels: list[Tensor], cuts: Cuts) -> Tensor:
    found = levels[0].expand_as(time)
    places: list[float | Tensor] = [*cuts]
    for cut, level in zip(places, levels[1:], strict=True):
        found = torch.where(time < cut, found, level)
    return found
