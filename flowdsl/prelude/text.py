"""Arithmetic on texts of numbers and expressions, without `1 *` and `+ 0`: for the texts of laws.

Each function returns Python source. Numbers are computed exactly and written in their shortest
form, so that `affine("-0.4", "1", "normal(batch)")` is `normal(batch) - 0.4`.
"""

from __future__ import annotations

import re
from fractions import Fraction

_ATOM = re.compile(r"[A-Za-z_][\w.]*(\(.*\)|\[.*\])?$|\d[\d.eE]*$", re.DOTALL)


def literal(text: str) -> Fraction | None:
    """The number that the text is, or None."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def show(value: Fraction) -> str:
    """A number as Python source: an integer, the shortest decimal, or a quotient of integers when
    neither is exact.
    """
    if value.denominator == 1:
        return str(value.numerator)
    text = repr(float(value))
    if Fraction(text) == value:
        return text
    return f"{value.numerator} / {value.denominator}"


def _is_atom(text: str) -> bool:
    if not _ATOM.match(text):
        return False
    depth = 0
    opened = False
    for at, character in enumerate(text):
        if character in "([":
            if depth == 0 and opened and text[at - 1] not in ")]":
                return False
            depth += 1
            opened = True
        elif character in ")]":
            depth -= 1
        elif depth == 0 and opened and character in " +-*/":
            return False
    return True


def group(text: str) -> str:
    """The text, in parentheses unless it binds as tightly as a name."""
    return text if _is_atom(text) else f"({text})"


def call(function: str, *arguments: str) -> str:
    return f"{function}({', '.join(arguments)})"


#: Keywords for tensors that are made, not drawn.
real = "dtype=real, device=data.device"


def tensor(text: str) -> str:
    """The text as a tensor: numbers are made into one."""
    return f"torch.tensor({text}, {real})" if literal(text) is not None else text


def plus(a: str, b: str) -> str:
    x, y = literal(a), literal(b)
    if x is not None and y is not None:
        return show(x + y)
    if x == 0:
        return b
    if y is not None:
        return a if y == 0 else f"{a} + {show(y)}" if y > 0 else f"{a} - {show(-y)}"
    if x is not None:
        return plus(b, a) if x < 0 else f"{show(x)} + {b}"
    return f"{a} + {b}"


def minus(a: str, b: str) -> str:
    x, y = literal(a), literal(b)
    if x is not None and y is not None:
        return show(x - y)
    if y is not None:
        return plus(a, show(-y))
    return f"-{group(b)}" if x == 0 else f"{a} - {group(b)}"


def times(a: str, b: str) -> str:
    x, y = literal(a), literal(b)
    if x is not None and y is not None:
        return show(x * y)
    if x == 0 or y == 0:
        return "0"
    if x == 1:
        return b
    return a if y == 1 else f"{group(a)} * {group(b)}"


def over(a: str, b: str) -> str:
    x, y = literal(a), literal(b)
    if x is not None and y is not None and y != 0:
        return show(x / y)
    return a if y == 1 else f"{group(a)} / {group(b)}"


def power(a: str, b: str) -> str:
    x, y = literal(a), literal(b)
    if y == 1:
        return a
    if x is not None and y is not None and (x > 0 or y.denominator == 1) and (x != 0 or y > 0):
        value = float(x) ** float(y)
        return show(Fraction(repr(value)))
    return f"{group(a)} ** {group(b)}"


def affine(offset: str, scale: str, x: str) -> str:
    return plus(times(scale, x), offset)


def lerp(a: str, b: str, u: str) -> str:
    """`a` at u = 0, `b` at u = 1."""
    return plus(times(minus(b, a), u), a)
