"""The row's loss as a function of its error: the factor in front of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from flowdsl.calculus.context import Context
from flowdsl.calculus.curriculum import STEPS
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.expand import Series
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import NoNetwork, Reader
from flowdsl.calculus.numbers import evaluate
from flowdsl.calculus.state import Calculus
from flowdsl.proof.points import points
from flowdsl.spec.core import (
    Apply,
    Evaluate,
    Expr,
    Formal,
    Kind,
    Stop,
    number,
    rebuild,
    walk,
)
from flowdsl.spec.operations import OPERATIONS
from flowdsl.truth.cases import Case
from flowdsl.truth.live import learning_calls, live_calls
from flowdsl.truth.setting import ENTRIES, ERROR, ERROR_STOPPED, Setting
from flowdsl.truth.variables import opaque_times

#: How the weight of a row changes with the row's own error.
Course = Literal["constant", "falling", "growing", "unknown"]


@dataclass(frozen=True)
class Weight:
    """`value` is the loss, `slope` its derivative in the error: gradient = slope * gradient of the
    error.

    Both are scalars in the symbols `error` and `entries`; nothing that is stopped is
    differentiated.
    """

    value: Element
    slope: Element
    own_error: bool  # does the slope depend on the sample's own error?


def weight_of(
    setting: Setting, case: Case, bindings: Mapping[Expr, Element] | None = None
) -> Weight:
    """The loss of a case, with values of the loss's field in the place of some scalars. Raises
    `Undecided` when it is no function of the term's error."""
    scalars = setting.loss_scalars
    calculus = Calculus(scalars, (), setting.clock)
    bound = {expr: scalars.symbol(name) for name, expr in opaque_times(setting.objective)}
    bound.update(bindings or {})
    context = Context(setting.objective, scalars, calculus, Series(calculus), setting.curricula,
                      scalars.smalls[0], setting.symbolic, bound)  # fmt: skip
    error, stopped = scalars.symbol(ERROR), scalars.symbol(ERROR_STOPPED)
    entries = scalars.symbol(ENTRIES)
    reader = _LossReader(context, NoNetwork("loss"), None, {
        "error": error, "mse": error / entries,
        "stop error": stopped, "stop mse": stopped / entries,
    })  # fmt: skip
    value = reader.scalar(marked(case))
    slope = scalars.derivative(value, scalars.index(ERROR))
    names = {scalars.index(ERROR), scalars.index(ERROR_STOPPED)}
    own = bool(scalars.generators_in(slope) & names)
    together = [
        scalars.substitute(x, scalars.index(ERROR_STOPPED), error) if own else x
        for x in (value, slope)
    ]
    return Weight(together[0], together[1], own)


def marked(case: Case) -> Expr:
    """The loss with its error written as a formal, told apart by whether gradient flows through
    it. Raises `Undecided` for a term that is minimised."""
    if case.target is None:
        raise Undecided("a term that is minimised states no identity")
    return _marked(case.loss, Apply("sub", (case.prediction, case.target)), False)


def _marked(expr: Expr, difference: Expr, stopped: bool) -> Expr:
    prefix = "stop " if stopped else ""
    match expr:
        case Apply("sum_squares", (inner,)) if inner == difference:
            return Formal(f"{prefix}error", Kind.SCALAR)
        case Apply("mean_squares", (inner,)) if inner == difference:
            return Formal(f"{prefix}mse", Kind.SCALAR)
        case Apply("norm", (inner,)) if inner == difference:
            return Apply("sqrt", (Formal(f"{prefix}error", Kind.SCALAR),))
        case Stop(body):
            return Stop(_marked(body, difference, True))
    return rebuild(expr, lambda child: _marked(child, difference, stopped))


class _LossReader(Reader):
    def _opaque(self, expr: Expr) -> Element:
        try:
            return super()._opaque(expr)
        except Undecided:
            raise Undecided("the loss is no rational function of the error", expr.span) from None


# the course of the weight, in numbers

_ERRORS = tuple(10.0 ** (k / 2) for k in range(-8, 5))
_STEP = 1e-4
_COUNT = 64.0  #: entries of a sample


def course(setting: Setting, case: Case) -> Course:
    """How the weight changes with the row's own error, found by differences over six decades, at
    several values of what the row draws."""
    try:
        slope = Slope.of(setting, case)
        found = {_course_at(slope, point) for point in points(setting, case, slope.expr, 8)}
    except Undecided:
        return "unknown"
    order: tuple[Course, ...] = ("growing", "falling", "constant")
    return next(way for way in order if way in found)


def _course_at(slope: Slope, draws: Mapping[str, float]) -> Course:
    slopes = [slope.at(error, draws) for error in _ERRORS]
    steps = [(b - a) / (abs(a) + abs(b) + 1e-300) for a, b in pairwise(slopes)]
    if all(abs(step) < 1e-3 for step in steps):
        return "constant"
    return "falling" if all(step < 1e-3 for step in steps) else "growing"


def _numbers_only(expr: Expr, learned: float = 0.5) -> Expr:
    """Sizes of the sample count as some number, and so do networks and inner products, which may
    have either sign."""
    if isinstance(expr, Evaluate):
        return number(learned)
    if isinstance(expr, Apply) and OPERATIONS[expr.op].shape in ("reduction", "batch"):
        return number(learned if expr.op == "dot" else 0.7)
    return rebuild(expr, lambda child: _numbers_only(child, learned))


@dataclass(frozen=True)
class Slope:
    """A row's weight in numbers, where networks return `learned`."""

    setting: Setting
    expr: Expr

    @staticmethod
    def of(setting: Setting, case: Case, learned: float = 0.5) -> Slope:
        """Raises `Undecided` for a term that is minimised."""
        return Slope(setting, _numbers_only(marked(case), learned))

    def at(self, error: float, draws: Mapping[str, float], progress: float = 0.5) -> float:
        """The weight at an error, at values of what the row draws. Raises `Undecided` where it has
        no value."""
        constants = {name: float(v) for name, v in self.setting.objective.constants.items()}
        moment = {"progress": progress, "step": progress * STEPS, "steps": STEPS}
        values = {**dict.fromkeys(self.setting.objective.draws, 0.4), **draws, **constants}
        values |= {**moment, "stop error": error, "stop mse": error / _COUNT}

        def loss(e: float) -> float:
            return evaluate(self.expr, {**values, "error": e, "mse": e / _COUNT})

        return (loss(error * (1 + _STEP)) - loss(error * (1 - _STEP))) / (2 * _STEP * error)


# gradient through the weight itself


def moving_weights(setting: Setting, case: Case) -> list[Evaluate]:
    """Where the loss, apart from its error, moves a head that the term teaches."""
    objective = setting.objective
    taught = {
        objective.origin(call.network, call.head)
        for call in learning_calls(objective, case.prediction, case.target)
    }
    found = live_calls(objective, marked(case))
    return [n for n in found if objective.origin(n.network, n.head) in taught]


def moves_without_error(setting: Setting, case: Case) -> bool:
    """Does such a head still move where the error is zero? (A penalty that is added, not a
    factor.)"""
    scalars = setting.loss_scalars
    try:
        value = weight_of(setting, case).value
        rest = scalars.substitute(value, scalars.index(ERROR), scalars.zero)
    except Undecided:
        return True
    moving = set(moving_weights(setting, case))
    opaques = scalars.opaques
    return any(
        isinstance(key := opaques.get(i), Expr) and any(n in moving for n in walk(key))
        for i in scalars.generators_in(rest)
    )
