"""Scalar core expressions in floating point: curricula, constants, paths at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from flowdsl.calculus.errors import Undecided, Undefined
from flowdsl.spec.core import (
    Apply,
    Constant,
    Draw,
    Expr,
    Formal,
    Kind,
    Number,
    Stop,
    Training,
    walk,
)
from flowdsl.spec.objective import Objective, Path


def _snap(x: float, tolerance: float) -> float:
    if x < tolerance:
        return 0.0
    return 1.0 if x > 1 - tolerance else x


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": lambda a, b: float(a**b),
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "atan": math.atan,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "sigmoid": _sigmoid,
    "softplus": lambda a: max(a, 0.0) + math.log1p(math.exp(-abs(a))),
    "tanh": math.tanh,
    "abs": abs,
    "floor": lambda a: float(math.floor(a)),
    "ceil": lambda a: float(math.ceil(a)),
    "min": min,
    "max": max,
    "clip": lambda a, lo, hi: min(max(a, lo), hi),
    "snap": _snap,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: bool(a and b),
    "or": lambda a, b: bool(a or b),
    "not": lambda a: not a,
    "true": lambda: True,
    "false": lambda: False,
    "select": lambda c, a, b: a if c else b,
}


def evaluate(expr: Expr, values: Mapping[str, float]) -> float:
    """The value of a scalar expression; names of constants, draws, formals and training are looked
    up.

    Raises `Undecided` for a name or an operation without a value, and `Undefined` where there is
    none (1 / 0, the root of a negative number).
    """
    done: dict[Expr, float] = {}

    def visit(node: Expr) -> float:
        if node not in done:
            done[node] = compute(node)
        return done[node]

    def compute(node: Expr) -> float:
        match node:
            case Number(value):
                return float(value)
            case Constant(name) | Training(name) | Formal(name, _) | Draw(name, _, _):
                if name in values:
                    return values[name]
                raise Undecided(f"{name} has no value here", node.span)
            case Stop(body):
                return visit(body)
            case Apply(op, args) if op in _FUNCTIONS:
                try:
                    return _FUNCTIONS[op](*(visit(a) for a in args))
                except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
                    # TypeError: a root of a negative number, written as a power, is complex
                    raise Undefined(f"{op} has no value here", node.span) from error
        raise Undecided("not a number", node.span)

    return visit(expr)


def linear(expr: Expr, values: Mapping[str, float], names: tuple[str, ...]) -> tuple[float, ...]:
    """The coefficients of the named states in an expression that is linear in them."""
    zeros = (0.0,) * len(names)

    def visit(node: Expr) -> tuple[float, ...]:
        match node:
            case Formal(name, Kind.STATE) if name in names:
                return tuple(float(n == name) for n in names)
            case Apply("add", (a, b)):
                return tuple(x + y for x, y in zip(visit(a), visit(b), strict=True))
            case Apply("sub", (a, b)):
                return tuple(x - y for x, y in zip(visit(a), visit(b), strict=True))
            case Apply("neg", (a,)):
                return tuple(-x for x in visit(a))
            case Apply("mul", (a, b)):
                vector, factor = (a, b) if visit_is_state(a) else (b, a)
                c = evaluate(factor, values)
                return tuple(c * x for x in visit(vector))
            case Apply("div", (a, b)):
                c = evaluate(b, values)
                if not c:
                    raise Undefined("div has no value here", node.span)
                return tuple(x / c for x in visit(a))
        if not visit_is_state(node):
            return zeros
        raise Undecided("not linear in data and noise", node.span)

    def visit_is_state(node: Expr) -> bool:
        return any(isinstance(n, Formal) and n.kind is Kind.STATE for n in walk(node))

    return visit(expr)


def path_weights(
    objective: Objective, path: Path, time: float, velocity: bool = False
) -> tuple[float, float]:
    """(α, σ) of a path at a time, or (α', σ').

    Raises `Undecided` for a path between other ends than data and noise: an inner flow.
    """
    constants = {name: float(value) for name, value in objective.constants.items()}
    body = path.velocity if velocity else path.body
    if any(isinstance(n, Draw) and n.kind is Kind.STATE for n in walk(path.body)):
        raise Undecided("the path has other ends than data and noise", path.span)
    a, s = linear(body, {**constants, path.time: time}, ("data", "noise"))
    return a, s


#: How finely, and how far, the end of a path of sines and cosines is looked for.
_SCAN_STEP, _SCAN_END = 1 / 16, 8.0


def far_end(objective: Objective, path: Path) -> float | None:
    """The first time after 0 at which data or noise has no weight, on a path of sines and cosines.

    None on other paths, and where no such time is found. pi / 2 may have been written with a few
    digits only, so an end that is nearly 1 is taken to be at least 1. Raises `Undecided` as
    `path_weights` does.
    """
    if not any(isinstance(n, Apply) and n.op in ("sin", "cos", "tan") for n in walk(path.body)):
        return None

    def product(time: float) -> float:
        a, s = path_weights(objective, path, time)
        return a * s

    before, sign = _SCAN_STEP, product(_SCAN_STEP)
    while before < _SCAN_END:
        after = before + _SCAN_STEP
        if product(after) * sign <= 0:
            break
        before = after
    else:
        return None
    for _ in range(60):
        middle = (before + after) / 2
        before, after = (middle, after) if product(middle) * sign > 0 else (before, middle)
    return 1.0 if 0.999 < after < 1 else after
