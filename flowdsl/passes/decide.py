"""Comparisons whose answer follows from where their sides lie: `t > hi` is false when hi = 1 and t
is in [0, 1].
"""

from __future__ import annotations

from flowdsl.ir.graph import Builder, Graph, Node, rewrite
from flowdsl.ir.ranges import Interval, of_nodes
from flowdsl.passes.fold import simplify
from flowdsl.spec.core import COMPARISONS


def decide(graph: Graph) -> Graph:
    """Replace decided comparisons by their truth value."""
    ranges = of_nodes(graph)

    def rule(builder: Builder, node: Node, old: int) -> int:
        if node.op in COMPARISONS:
            a, b = (ranges[i] for i in graph[old].inputs)
            answer = _answer(node.op, a, b)
            if answer is not None:
                return builder.apply("true" if answer else "false")
        return simplify(builder, node)

    return rewrite(graph, rule)


def _answer(op: str, a: Interval, b: Interval) -> bool | None:
    match op:
        case "lt":
            return True if a[1] < b[0] else False if a[0] >= b[1] else None
        case "le":
            return True if a[1] <= b[0] else False if a[0] > b[1] else None
        case "gt":
            return _answer("lt", b, a)
        case "ge":
            return _answer("le", b, a)
        case "eq" | "ne":
            apart = a[1] < b[0] or b[1] < a[0]
            return (op == "ne") if apart else None
    return None
