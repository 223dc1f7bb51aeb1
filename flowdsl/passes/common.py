"""Common evaluations: equal network passes become one.

Lowering gave each occurrence a number of its own; taking the numbers away lets the graph's own
hash-consing find what is equal: same network, same arguments, same conditions, same directions.
"""

from __future__ import annotations

from dataclasses import replace

from flowdsl.ir.graph import NETWORK_OPS, Builder, Graph, Node, rewrite


def common(graph: Graph) -> Graph:
    """One pass per distinct (network, arguments, conditions, directions)."""

    def rule(builder: Builder, node: Node, old: int) -> int:
        if node.op in NETWORK_OPS:
            node = replace(node, detail=replace(node.call, occurrence=0))
        return builder.add(node)

    return rewrite(graph, rule)
