"""Exact arithmetic on numbers, as far as fractions go."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

#: Powers beyond this are left to floating point: exact ones would be huge numbers.
LARGEST_EXPONENT = 64


def arithmetic(op: str, x: list[Fraction]) -> Fraction | None:
    """The exact result of an operation on numbers, or None where it has none."""
    match op:
        case "add":
            return x[0] + x[1]
        case "sub":
            return x[0] - x[1]
        case "mul":
            return x[0] * x[1]
        case "div":
            return x[0] / x[1] if x[1] != 0 else None
        case "neg":
            return -x[0]
        case "pow":
            whole = x[1].denominator == 1 and abs(x[1]) <= LARGEST_EXPONENT
            small = x[0].numerator.bit_length() + x[0].denominator.bit_length() < 64
            if whole and small and (x[0] != 0 or x[1] >= 0):
                return x[0] ** x[1].numerator
        case "abs":
            return abs(x[0])
        case "floor":
            return Fraction(floor(x[0]))
        case "ceil":
            return Fraction(ceil(x[0]))
        case "min":
            return min(x)
        case "max":
            return max(x)
        case "clip":
            return min(max(x[0], x[1]), x[2])
        case "snap":
            return Fraction(0) if x[0] < x[1] else Fraction(1) if x[0] > 1 - x[1] else x[0]
        case "stop" | "batch_mean":
            return x[0]
        case "exp" | "cos":
            return Fraction(1) if x[0] == 0 else None
        case "sin" | "tan" | "atan" | "tanh":
            return Fraction(0) if x[0] == 0 else None
        case "sqrt" | "log":
            return Fraction(op == "sqrt") if x[0] == 1 else None
        case "sigmoid":
            return Fraction(1, 2) if x[0] == 0 else None
    return None
