"""The row's loss as a function of its error: the factor in front of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowdsl.proof.errors import Undecided
from flowdsl.proof.expand import Series
from flowdsl.proof.field import Element
from flowdsl.proof.interpret import Context, Reader
from flowdsl.proof.state import Calculus, State
from flowdsl.spec.core import Apply, Expr, Formal, Kind, Stop, rebuild

if TYPE_CHECKING:
    from flowdsl.proof.analysis import Analysis
    from flowdsl.proof.cases import Case

#: The row's error (sum of squares), its detached copy, and the number of entries of a sample.
ERROR, ERROR_STOPPED, ENTRIES = "error", "stop(error)", "entries"


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


def weight_of(analysis: Analysis, case: Case) -> Weight:
    """The loss of a case. Raises `Undecided` when it is no function of the term's error."""
    if case.target is None:
        raise Undecided("a term that is minimised states no identity")
    difference = Apply("sub", (case.prediction, case.target))
    scalars = analysis.loss_scalars
    calculus = Calculus(scalars, (), analysis.clock)
    context = Context(analysis.objective, scalars, calculus, Series(calculus), analysis.curricula,
                      scalars.smalls[0], analysis.symbolic)  # fmt: skip
    error, stopped = scalars.symbol(ERROR), scalars.symbol(ERROR_STOPPED)
    entries = scalars.symbol(ENTRIES)
    reader = _LossReader(context, _NoNetwork(), None, {
        "error": error, "mse": error / entries,
        "stop error": stopped, "stop mse": stopped / entries,
    })  # fmt: skip
    value = reader.scalar(_marked(case.loss, difference, False))
    slope = scalars.derivative(value, scalars.index(ERROR))
    names = {scalars.index(ERROR), scalars.index(ERROR_STOPPED)}
    own = bool(scalars.generators_in(slope) & names)
    together = [
        scalars.substitute(x, scalars.index(ERROR_STOPPED), error) if own else x
        for x in (value, slope)
    ]
    return Weight(together[0], together[1], own)


def _marked(expr: Expr, difference: Expr, stopped: bool) -> Expr:
    """The loss with its error written as a formal, told apart by whether gradient flows through
    it."""
    prefix = "stop " if stopped else ""
    match expr:
        case Apply("sum_squares", (inner,)) if inner == difference:
            return Formal(f"{prefix}error", Kind.SCALAR)
        case Apply("mean_squares", (inner,)) if inner == difference:
            return Formal(f"{prefix}mse", Kind.SCALAR)
        case Stop(body):
            return _marked(body, difference, True)
    return rebuild(expr, lambda child: _marked(child, difference, stopped))


class _LossReader(Reader):
    def _opaque(self, expr: Expr) -> Element:
        try:
            return super()._opaque(expr)
        except Undecided:
            raise Undecided("the loss is no rational function of the error", expr.span) from None


class _NoNetwork:
    def value(self, call: object) -> State:
        raise Undecided("a network inside a loss")
