"""Exact values of expressions made of numbers and constants."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from flowdsl.spec.core import Apply, Constant, Expr, Number

MAX_BITS = 512


def constant_value(expr: Expr, constants: Mapping[str, Fraction]) -> Fraction | None:
    """The exact value of an expression of numbers and constants; None where it has none.

    Values beyond MAX_BITS have none either: no spec means them, and computing them could take all
    memory.
    """
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
                    return _bounded(a + b)
                case "sub", [a, b]:
                    return _bounded(a - b)
                case "mul", [a, b]:
                    return _bounded(a * b)
                case "div", [a, b] if b != 0:
                    return _bounded(a / b)
                case "neg", [a]:
                    return -a
                case "pow", [a, b] if b.denominator == 1 and (a or b >= 0):
                    return a ** int(b) if _bits(a) * abs(b) <= MAX_BITS else None
    return None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction | None:
    return value if _bits(value) <= MAX_BITS else None
