"""Between which numbers a time lies, by interval arithmetic, at each moment of training.

For times that are no affine functions of draws, such as noise levels that are even in their seventh
root. A draw that occurs twice counts as two: the interval may be too wide, never too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flowdsl.calculus.curriculum import GRID, Curricula
from flowdsl.calculus.errors import Undecided
from flowdsl.prelude.laws import LAWS
from flowdsl.spec.core import Apply, Draw, Expr, Level, Stop, Training, walk
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import LawCall, Objective

Interval = tuple[float, float]
EVERYTHING: Interval = (-math.inf, math.inf)
MOMENTS = 40  #: at most this many moments of training are looked at


@dataclass(frozen=True, eq=False)
class Enclosures:
    """Intervals of the scalars of one objective."""

    objective: Objective
    curricula: Curricula

    def of(self, expr: Expr) -> list[Interval]:
        """The interval of a scalar at every moment that matters, first to last."""
        if not self.changes(expr):
            return [self._interval(expr, 1.0, {})]
        shares = range(0, GRID, max(1, GRID // MOMENTS))
        return [self._interval(expr, k / (GRID - 1), {}) for k in (*shares, GRID - 1)]

    def drawn(self, draw: Draw, progress: float) -> Interval:
        """Between which numbers a draw lies at a share of training."""
        return self._interval(draw, progress, {})

    def changes(self, expr: Expr) -> bool:
        """Does training change a scalar, or the law of a draw in it?"""
        return self._changes(expr, set())

    def _changes(self, expr: Expr | LawCall, seen: set[str]) -> bool:
        """Does training change it, or the law of a draw in it?"""
        if isinstance(expr, LawCall):
            return any(self._changes(arg, seen) for arg in expr.args)
        for node in walk(expr):
            if isinstance(node, Training):
                return True
            if isinstance(node, Draw) and node.name not in seen:
                seen.add(node.name)
                if any(self._changes(law, seen) for law in self._laws(node)):
                    return True
        return False

    def _laws(self, draw: Draw) -> list[LawCall]:
        declaration = self.objective.draws.get(draw.name)
        return [] if declaration is None else [line.law for line in declaration.lines]

    def _interval(self, expr: Expr, progress: float, known: dict[Expr, Interval]) -> Interval:
        if expr not in known:
            known[expr] = self._computed(expr, progress, known)
        return known[expr]

    def _computed(self, expr: Expr, progress: float, known: dict[Expr, Interval]) -> Interval:
        if level_of(expr) is not Level.ROW:
            try:
                value = self.curricula.value(expr, progress)
            except Undecided:
                return EVERYTHING
            return value, value
        match expr:
            case Draw():
                return _hull(self._support(law, progress, known) for law in self._laws(expr))
            case Stop(body):
                return self._interval(body, progress, known)
            case Apply("select", (_, *sides)):
                return _hull(self._interval(side, progress, known) for side in sides)
            case Apply(op, args):
                return applied(op, [self._interval(a, progress, known) for a in args])
        return EVERYTHING

    def _support(
        self, law: LawCall | Expr, progress: float, known: dict[Expr, Interval]
    ) -> Interval:
        if not isinstance(law, LawCall):
            return self._interval(law, progress, known)
        parts = [self._support(arg, progress, known) for arg in law.args]
        if law.law not in LAWS:
            return applied(law.law, parts)
        try:
            low, high = LAWS[law.law].support(*parts)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            return EVERYTHING
        return float(low), float(high)


def _hull(intervals: Iterable[Interval]) -> Interval:
    found = list(intervals)
    if not found:
        return EVERYTHING
    return min(low for low, _ in found), max(high for _, high in found)


def _increasing(f: Callable[[float], float], low: float = -math.inf) -> Callable[..., Interval]:
    """An increasing function, defined from `low` on."""

    def applied(x: Interval) -> Interval:
        return (f(x[0]), f(x[1])) if x[0] >= low else EVERYTHING

    return applied


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _log(x: float) -> float:
    return -math.inf if x == 0 else math.log(x)


def _rounded(f: Callable[[float], int]) -> Callable[[float], float]:
    return lambda x: float(f(x)) if math.isfinite(x) else x


def _product(a: Interval, b: Interval) -> Interval:
    ends = [0.0 if 0.0 in (x, y) else x * y for x in a for y in b]
    return min(ends), max(ends)


def _power(base: Interval, exponent: Interval) -> Interval:
    k, other = exponent
    if k != other or (base[0] < 0 and not k.is_integer()):
        return EVERYTHING
    if base[0] < 0 and k % 2 == 0:
        base = (0.0 if base[1] > 0 else -base[1], max(-base[0], base[1]))
    if k < 0 and base[0] <= 0 <= base[1]:
        return EVERYTHING
    ends = [_to_the(x, k) for x in base]
    return min(ends), max(ends)


def _to_the(x: float, k: float) -> float:
    """x to the power k; infinite where it is too large."""
    try:
        return float(x**k)
    except OverflowError:
        return math.inf


def _wave(x: Interval, crest: float) -> Interval:
    """The cosine, or the sine: its crests lie at this many turns and at whole turns from there."""
    if math.isinf(x[1] - x[0]):
        return -1.0, 1.0
    low, high = (end / (2 * math.pi) - crest for end in x)
    ends = [math.cos(2 * math.pi * turns) for turns in (low, high)]
    crests = math.floor(high) >= low
    troughs = math.floor(high - 0.5) >= low - 0.5
    return -1.0 if troughs else min(ends), 1.0 if crests else max(ends)


def _tangent(x: Interval) -> Interval:
    """The tangent, between two of its poles."""
    if math.isinf(x[1] - x[0]) or math.floor(x[0] / math.pi + 0.5) != math.floor(
        x[1] / math.pi + 0.5
    ):
        return EVERYTHING
    return math.tan(x[0]), math.tan(x[1])


_INTERVALS: dict[str, Callable[..., Interval]] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "neg": lambda a: (-a[1], -a[0]),
    "mul": _product,
    "div": lambda a, b: EVERYTHING if b[0] <= 0 <= b[1] else _product(a, (1 / b[1], 1 / b[0])),
    "pow": _power,
    "exp": _increasing(_exp),
    "log": _increasing(_log, 0.0),
    "sqrt": _increasing(math.sqrt, 0.0),
    "atan": _increasing(math.atan),
    "tanh": _increasing(math.tanh),
    "sigmoid": _increasing(lambda x: 0.0 if x < -700 else 1 / (1 + _exp(-x))),
    "softplus": _increasing(lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))),
    "floor": _increasing(_rounded(math.floor)),
    "ceil": _increasing(_rounded(math.ceil)),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "abs": lambda a: (max(a[0], -a[1], 0.0), max(-a[0], a[1])),
    "clip": lambda a, low, high: (min(max(a[0], low[0]), high[0]), min(max(a[1], low[1]), high[1])),
    "sin": lambda a: _wave(a, 0.25),
    "cos": lambda a: _wave(a, 0.0),
    "tan": lambda a: _tangent(a),
}


def applied(op: str, parts: list[Interval]) -> Interval:
    """An operation on intervals; what is not known of it gives `EVERYTHING`."""
    if op not in _INTERVALS:
        return EVERYTHING
    low, high = _INTERVALS[op](*parts)
    return (low, high) if low <= high else EVERYTHING
