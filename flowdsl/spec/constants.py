"""Exact values of expressions made of numbers and constants."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from flowdsl.spec.core import Apply, Constant, Expr, Number

MAX_POWER = 64


def constant_value(expr: Expr, constants: Mapping[str, Fraction]) -> Fraction | None:
    """The exact value of an expression of numbers and constants, or None."""
    match expr:
        case Number(value):
            return value
        case Constant(name):
            return constants.get(name)
        case Apply(op, args):
            values = [constant_value(a, constants) for a in args]
            known = [v for v in values if v is not None]
            if len(known) != len(values):
                return None
            match op, known:
                case "add", [a, b]:
                    return a + b
                case "sub", [a, b]:
                    return a - b
                case "mul", [a, b]:
                    return a * b
                case "div", [a, b] if b != 0:
                    return a / b
                case "neg", [a]:
                    return -a
                case "pow", [a, b] if b.denominator == 1 and abs(b) <= MAX_POWER and (a or b >= 0):
                    return a ** int(b)
    return None
