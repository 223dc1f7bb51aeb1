"""Core expressions in the notation of a spec, by way of the syntax tree and its printer."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from flowdsl.diagnostics import Source, Span
from flowdsl.spec.core import (
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Null,
    Number,
    PathState,
    PathVelocity,
    Stop,
    Training,
)
from flowdsl.spec.operations import OPERATIONS
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.tree import (
    Binary,
    Call,
    Comparison,
    Expression,
    Name,
    NumberLiteral,
    Replacement,
    Unary,
)

_NOWHERE = Span(Source("", ""), 0, 0)


def show(expr: Expr, names: Mapping[Expr, str] | None = None) -> str:
    """One line of text; expressions that are keys of `names` appear by their name.

    A derivative appears as `D[u(z, t, r)](w, 1, 0)`: the tangents stand in the order of the
    arguments. Selections appear as `select(condition, yes, no)`.
    """
    return format_expression(_Shower(names or {}).node(expr))


class _Shower:
    def __init__(self, names: Mapping[Expr, str]) -> None:
        self._names = names

    def node(self, expr: Expr) -> Expression:
        named = self._names.get(expr)
        if named is not None:
            return Name(_NOWHERE, named)
        match expr:
            case Number(value):
                return _number(value)
            case Constant(name) | Training(name) | Draw(name, _, _) | Given(name):
                return Name(_NOWHERE, name)
            case Formal(name, _):
                return Name(_NOWHERE, name)
            case Null():
                return Name(_NOWHERE, "null")
            case PathState():
                return self._path_state(expr)
            case PathVelocity(path, time, data, noise):
                inner = self.node(PathState(path, time, data, noise))
                return Call(_NOWHERE, "velocity", (inner,))
            case Stop(body):
                return Call(_NOWHERE, "stop", (self.node(body),))
            case Evaluate():
                return self._evaluate(expr)
            case Apply(op, args):
                return self._apply(op, [self.node(a) for a in args])
        raise TypeError(f"flowdsl/spec/show.py has no rule for {type(expr).__name__}")

    def _path_state(self, state: PathState) -> Expression:
        ends = (("data", state.data), ("noise", state.noise))
        replaced = tuple(
            Replacement(_NOWHERE, end, self.node(value))
            for end, value in ends
            if value != Given(end)
        )
        return Call(_NOWHERE, state.path, (self.node(state.time),), (), replaced)

    def _evaluate(self, expr: Evaluate) -> Expression:
        conditions = tuple(
            Replacement(_NOWHERE, name, self.node(value)) for name, value in expr.conditions
        )
        args = tuple(self.node(a) for a in expr.args)
        call: Expression = Call(_NOWHERE, expr.head, args, (), conditions)
        for direction in expr.directions:
            zero = NumberLiteral(_NOWHERE, "0")
            tangents = tuple(zero if d is None else self.node(d) for d in direction)
            call = Call(_NOWHERE, f"D[{format_expression(call)}]", tangents)
        return call

    def _apply(self, op: str, args: list[Expression]) -> Expression:
        row = OPERATIONS[op]
        match row.shape, args:
            case "arithmetic", [operand]:
                return Unary(_NOWHERE, "-", operand)
            case "logic", [operand]:
                return Unary(_NOWHERE, "not", operand)
            case "logic", []:
                return Name(_NOWHERE, op)
            case "arithmetic" | "logic", [left, right]:
                return Binary(_NOWHERE, row.symbol, left, right)
            case "comparison", [left, right]:
                return Comparison(_NOWHERE, (left, right), (row.symbol,))
        return Call(_NOWHERE, op, tuple(args))


def _number(value: Fraction) -> Expression:
    """A decimal where it is exact and short, else a quotient."""
    if value < 0:
        return Unary(_NOWHERE, "-", _number(-value))
    if value.denominator == 1:
        return NumberLiteral(_NOWHERE, str(value.numerator))
    for digits in range(1, 7):
        if (value * 10**digits).denominator == 1:
            return NumberLiteral(_NOWHERE, f"{float(value):.{digits}f}")
    numerator, denominator = (
        _number(Fraction(value.numerator)),
        _number(Fraction(value.denominator)),
    )
    return Binary(_NOWHERE, "/", numerator, denominator)
