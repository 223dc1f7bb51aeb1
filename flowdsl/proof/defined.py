"""Has every number that a row computes a value: no root or logarithm of a negative number, no
division by zero, wherever the laws let the row be?

A zero of a denominator at the ends of the laws, which a draw meets with probability zero, is none.
Nor is one inside, where what is divided vanishes with it: a difference of networks over that of
their times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from flowdsl.calculus.curriculum import STEPS
from flowdsl.calculus.errors import Undecided, Undefined
from flowdsl.calculus.inequalities import Chain
from flowdsl.calculus.numbers import evaluate
from flowdsl.calculus.region import Region
from flowdsl.proof.points import NUMBERS, spread
from flowdsl.proof.vanishing import vanishes
from flowdsl.spec.core import (
    ONE,
    ZERO,
    Apply,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Kind,
    Level,
    Stop,
    children,
    transform,
    walk,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.notation import Notation
from flowdsl.spec.operations import OPERATIONS
from flowdsl.truth.cases import Case
from flowdsl.truth.setting import Setting

LOOKED_AT = 48  #: points of the draws at which values are computed
NEAR = (1e-3, 0.5, 1 - 1e-3)  #: and, of up to three draws, all of these shares of their intervals
MOMENTS = 12  #: moments of training that are looked at
TINY = 1e-12
SIZES = (1e-3, 0.04, 0.3, 3.0, 50.0)  #: values of what is no number of the row

Point = dict[str, float]


@dataclass(frozen=True)
class Hole:
    """An operation without a value: what it is applied to, and where; no `point` where it is not
    known whether there is one."""

    node: Apply
    argument: Expr
    must_be: str  # "positive", "0 or more", "other than 0"
    point: Point | None
    value: float = math.nan


def first_hole(setting: Setting, case: Case) -> Hole | None:
    """The first operation of a row that has no value somewhere; else the first of which it is not
    known."""
    search = _Search(setting, case)
    unknown: Hole | None = None
    for node in walk(setting.objective.expand_path(case.loss)):
        if isinstance(node, Apply):
            for argument, must_be in _demands(node, search.constants):
                hole = search.hole(node, argument, must_be)
                if hole is not None and hole.point is not None:
                    return hole
                unknown = unknown or hole
    return unknown


def _demands(node: Apply, constants: Mapping[str, float]) -> Iterator[tuple[Expr, str]]:
    """What the arguments of an operation must be for it to have a value."""
    match node.op, node.args:
        case "sqrt", (a,):
            yield a, "0 or more"
        case "log", (a,):
            yield a, "positive"
        case "div", (_, b):
            yield b, "other than 0"
        case "tan", (a,):
            yield Apply("cos", (a,)), "other than 0"
        case "pow", (base, exponent):
            yield from _of_base(base, exponent, constants)


def _of_base(
    base: Expr, exponent: Expr, constants: Mapping[str, float]
) -> Iterator[tuple[Expr, str]]:
    """What the base of a power must be."""
    try:
        k = evaluate(exponent, constants)
    except Undecided:
        yield base, "positive"
        return
    if not k.is_integer():
        yield base, "positive" if k < 0 else "0 or more"
    elif k < 0:
        yield base, "other than 0"


def _factors(expr: Expr) -> Iterator[Expr]:
    """The expression vanishes where one of these does, and nowhere else."""
    match expr:
        case Apply("mul", (a, b)):
            yield from _factors(a)
            yield from _factors(b)
        case Apply("abs" | "neg" | "sqrt", (a,)) | Apply("div" | "pow", (a, _)) | Stop(a):
            yield from _factors(a)
        case _:
            yield expr


def _measured(expr: Expr, found: dict[Expr, None]) -> None:
    """The numbers of a sample, and of networks, of which an expression is made."""
    match expr:
        case Evaluate():
            found[expr] = None
        case Apply(op, _) if OPERATIONS[op].shape == "reduction":
            found[expr] = None
        case _:
            for child in children(expr):
                _measured(child, found)


class _Search:
    """Looks for values of a row's draws at which an operation has none."""

    def __init__(self, setting: Setting, case: Case) -> None:
        self.setting = setting
        self.case = case
        held = setting.curricula.moments(case.facts)
        stride = max(1, len(held) // MOMENTS)
        self.moments = tuple(held[::stride]) + tuple(held[-1:])
        row = {c: v for c, v in case.facts.items() if level_of(c) is not Level.STEP}
        bounds = tuple(setting.domain.bounds(row))
        self.region = Region(setting.domain, setting.enclosures, bounds, self.moments)
        self._facts = [(c, v) for c, v in row.items() if isinstance(c, Apply)]
        self.constants = {n: float(v) for n, v in setting.objective.constants.items()}

    def hole(self, node: Apply, argument: Expr, must_be: str) -> Hole | None:
        if level_of(argument) is Level.CONSTANT:
            return self._constant(node, argument, must_be)
        if must_be == "other than 0":
            holes = (self._pole(node, factor) for factor in _factors(argument))
            return next((hole for hole in holes if hole is not None), None)
        if self._holds(argument, must_be):
            return None
        values = list(self._values(argument))
        low, at = min(values, key=lambda v: v[0], default=(0.0, None))
        if at is not None and (low < -TINY or (must_be == "positive" and low <= 0)):
            return Hole(node, argument, must_be, at, low)
        return Hole(node, argument, must_be, None)

    def _holds(self, argument: Expr, must_be: str) -> bool:
        if self.region.of_one_sign(argument) == 1:
            return True
        apart = Apply("eq", (argument, ZERO))
        nowhere = must_be == "0 or more" or self.case.facts.get(apart) is False
        return nowhere and self.region.not_below_zero(argument)

    def _constant(self, node: Apply, argument: Expr, must_be: str) -> Hole | None:
        try:
            value = evaluate(argument, self.constants)
        except Undecided:
            return None
        wrong = {"positive": value <= 0, "0 or more": value < 0, "other than 0": value == 0}
        return Hole(node, argument, must_be, {}, value) if wrong[must_be] else None

    def _values(self, argument: Expr) -> Iterator[tuple[float, Point]]:
        """What an argument is at points of the draws; nothing where no number says."""
        moments = self.region.when(argument)
        argument, free = self._freed(argument)
        for moment in moments:
            for point in self._points(argument, moment, free):
                try:
                    value = self._at(argument, point, moment)
                except Undefined:
                    continue
                except Undecided:
                    return
                yield value, {**point, "progress": moment} if len(moments) > 1 else point

    def _freed(self, argument: Expr) -> tuple[Expr, dict[str, tuple[float, ...]]]:
        """The one number of a sample or of a network in an argument as a name, with what it may
        be: the size of a state is any positive number, what a network returns is any."""
        found: dict[Expr, None] = {}
        _measured(argument, found)
        if len(found) != 1:
            return argument, {}
        (node,) = found
        name = Notation.of(self.setting.objective).text(node)
        either = isinstance(node, Evaluate) or (isinstance(node, Apply) and node.op == "dot")
        sizes = (*(-x for x in SIZES), *SIZES) if either else SIZES
        formal = Formal(name, Kind.SCALAR)
        return transform(argument, lambda n: formal if n == node else n), {name: sizes}

    def _at(self, argument: Expr, point: Mapping[str, float], moment: float) -> float:
        training = {"progress": moment, "step": moment * STEPS, "steps": STEPS}
        return evaluate(argument, {**self.constants, **training, **point})

    def _points(
        self, argument: Expr, moment: float, free: Mapping[str, tuple[float, ...]]
    ) -> Iterator[Point]:
        """Points all over the region, near its corners, and at the ends that a choice can take, on
        the rows of the case."""
        drawn = [n.name for n in walk(argument) if isinstance(n, Draw) and n.kind in NUMBERS]
        chain = Chain(self.region.at(argument, moment), drawn)
        for shares in self._shares(drawn):
            point = chain.point(shares)
            if all(self._is_so(fact, held, point, moment) for fact, held in self._facts):
                for values in product(*free.values()):
                    yield {**point, **dict(zip(free, values, strict=True))}

    def _shares(self, drawn: list[str]) -> Iterator[Sequence[float]]:
        if not drawn:
            yield ()
            return
        yield from spread(len(drawn), LOOKED_AT)
        if len(drawn) <= 3:
            yield from product(NEAR, repeat=len(drawn))
            if all(self.setting.domain.listed(name) for name in drawn):
                yield from product((0.0, 1.0), repeat=len(drawn))

    def _is_so(self, fact: Expr, held: bool, point: Point, moment: float) -> bool:
        try:
            return bool(self._at(fact, point, moment)) == held
        except Undecided:
            return True

    def _pole(self, node: Apply, argument: Expr) -> Hole | None:
        """Where a factor of a denominator is zero, if what it divides is not."""
        if self.region.of_one_sign(argument):
            return None
        values = list(self._values(argument))
        if not values:
            return Hole(node, argument, "other than 0", None)
        if all(value == 0 for value, _ in values):
            return Hole(node, argument, "other than 0", values[0][1], 0.0)
        point = self._zero(argument, values)
        if point is None:
            return Hole(node, argument, "other than 0", None)
        above = node.args[0] if node.op == "div" else ONE
        if vanishes(self.setting, self.case, above, point):
            return None
        return Hole(node, argument, "other than 0", point, 0.0)

    def _zero(self, argument: Expr, values: list[tuple[float, Point]]) -> Point | None:
        """A point at which the argument is zero, on the way from one sign to the other."""
        exact = next((point for value, point in values if value == 0), None)
        low, high = (pick(values, key=lambda v: v[0]) for pick in (min, max))
        if exact is not None or low[0] > 0 or high[0] < 0:
            return exact
        below, above = low[1], high[1]
        argument, _ = self._freed(argument)
        for _ in range(60):
            middle = {name: (below[name] + above[name]) / 2 for name in below}
            moment = middle.pop("progress", 0.5)
            try:
                positive = self._at(argument, middle, moment) > 0
            except Undecided:
                return None
            if "progress" in below:
                middle["progress"] = moment
            below, above = (below, middle) if positive else (middle, above)
        return above
