"""Constant folding: exact arithmetic on numbers, and what zeros and ones make superfluous.

`omega = 1, kappa = 0` removes both guidance evaluations this way. A constant keeps its name, for a
reader to edit in the emitted file, unless its value decides what is computed: then it is written as
a number everywhere, so that an edit can never contradict the code around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from flowdsl.ir.arithmetic import arithmetic
from flowdsl.ir.graph import LEAVES, Builder, Graph, Node, result_kind, rewrite
from flowdsl.spec.core import COMPARISONS, Kind, Level

_COMPARE: dict[str, Callable[[Fraction, Fraction], bool]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}


def fold(graph: Graph) -> Graph:
    """Fold until nothing changes."""
    deciding = _deciding_constants(graph)

    def rule(builder: Builder, node: Node, old: int) -> int:
        if node.op == "constant" and node.detail in deciding:
            return builder.number(graph.objective.constants[str(node.detail)])
        return simplify(builder, node)

    while True:
        new = rewrite(graph, rule)
        if new.nodes == graph.nodes:
            return new
        graph = new


def _deciding_constants(graph: Graph) -> frozenset[str]:
    """The constants whose values decide: in a constant expression that is 0, 1 or -1, or in a
    comparison.
    """
    values: list[Fraction | None] = []
    inside: list[frozenset[str]] = []
    found: set[str] = set()
    for node in graph.nodes:
        names = frozenset().union(*(inside[i] for i in node.inputs)) if node.inputs else frozenset()
        if node.op == "constant":
            names = frozenset({str(node.detail)})
        inside.append(names if node.level is Level.CONSTANT else frozenset())
        values.append(_value(graph, node, [values[i] for i in node.inputs]))
        if node.level is Level.CONSTANT and values[-1] in (0, 1, -1):
            found |= names
        if node.op in COMPARISONS:
            found |= frozenset().union(*(inside[i] for i in node.inputs))
    return frozenset(found)


def _value(graph: Graph, node: Node, inputs: list[Fraction | None]) -> Fraction | None:
    if node.op == "number":
        return node.value
    if node.op == "constant":
        return graph.objective.constants[str(node.detail)]
    if node.op in LEAVES or any(v is None for v in inputs) or not inputs:
        return None
    return arithmetic(node.op, [v for v in inputs if v is not None])


def simplify(builder: Builder, node: Node) -> int:
    """Place a node whose inputs are placed, or the simpler one that has its value and its
    gradients.
    """
    inputs = node.inputs
    nodes = [builder.nodes[i] for i in inputs]
    numbers = [n.value if n.op == "number" else None for n in nodes]
    exact = [n for n in numbers if n is not None]
    if inputs and len(exact) == len(inputs):
        if node.op in COMPARISONS:
            return _truth(builder, _COMPARE[node.op](exact[0], exact[1]))
        value = arithmetic(node.op, exact)
        if value is not None:
            return builder.number(value, node.kind)
    found = _rule(builder, node, nodes, numbers)
    if found is None:
        return builder.add(node)
    if node.kind is Kind.STATE and builder.nodes[found].kind is not Kind.STATE:
        return builder.add(replace(builder.nodes[found], kind=Kind.STATE))
    return found


def _truth(builder: Builder, value: bool) -> int:
    return builder.apply("true" if value else "false")


def _rule(
    builder: Builder, node: Node, nodes: list[Node], numbers: list[Fraction | None]
) -> int | None:
    """The position of something simpler, or None."""

    def again(op: str, *inputs: int) -> int:
        return simplify(builder, _make(builder, op, *inputs))

    match node.op, node.inputs, numbers:
        case "add", (_, b), [Fraction(numerator=0), _]:
            return b
        case (("add" | "sub"), (a, _), [_, Fraction(numerator=0)]):
            return a
        case "sub", (a, b), _ if a == b:
            return builder.number(0, node.kind)
        case "sub", (_, b), [Fraction(numerator=0), _]:
            return again("neg", b)
        case "sub", (a, b), _ if nodes[1].op == "neg":
            return again("add", a, nodes[1].inputs[0])
        case "add", (a, b), _ if nodes[1].op == "neg":
            return again("sub", a, nodes[1].inputs[0])
        case "mul", _, _ if Fraction(0) in numbers:
            return builder.number(0, node.kind)
        case "mul", (a, b), _ if Fraction(1) in numbers:
            return a if numbers[1] == 1 else b
        case "mul", (a, b), _ if Fraction(-1) in numbers:
            return again("neg", a if numbers[1] == -1 else b)
        case "mul", (a, b), _ if nodes[0].op == "neg":
            return again("neg", again("mul", nodes[0].inputs[0], b))
        case "mul", (a, b), _ if nodes[1].op == "neg":
            return again("neg", again("mul", a, nodes[1].inputs[0]))
        case "div", (a, _), [_, Fraction(numerator=1, denominator=1)]:
            return a
        case "div", _, [Fraction(numerator=0), None]:
            return builder.number(0, node.kind)
        case "neg", (_,), _ if nodes[0].op == "neg":
            return nodes[0].inputs[0]
        case "pow", (a, _), [_, Fraction(numerator=1, denominator=1)]:
            return a
        case "pow", _, [_, Fraction(numerator=0)]:
            return builder.number(1, node.kind)
        case "stop", (a,), _ if nodes[0].level is Level.CONSTANT or nodes[0].op == "stop":
            return a
        case (("and" | "or"), (a, b), _):
            return _logic(builder, node.op, a, b)
        case "not", (a,), _:
            return _not(builder, a)
        case "select", (c, a, b), _:
            return _select(builder, node, c, a, b)
    return None


def _make(builder: Builder, op: str, *inputs: int) -> Node:
    kind = result_kind(op, [builder.nodes[i].kind for i in inputs])
    level = max(builder.nodes[i].level for i in inputs)
    return Node(op, inputs, kind, level)


def _logic(builder: Builder, op: str, a: int, b: int) -> int | None:
    first, second = builder.nodes[a].op, builder.nodes[b].op
    neutral, absorbing = ("true", "false") if op == "and" else ("false", "true")
    if first == neutral or a == b or second == absorbing:
        return b
    if second == neutral or first == absorbing:
        return a
    return None


def _not(builder: Builder, a: int) -> int | None:
    node = builder.nodes[a]
    if node.op in ("true", "false"):
        return _truth(builder, node.op == "false")
    return node.inputs[0] if node.op == "not" else None


def _select(builder: Builder, node: Node, c: int, a: int, b: int) -> int | None:
    condition = builder.nodes[c]
    if a == b or condition.op == "true":
        return a
    if condition.op == "false":
        return b
    if condition.op == "not":
        return simplify(builder, replace(node, inputs=(condition.inputs[0], b, a)))
    yes, no = builder.nodes[a], builder.nodes[b]
    if yes.op == "select" and yes.inputs[0] == c:
        return simplify(builder, replace(node, inputs=(c, yes.inputs[1], b)))
    if no.op == "select" and no.inputs[0] == c:
        return simplify(builder, replace(node, inputs=(c, a, no.inputs[2])))
    return None
