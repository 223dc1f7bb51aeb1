"""A little algebra on core expressions: slopes of elementwise operations, and coefficients of
linear expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flowdsl.spec.core import (
    ONE,
    ZERO,
    Apply,
    Expr,
    Formal,
    add,
    children,
    div,
    mul,
    number,
    sub,
    walk,
)
from flowdsl.spec.differentiate import differentiate

_SLOPES: dict[str, Callable[..., tuple[Expr, ...]]] = {
    "div": lambda x, y: (div(ONE, y), div(Apply("neg", (x,)), mul(y, y))),
    "pow": lambda x, y: (mul(y, Apply("pow", (x, sub(y, ONE)))), mul(_pow(x, y), _of("log", x))),
    "sin": lambda x: (_of("cos", x),),
    "cos": lambda x: (Apply("neg", (_of("sin", x),)),),
    "tan": lambda x: (add(ONE, mul(_of("tan", x), _of("tan", x))),),
    "atan": lambda x: (div(ONE, add(ONE, mul(x, x))),),
    "exp": lambda x: (_of("exp", x),),
    "log": lambda x: (div(ONE, x),),
    "sqrt": lambda x: (div(ONE, mul(number(2), _of("sqrt", x))),),
    "sigmoid": lambda x: (mul(_of("sigmoid", x), sub(ONE, _of("sigmoid", x))),),
    "softplus": lambda x: (_of("sigmoid", x),),
    "tanh": lambda x: (sub(ONE, mul(_of("tanh", x), _of("tanh", x))),),
}


def _of(op: str, x: Expr) -> Apply:
    return Apply(op, (x,))


def _pow(x: Expr, y: Expr) -> Apply:
    return Apply("pow", (x, y))


def slope(expr: Expr, moving: Formal) -> Expr | None:
    """The derivative of an expression without path states in one of its formals; None is zero."""

    def no_path(_: Expr) -> Expr:
        raise ValueError("a map's body holds no path state")

    return differentiate(expr, {moving: ONE}, no_path, lambda op, args: _SLOPES[op](*args))


Linear = dict[Expr, Expr]


def linear_in(expr: Expr, symbols: frozenset[Expr]) -> Linear | None:
    """The coefficients of an expression that is linear, without a constant part, in these symbols;
    else None.
    """
    known: dict[Expr, Linear | None] = {}
    for node in walk(expr):
        known[node] = _linear(node, known, symbols)
    return known[expr]


def _linear(
    node: Expr, known: Mapping[Expr, Linear | None], symbols: frozenset[Expr]
) -> Linear | None:
    if node in symbols:
        return {node: ONE}
    if not any(inner in symbols for inner in walk(node)):
        return None
    if not isinstance(node, Apply):
        return None
    parts = [known[child] for child in children(node)]
    match node.op, node.args, parts:
        case "add" | "sub", _, [dict() as a, dict() as b]:
            combine = add if node.op == "add" else sub
            return {s: combine(a.get(s, ZERO), b.get(s, ZERO)) for s in {**a, **b}}
        case "neg", _, [dict() as a]:
            return {s: Apply("neg", (c,)) for s, c in a.items()}
        case "mul", (x, _), [None, dict() as b]:
            return {s: mul(x, c) for s, c in b.items()} if _free(x, symbols) else None
        case "mul", (_, y), [dict() as a, None]:
            return {s: mul(c, y) for s, c in a.items()} if _free(y, symbols) else None
        case "div", (_, y), [dict() as a, None]:
            return {s: div(c, y) for s, c in a.items()} if _free(y, symbols) else None
    return None


def _free(expr: Expr, symbols: frozenset[Expr]) -> bool:
    return not any(node in symbols for node in walk(expr))


def solve(
    state: Expr,
    predicted: Expr,
    path: Linear,
    wanted: Linear,
    target: Linear,
    data: Expr,
    noise: Expr,
) -> Expr:
    """The conditional mean of `wanted`, from a state and a prediction of `target`.

    With state = a data + b noise, predicted = p data + q noise and wanted = a' data + b' noise, all
    given the state: wanted = (c predicted + d state) / (a q - b p), where c = a b' - b a' and
    d = a' q - b' p.
    """

    def part(form: Linear, symbol: Expr) -> Expr:
        return form.get(symbol, ZERO)

    a, b = part(path, data), part(path, noise)
    p, q = part(target, data), part(target, noise)
    wanted_a, wanted_b = part(wanted, data), part(wanted, noise)
    c = sub(mul(a, wanted_b), mul(b, wanted_a))
    d = sub(mul(wanted_a, q), mul(wanted_b, p))
    return div(add(mul(c, predicted), mul(d, state)), sub(mul(a, q), mul(b, p)))
