"""The sign of a scalar from the signs of its parts.

Of a product, of a sum of equal signs, and of the difference of one increasing function at two
places, such as two noise levels: f(i) - f(i - d) has the sign of d.
"""

from __future__ import annotations

from collections.abc import Callable

from flowdsl.spec.core import ONE, Apply, Expr, Number, Stop, sub

#: The sign of an expression that has no parts with signs; 0 where it is not known.
Sign = Callable[[Expr], int]

INCREASING = frozenset({"exp", "log", "sqrt", "atan", "tanh", "sigmoid", "softplus"})


def sign_of(expr: Expr, sign: Sign) -> int:
    """+1 or -1 where the scalar is always above or below zero; 0 where that is not known."""
    match expr:
        case Stop(body):
            return sign_of(body, sign)
        case Apply("neg", (a,)):
            return -sign_of(a, sign)
        case Apply("mul" | "div", (a, b)):
            return (sign_of(a, sign) and sign_of(b, sign) * sign_of(a, sign)) or sign(expr)
        case Apply("sub", (a, b)):
            return _difference(a, b, sign) or sign(expr)
    return sign(expr)


def _difference(a: Expr, b: Expr, sign: Sign) -> int:
    """The sign of a - b."""
    match a, b:
        case Apply("sub", (x, y)), z if x == z:
            return -sign_of(y, sign)
        case x, Apply("sub", (y, z)) if x == y:
            return sign_of(z, sign)
        case x, Apply("max", (y, z)):
            both = {_signed(x, y, sign), _signed(x, z, sign)}
            return 1 if both == {1} else 0
        case x, (Apply("mul", (y, z)) | Apply("mul", (z, y))) if x == y:
            return sign_of(x, sign) * _signed(ONE, z, sign)
        case Apply(op, (x,)), Apply(other, (y,)) if op == other and op in INCREASING:
            return _signed(x, y, sign)
        case Apply("pow", (x, Number(k))), Apply("pow", (y, Number(n))) if k == n and k != 0:
            positive = sign_of(x, sign) == 1 == sign_of(y, sign)
            return _signed(x, y, sign) * (1 if k > 0 else -1) if positive else 0
        case Apply("pow", (x, k)), Apply("pow", (y, n)) if k == n:
            positive = sign_of(x, sign) == 1 == sign_of(y, sign)
            return _signed(x, y, sign) * sign_of(k, sign) if positive else 0
        case Apply("add", (x, y)), Apply("add", (z, w)):
            return _common(x, y, z, w, sign)
        case Apply("mul", (x, y)), Apply("mul", (z, w)):
            return _common(x, y, z, w, sign, factor=True)
    return 0


def _signed(a: Expr, b: Expr, sign: Sign) -> int:
    return sign_of(sub(a, b), sign)


def _common(x: Expr, y: Expr, z: Expr, w: Expr, sign: Sign, factor: bool = False) -> int:
    """Of two sums, or products, with a part in common: by what they differ in."""
    for common, mine, other, yours in ((x, y, z, w), (x, y, w, z), (y, x, z, w), (y, x, w, z)):
        if common == other:
            return _signed(mine, yours, sign) * (sign_of(common, sign) if factor else 1)
    return 0
