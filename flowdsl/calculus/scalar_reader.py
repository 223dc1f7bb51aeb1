"""Core expressions of scalar kind as elements of the field: arithmetic, the functions that it
knows, and names for the rest."""

from __future__ import annotations

from collections.abc import Mapping

from flowdsl.calculus.context import Context
from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.state import State
from flowdsl.spec.core import (
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Number,
    Stop,
    Training,
    walk,
)


class ScalarReader:
    """Reads scalars in one setting of formals. No gradient is followed through them."""

    def __init__(
        self, context: Context, formals: Mapping[str, Element | State] | None = None
    ) -> None:
        self.context = context
        self.formals = dict(formals or {})
        self._scalars: dict[Expr, Element] = {}

    def scalar(self, expr: Expr) -> Element:
        """A scalar-kind expression."""
        known = self._scalars.get(expr)
        if known is None:
            known = self._scalars[expr] = self._scalar(expr)
        return known

    def _scalar(self, expr: Expr) -> Element:
        scalars, bound = self.context.scalars, self.context.bindings.get(expr)
        if bound is not None:
            return bound
        match expr:
            case Number(value):
                return scalars.number(value)
            case Constant(name):
                if self.context.symbolic:
                    return scalars.symbol(name)
                return scalars.number(self.context.objective.constants[name])
            case Draw(name, _, _) | Training(name):
                return scalars.symbol(name)
            case Formal(name, _):
                bound = self.formals.get(name)
                if bound is not None and not isinstance(bound, State):
                    return bound
            case Stop(body):
                return self.scalar(body)
            case Apply(op, args):
                return self._function(expr, op, args)
            case Evaluate():
                return self._opaque(expr)
        raise Undecided(f"nothing is known about {describe(expr)}", expr.span)

    def _function(self, expr: Apply, op: str, args: tuple[Expr, ...]) -> Element:
        scalars = self.context.scalars
        try:
            match op:
                case "add" | "sub" | "mul" | "div" | "neg":
                    return self._arithmetic(op, [self.scalar(a) for a in args])
                case "pow":
                    return self._power(expr, args)
                case "sin":
                    return scalars.sin(self.scalar(args[0]))
                case "cos":
                    return scalars.cos(self.scalar(args[0]))
                case "tan":
                    x = self.scalar(args[0])
                    return scalars.divide(scalars.sin(x), scalars.cos(x))
                case "sqrt":
                    return scalars.sqrt(self.scalar(args[0]))
                case "exp":
                    return scalars.exp(self.scalar(args[0]))
                case "log":
                    return scalars.log(self.scalar(args[0]))
                case "atan":
                    return scalars.atan(self.scalar(args[0]))
                case "sigmoid" if not self._in_curriculum(expr):
                    e = scalars.exp(self.scalar(args[0]))
                    return scalars.divide(e, scalars.one + e)
        except Pole:
            raise Undecided(f"{op} is evaluated where it has no value", expr.span) from None
        return self._opaque(expr)

    def _arithmetic(self, op: str, values: list[Element]) -> Element:
        scalars = self.context.scalars
        match op:
            case "add":
                total = values[0] + values[1]
            case "sub":
                total = values[0] - values[1]
            case "mul":
                return scalars.product(values[0], values[1])
            case "neg":
                total = -values[0]
            case _:
                return scalars.divide(values[0], values[1])
        scalars.guard(total)
        return scalars.normal(total) if scalars.roots else total

    def _power(self, expr: Apply, args: tuple[Expr, ...]) -> Element:
        scalars = self.context.scalars
        base, exponent = self.scalar(args[0]), scalars.rational(self.scalar(args[1]))
        if exponent is None or exponent.denominator > 2 or abs(exponent.numerator) > 12:
            return self._opaque(expr)
        if exponent.denominator == 2:
            base = scalars.sqrt(base)
        power = scalars.power(base, abs(exponent.numerator))
        return scalars.divide(scalars.one, power) if exponent < 0 else power

    def _in_curriculum(self, expr: Expr) -> bool:
        return any(isinstance(node, Training) for node in walk(expr))

    def _opaque(self, expr: Expr) -> Element:
        """A scalar that is only known by name: a learned weight, a norm, a clipped value."""
        if any(isinstance(node, Formal) for node in walk(expr)):
            raise Undecided(f"{describe(expr)} inside a map", expr.span)
        name = self.context.curricula.name_of(expr)
        if name is None:
            definitions = self.context.objective.definitions.items()
            name = next((n for n, e in definitions if e == expr), None) or describe(expr)
        return self.context.scalars.opaque(expr, name)


def describe(expr: Expr) -> str:
    """An expression in a message: as it stands in the text, or by what it is."""
    if expr.span is not None and "\n" not in expr.span.text:
        return f"`{expr.span.text}`"
    match expr:
        case Apply(op, _):
            return f"{op}(…)"
        case Draw(name, _, _) | Formal(name, _) | Given(name):
            return name
    return type(expr).__name__
