"""Is a scalar positive wherever the laws of a row let its draws be?

By interval arithmetic over the polytope of the draws. Affine parts take exactly the values between
their extremes; where that is too wide the polytope is cut in two, again and again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from flowdsl.calculus.domain import Domain
from flowdsl.calculus.enclosure import EVERYTHING, Enclosures, Interval, applied
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.inequalities import Affine, Bound, extent, feasible
from flowdsl.calculus.monotone import sign_of
from flowdsl.spec.core import Apply, Draw, Expr, Level, Stop, children, walk
from flowdsl.spec.kinds import level_of
from flowdsl.spec.operations import OPERATIONS

PIECES = 60  #: at most so many are looked at
ROUNDED = 1e-9  #: how far intervals in floating point may lie outside
#: Draws are on the ends of their laws with probability zero: this share of a form's interval is
#: left out at either end.
EDGE = 1e-7
WIDE = 1e6  #: where a form has no end, pieces are cut as if it were here


def steps_in(expr: Expr) -> list[Expr]:
    """The largest parts of a scalar that only change from step to step."""
    if level_of(expr) is Level.STEP:
        return [expr]
    found: dict[Expr, None] = {}
    for child in children(expr):
        found.update(dict.fromkeys(steps_in(child)))
    return list(found)


@dataclass(frozen=True, eq=False)
class Region:
    """The draws of some kind of row: a polytope, at each of some moments of training."""

    domain: Domain
    enclosures: Enclosures
    bounds: tuple[Bound, ...]
    moments: tuple[float, ...]

    def of_one_sign(self, expr: Expr) -> int | None:
        """+1 or -1 where the scalar is above or below zero all over the region, at all moments;
        None where that cannot be told."""
        signs = set()
        for moment in self.when(expr):
            signs.add(Piece.of(self, expr, moment).sign(expr))
            if signs not in ({1}, {-1}):
                return None
        return signs.pop() if signs else None

    def not_below_zero(self, expr: Expr) -> bool:
        """Is the scalar zero or more all over the region, at all moments?"""
        return all(Piece.of(self, expr, m).interval(expr)[0] >= -ROUNDED for m in self.when(expr))

    def when(self, expr: Expr) -> tuple[float, ...]:
        """The moments at which a scalar may differ."""
        return self.moments if self.enclosures.changes(expr) else self.moments[-1:]

    def at(self, expr: Expr, moment: float) -> tuple[Bound, ...]:
        """The polytope at a moment: some laws of what the scalar draws change with training."""
        found = list(self.bounds)
        for draw in (n for n in walk(expr) if isinstance(n, Draw)):
            if self.enclosures.changes(draw):
                low, high = self.enclosures.drawn(draw, moment)
                variable = Affine.variable(draw.name)
                if math.isfinite(low):
                    found.append(Bound(variable - Affine.number(Fraction(low)), False))
                if math.isfinite(high):
                    found.append(Bound(Affine.number(Fraction(high)) - variable, False))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a region, at one moment of training."""

    region: Region
    bounds: tuple[Bound, ...]
    moment: float
    known: dict[Expr, Interval] = field(default_factory=dict)

    @staticmethod
    def of(region: Region, expr: Expr, moment: float) -> Piece:
        return Piece(region, region.at(expr, moment), moment)

    def sign(self, expr: Expr) -> int:
        """+1 or -1 where the scalar is above or below zero everywhere; 0 where that is not
        known."""
        return sign_of(expr, self._looked_at)

    def _looked_at(self, expr: Expr) -> int:
        """The same in numbers."""
        names = [n.name for n in walk(expr) if isinstance(n, Draw)]
        found: set[int] = set()
        todo = [self]
        for _ in range(PIECES):
            if not todo or len(found) > 1:
                break
            piece = todo.pop()
            low, high = piece.interval(expr)
            if low > 0 or high < 0:
                found.add(1 if low > 0 else -1)
            elif not names or (low, high) == EVERYTHING:
                return 0
            else:
                todo += piece._halves(names)
        return 0 if todo or len(found) != 1 else found.pop()

    def _halves(self, names: Sequence[str]) -> Iterator[Piece]:
        """Both halves of a piece along the draw that is widest in it."""
        reach = {name: self._extent(Affine.variable(name)) for name in names}
        widest = max(names, key=lambda n: reach[n][1] - reach[n][0])
        variable = Affine.variable(widest)
        low, high = (min(max(end, -WIDE), WIDE) for end in reach[widest])
        middle = _middle(low, high)
        for side in (variable - Affine.number(middle), Affine.number(middle) - variable):
            half = (*self.bounds, Bound(side, True))
            if feasible(half):
                yield Piece(self.region, half, self.moment)

    def _extent(self, form: Affine) -> Interval:
        low, high = extent(self.bounds, form)
        return (-math.inf if low is None else float(low), math.inf if high is None else float(high))

    def interval(self, expr: Expr) -> Interval:
        """Between which numbers the scalar lies: perhaps too wide, never too narrow."""
        if expr not in self.known:
            self.known[expr] = self._computed(expr)
        return self.known[expr]

    def _computed(self, expr: Expr) -> Interval:
        if level_of(expr) is not Level.ROW:
            return self._of_the_step(expr)
        form = self.region.domain.affine(expr, self._values(expr))
        if form is not None:
            low, high = self._extent(form)
            margin = EDGE * min(high - low, 1.0)
            listed = any(self.region.domain.listed(name) for name, _ in form.terms)
            return (low, high) if listed else (low + margin, high - margin)
        match expr:
            case Stop(body):
                return self.interval(body)
            case Apply("select", (_, *sides)):
                ends = [self.interval(side) for side in sides]
                return min(low for low, _ in ends), max(high for _, high in ends)
            case Apply("mul", (a, b)) if a == b:
                return applied("pow", [self.interval(a), (2.0, 2.0)])
            case Apply(op, args) if OPERATIONS[op].shape in ("arithmetic", "elementwise"):
                return applied(op, [self.interval(a) for a in args])
            case Apply(op, _) if OPERATIONS[op].shape == "reduction" and op != "dot":
                return math.ulp(0.0), math.inf  # zero with probability zero
        return EVERYTHING

    def _of_the_step(self, expr: Expr) -> Interval:
        try:
            value = self.region.enclosures.curricula.value(expr, self.moment)
        except Undecided:
            match expr:  # a statistic of the batch
                case Apply("batch_mean", (a,)):
                    return self.interval(a)
                case Apply(op, args) if OPERATIONS[op].shape in ("arithmetic", "elementwise"):
                    return applied(op, [self.interval(a) for a in args])
            return EVERYTHING
        return value, value

    def _values(self, expr: Expr) -> Mapping[Expr, Fraction]:
        """The curricula in a scalar at a moment of training."""
        found = {}
        for step in steps_in(expr):
            try:
                value = self.region.enclosures.curricula.value(step, self.moment)
            except Undecided:
                continue
            if math.isfinite(value):
                found[step] = Fraction(value)
        return found


def _middle(low: float, high: float) -> Fraction:
    """Halfway; the geometric mean where the ends are decades apart."""
    if low >= 0 and high > 100 * max(low, 1e-3):
        return Fraction(math.sqrt(max(low, high * 1e-6) * high))
    return Fraction((low + high) / 2)
