"""What |x|, min, max, clip, floor, ceil and √x² are on rows whose laws fix the sign of x."""

from __future__ import annotations

import math
from fractions import Fraction

from flowdsl.calculus.domain import Domain, Facts
from flowdsl.calculus.inequalities import Affine, Bound, extent, implies
from flowdsl.spec.core import Apply, Expr, Level, number, transform, walk
from flowdsl.spec.kinds import level_of

#: Operations with several branches.
_BRANCHING = frozenset({"abs", "min", "max", "clip", "floor", "ceil", "sqrt"})


def settle(domain: Domain, facts: Facts, expr: Expr) -> Expr:
    """The expression, with each such operation replaced by the branch that these rows take."""
    if not any(_branches(node) for node in walk(expr)):
        return expr
    bounds = domain.bounds({c: v for c, v in facts.items() if level_of(c) is not Level.STEP})
    return transform(
        expr, lambda node: _branch(domain, bounds, node) if isinstance(node, Apply) else node
    )


def _branches(node: Expr) -> bool:
    if not isinstance(node, Apply) or node.op not in _BRANCHING:
        return False
    return node.op != "sqrt" or _root(node) is not None


def _root(node: Apply) -> Expr | None:
    """x, of √x²."""
    match node.args[0]:
        case Apply("pow", (x, exponent)) if exponent == number(2):
            return x
        case Apply("mul", (x, y)) if x == y:
            return x
    return None


def _branch(domain: Domain, bounds: list[Bound], node: Apply) -> Expr:
    if not _branches(node):
        return node

    def never_below(a: Expr, b: Expr) -> bool:
        left, right = domain.affine(a), domain.affine(b)
        return (
            left is not None and right is not None and implies(bounds, Bound(left - right, False))
        )

    match node.op, node.args:
        case (("abs" | "sqrt"), (x,)):
            inner = x if node.op == "abs" else _root(node)
            assert inner is not None
            if never_below(inner, number(0)):
                return inner
            return Apply("neg", (inner,)) if never_below(number(0), inner) else node
        case (("min" | "max"), (a, b)):
            first, second = never_below(a, b), never_below(b, a)
            if first or second:
                return a if first == (node.op == "max") else b
        case "clip", (x, low, high):
            if never_below(x, low) and never_below(high, x):
                return x
        case (("floor" | "ceil"), (x,)):
            return _whole(domain, bounds, node, x)
    return node


def _whole(domain: Domain, bounds: list[Bound], node: Apply, x: Expr) -> Expr:
    """A whole number, where x stays between two of them."""
    form = domain.affine(x)
    if form is None or not form.terms:
        return node
    low, _ = extent(bounds, form)
    if low is None:
        return node
    below = math.floor(low)
    inside = Bound(Affine.number(below + 1) - form, True)
    if implies(bounds, Bound(form - Affine.number(below), True)) and implies(bounds, inside):
        return number(Fraction(below if node.op == "floor" else below + 1))
    return node
