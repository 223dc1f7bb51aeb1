"""Intervals: between which numbers a value lies, from the supports of the laws and the shape of the
expressions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from flowdsl.ir.graph import Graph, Node
from flowdsl.prelude.laws import LAWS
from flowdsl.spec.core import Apply, Constant, Draw, Expr, Formal, Kind, Number, Training
from flowdsl.spec.objective import LawCall, Objective

Interval = tuple[float, float]
ANY: Interval = (-math.inf, math.inf)
TRAINING: dict[str, Interval] = {
    "progress": (0.0, 1.0),
    "step": (0.0, math.inf),
    "steps": (1.0, math.inf),
}


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _corners(f: Callable[[float, float], float], a: Interval, b: Interval) -> Interval:
    values = [f(x, y) for x in a for y in b]
    return ANY if any(math.isnan(v) for v in values) else (min(values), max(values))


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


def _sigmoid(x: float) -> float:
    return 1 / (1 + _exp(-x))


_RISING: dict[str, Callable[[float], float]] = {
    "exp": _exp,
    "sigmoid": _sigmoid,
    "tanh": math.tanh,
    "atan": math.atan,
    "sqrt": lambda x: math.sqrt(max(0.0, x)),
    "log": lambda x: math.log(x) if 0 < x < math.inf else (math.inf if x > 0 else -math.inf),
    "softplus": lambda x: x if x > 30 else math.log1p(_exp(x)),
    "floor": lambda x: x if math.isinf(x) else float(math.floor(x)),
    "ceil": lambda x: x if math.isinf(x) else float(math.ceil(x)),
}


def operation(op: str, x: list[Interval]) -> Interval:
    """The interval of an operation's result; the widest one where nothing is known."""
    match op:
        case "add":
            return x[0][0] + x[1][0], x[0][1] + x[1][1]
        case "sub":
            return x[0][0] - x[1][1], x[0][1] - x[1][0]
        case "neg":
            return -x[0][1], -x[0][0]
        case "mul":
            return _corners(_times, x[0], x[1])
        case "div" if min(x[1]) > 0 or max(x[1]) < 0:  # also where a law's ends are exchanged
            return _corners(lambda a, b: 0.0 if math.isinf(b) else a / b, x[0], x[1])
        case "pow" if x[1][0] == x[1][1] and x[0][0] >= 0 and 0 < x[1][0] <= 64 and x[0][1] < 1e4:
            return x[0][0] ** x[1][0], x[0][1] ** x[1][0]
        case "min":
            return min(x[0][0], x[1][0]), min(x[0][1], x[1][1])
        case "max":
            return max(x[0][0], x[1][0]), max(x[0][1], x[1][1])
        case "clip":
            return max(x[0][0], x[1][0]), min(x[0][1], x[2][1])
        case "snap":
            low, high = x[0]
            return (0.0 if low < x[1][1] else low), (1.0 if high > 1 - x[1][1] else high)
        case "sin" | "cos":
            return -1.0, 1.0
        case "abs":
            low, high = x[0]
            return (0.0 if low < 0 < high else min(abs(low), abs(high))), max(abs(low), abs(high))
        case "select":
            return min(x[1][0], x[2][0]), max(x[1][1], x[2][1])
        case "stop" | "batch_mean":
            return x[0]
        case "sum_squares" | "mean_squares" | "norm" | "mean_abs":
            return 0.0, math.inf
    if op in _RISING:
        f = _RISING[op]
        return f(x[0][0]), f(x[0][1])
    return ANY


def of_law(law: LawCall | Expr, objective: Objective) -> Interval:
    """The support of a law, or the interval of one of its arguments."""
    if not isinstance(law, LawCall):
        return of_expr(law, objective)
    inner = [of_law(a, objective) for a in law.args]
    if law.law in LAWS:
        return LAWS[law.law].support(*inner)
    return operation(law.law, inner)


def of_draw(name: str, objective: Objective) -> Interval:
    """Between which numbers a draw lies."""
    draw = objective.draws.get(name)
    if draw is None or draw.kind is Kind.STATE:
        return ANY
    supports = [of_law(line.law, objective) for line in draw.lines]
    return min(s[0] for s in supports), max(s[1] for s in supports)


def of_expr(expr: Expr, objective: Objective) -> Interval:
    """The interval of a scalar core expression."""
    match expr:
        case Number(value):
            return float(value), float(value)
        case Constant(name):
            value = objective.constants[name]
            return float(value), float(value)
        case Training(name):
            return TRAINING[name]
        case Draw(name):
            return of_draw(name, objective)
        case Apply(op, args):
            return operation(op, [of_expr(a, objective) for a in args])
    return ANY


def of_nodes(graph: Graph) -> list[Interval]:
    """The interval of every node."""
    known: list[Interval] = []
    for node in graph.nodes:
        known.append(_node(graph, node, known))
    return known


def _node(graph: Graph, node: Node, known: Mapping[int, Interval] | list[Interval]) -> Interval:
    match node.op:
        case "number":
            return float(node.value), float(node.value)
        case "constant":
            value = float(graph.objective.constants[str(node.detail)])
            return value, value
        case "training":
            return TRAINING[str(node.detail)]
        case "draw" if node.kind is not Kind.TRUTH:
            return of_draw(str(node.detail), graph.objective)
    if node.kind in (Kind.TIME, Kind.SCALAR, Kind.STATE) and node.inputs:
        return operation(node.op, [known[i] for i in node.inputs])
    return ANY


_PLAIN: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": lambda a, b: a**b,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "abs": abs,
    "min": min,
    "max": max,
    "clip": lambda x, low, high: min(max(x, low), high),
    **_RISING,
}


def evaluate(expr: Expr, formals: Mapping[str, float], objective: Objective) -> float | None:
    """A scalar core expression in plain floats, or None where it has no value."""
    match expr:
        case Number(value):
            return float(value)
        case Constant(name):
            return float(objective.constants[name])
        case Formal(name):
            return formals.get(name)
        case Apply(op, args) if op in _PLAIN:
            values = [evaluate(a, formals, objective) for a in args]
            if any(v is None for v in values):
                return None
            try:
                result = _PLAIN[op](*values)
            except (ArithmeticError, ValueError):
                return None
            return result if isinstance(result, float | int) else None
    return None
