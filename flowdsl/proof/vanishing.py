"""Does an expression vanish at some values of what a row draws, whatever its networks are?

States are sums of what networks and ends of paths give, with numbers before them; two evaluations
of a network at equal arguments are equal. So (u(z, t, r) - u(z, t, t)) vanishes at t = r.
"""

from __future__ import annotations

from collections.abc import Mapping

from flowdsl.calculus.curriculum import STEPS
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.numbers import evaluate
from flowdsl.spec.core import Apply, Draw, Evaluate, Expr, Given, Kind, Null, Stop
from flowdsl.spec.operations import OPERATIONS
from flowdsl.truth.cases import Case
from flowdsl.truth.setting import Setting

#: What stands in a sum, to what factor. A name for a number, too: then it is the sum itself.
Sum = dict[object, float]
ROUNDED = 1e-9


def vanishes(setting: Setting, case: Case, expr: Expr, point: Mapping[str, float]) -> bool:
    """Is the expression, of the rows of a case, zero at this point for every network?"""
    return not Sums(setting, point).of(setting.objective.expand_path(case.reduce(expr)))


class Sums:
    """Expressions as sums, at one point of the draws and of training."""

    def __init__(self, setting: Setting, point: Mapping[str, float]) -> None:
        self._objective = setting.objective
        moment = point.get("progress", 0.5)
        constants = {n: float(v) for n, v in setting.objective.constants.items()}
        training = {"progress": moment, "step": moment * STEPS, "steps": STEPS}
        self._values = {**constants, **training, **point}
        self._known: dict[Expr, Sum] = {}

    def of(self, expr: Expr) -> Sum:
        """The expression's parts, without those to the factor zero."""
        if expr not in self._known:
            found = self._read(expr)
            self._known[expr] = {part: c for part, c in found.items() if abs(c) > ROUNDED}
        return self._known[expr]

    def _read(self, expr: Expr) -> Sum:
        match expr:
            case Given() | Null():
                return {expr: 1.0}
            case Draw(_, Kind.STATE | Kind.LABEL | Kind.FEATURES, _):
                return {expr: 1.0}
            case Stop(body):
                return self.of(body)
            case Evaluate(network, head, args, conditions, directions):
                told = tuple(self._name(a) for a in args)
                shown = tuple((name, self._name(value)) for name, value in conditions)
                along = tuple(tuple(None if e is None else self._name(e) for e in d)
                              for d in directions)  # fmt: skip
                if any(all(not e for e in d) for d in along):
                    return {}
                return {(network, head, told, shown, along): 1.0}
            case Apply("neg", (a,)):
                return {part: -c for part, c in self.of(a).items()}
            case Apply("add" | "sub" as op, (a, b)):
                total = dict(self.of(a))
                for part, c in self.of(b).items():
                    total[part] = total.get(part, 0.0) + (c if op == "add" else -c)
                return total
            case Apply("mul" | "div" as op, (a, b)):
                return self._scaled(op, a, b, expr)
            case Apply(op, args) if OPERATIONS[op].shape == "reduction":
                if any(not self.of(a) for a in args):
                    return {}
                return {(op, tuple(self._name(a) for a in args)): 1.0}
        return self._number(expr)

    def _scaled(self, op: str, a: Expr, b: Expr, whole: Expr) -> Sum:
        """A product or a quotient one side of which is a number."""
        left, right = self.of(a), self.of(b)
        if op == "mul" and (not left or not right):
            return {}
        for factor, other in ((right, left), (left, right)):
            if set(factor) <= {1} and (op == "mul" or factor is right):
                number = factor.get(1, 0.0)
                if op == "div" and number:
                    number = 1 / number
                return {part: c * number for part, c in other.items()} if number else {whole: 1.0}
        return {whole: 1.0}

    def _number(self, expr: Expr) -> Sum:
        try:
            return {1: evaluate(expr, self._values)}
        except Undecided:
            return {(expr, "at"): 1.0}

    def _name(self, expr: Expr) -> object:
        """The sum as something that can be compared, up to rounding."""
        found = self.of(expr)
        return frozenset((part, round(c, 7)) for part, c in found.items())
