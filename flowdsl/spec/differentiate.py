"""What `d/dX[…]` means: ordinary forward differentiation of core trees.

The result is again a core tree; at a network it becomes one more entry of `Evaluate.directions`.
What moves is a set of formals, each with its tangent; everything else stays fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from flowdsl.diagnostics import fail
from flowdsl.spec.core import (
    ONE,
    ZERO,
    Apply,
    Evaluate,
    Expr,
    Formal,
    PathState,
    PathVelocity,
    Stop,
    add,
    div,
    mul,
    neg,
    select,
    sub,
)
from flowdsl.spec.operations import OPERATIONS

#: Derivative rules of the elementwise operations: per operation, partial derivatives over x, y, z.
Partials = Callable[[str, tuple[Expr, ...]], tuple[Expr, ...]]


def differentiate(
    expr: Expr,
    tangents: Mapping[Expr, Expr],
    velocity_of: Callable[[PathState | PathVelocity], Expr],
    partials: Partials,
) -> Expr | None:
    """The derivative of `expr` when each key of `tangents` moves with its value; None is zero.

    `velocity_of` gives the derivative in time of a path state or velocity at fixed ends;
    `partials` gives the partial derivatives of an operation at its arguments.
    """
    known: dict[Expr, Expr | None] = {}

    def visit(node: Expr) -> Expr | None:
        if node in tangents:
            return tangents[node]
        if node not in known:
            known[node] = rule(node)
        return known[node]

    def rule(node: Expr) -> Expr | None:
        match node:
            case Apply():
                return _apply(node, visit, partials)
            case Stop(body):
                inner = visit(body)
                return None if inner is None else Stop(inner, span=node.span)
            case PathState(_, time, data, noise) | PathVelocity(_, time, data, noise):
                if visit(data) is not None or visit(noise) is not None:
                    raise fail(
                        "resolve",
                        "a path state whose ends move cannot be differentiated",
                        node.span,
                        hint="differentiate in the time of the path, at fixed data and noise",
                    )
                return _scaled(visit(time), velocity_of(node))
            case Evaluate():
                return _evaluate(node, visit)
        return None

    return visit(expr)


def _scaled(tangent: Expr | None, factor: Expr) -> Expr | None:
    if tangent is None or factor == ZERO:
        return None
    if tangent == ONE:
        return factor
    return tangent if factor == ONE else mul(tangent, factor)


def plus(a: Expr | None, b: Expr | None) -> Expr | None:
    """The sum of two tangents."""
    if a is None or b is None:
        return a if b is None else b
    return add(a, b)


def _apply(node: Apply, visit: Callable[[Expr], Expr | None], partials: Partials) -> Expr | None:
    moving = [visit(a) for a in node.args]
    if all(m is None for m in moving):
        return None
    match node.op, node.args, moving:
        case "add", _, [da, db]:
            return plus(da, db)
        case "sub", _, [da, None]:
            return da
        case "sub", _, [None, db] if db is not None:
            return neg(db)
        case "sub", _, [da, db] if da is not None and db is not None:
            return sub(da, db)
        case "neg", _, [da] if da is not None:
            return neg(da)
        case "mul", (a, b), [da, db]:
            return plus(_product(da, b), _product(a, db))
        case "div", (_, b), [da, None] if da is not None:
            return div(da, b)
        case "select", (c, _, _), [None, da, db]:
            return select(c, da or ZERO, db or ZERO)
    if OPERATIONS[node.op].derivative is None:
        raise fail(
            "resolve",
            f"`{node.op}` cannot be differentiated here",
            node.span,
            hint="take it out of the derivative, or write the derivative of what is inside",
        )
    total: Expr | None = None
    slopes = partials(node.op, node.args)
    for slope, tangent in zip(slopes, moving, strict=True):
        total = plus(total, _scaled(tangent, slope))
    return total


def _product(a: Expr | None, b: Expr | None) -> Expr | None:
    if a is None or b is None:
        return None
    if a == ONE:
        return b
    return a if b == ONE else mul(a, b)


def _evaluate(node: Evaluate, visit: Callable[[Expr], Expr | None]) -> Expr | None:
    """D[f^(k)(args; w1..wk)] = f^(k+1)(args; w1..wk, D args) + sum of f^(k)(…, D wi, …)."""
    direction = tuple(visit(a) for a in node.args)
    total: Expr | None = None
    if any(entry is not None for entry in direction):
        total = replace(node, directions=(*node.directions, direction))
    for i, tangent in enumerate(node.directions):
        moved = tuple(None if entry is None else visit(entry) for entry in tangent)
        if any(entry is not None for entry in moved):
            directions = (*node.directions[:i], moved, *node.directions[i + 1 :])
            total = plus(total, replace(node, directions=directions))
    return total


def moving_formal(name: str, like: Formal) -> Formal:
    """A formal that stands for a moving time or state, distinct from every name in a spec."""
    return Formal(f"d:{name}", like.kind)
