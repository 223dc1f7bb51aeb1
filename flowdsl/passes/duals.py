"""Primal sharing: a forward-mode pass yields the network's value beside its derivative.

Where both are needed at the same point, on the same rows and with the same need of a graph (the
live derivative of Terminal Velocity Matching), one pass gives both. A derivative under `stop`
beside a live prediction is not such a pair: recording a graph of the tangents would cost more
memory than the primal costs time. Those are left to `beside`.
"""

from __future__ import annotations

from dataclasses import replace

import networkx as nx

from flowdsl.ir.cells import Cells, analyse
from flowdsl.ir.cost import RULES, rows_of
from flowdsl.ir.gradient import gradient
from flowdsl.ir.graph import Builder, Graph, Node, rewrite


def duals(graph: Graph, learning: bool = False) -> Graph:
    """Fuse pairs of a pass and its derivative; with `learning`, where gradient flows through it."""
    cells, flow = analyse(graph), gradient(graph)
    pairs: dict[int, int] = {}  # call -> derivative
    for derivative in graph.calls():
        node = graph[derivative]
        if node.op != "derivative" or len(node.call.directions) != 1:
            continue
        if learning and not flow.learns(derivative):
            continue
        for call in graph.calls():
            if call not in pairs and _is_primal(graph, cells, call, derivative):
                pairs[call] = derivative
                break
    partners = {derivative: call for call, derivative in pairs.items()}

    def fused(builder: Builder, derivative: int) -> int:
        old = graph[derivative]
        call = graph[partners[derivative]]
        whole = call.rows is None
        inputs = tuple(builder.place[i] for i in old.inputs)
        detail = old.call
        if whole and old.call.on_rows:
            inputs, detail = inputs[:-1], replace(old.call, on_rows=False)
        return builder.add(Node("dual", inputs, old.kind, old.level, detail))

    def rule(builder: Builder, node: Node, old: int) -> int:
        if old in pairs:
            at = fused(builder, pairs[old])
            return builder.add(Node("primal", (at,), node.kind, node.level))
        if old in partners:
            at = fused(builder, old)
            return builder.add(Node("tangent", (at,), node.kind, node.level))
        return builder.add(node)

    if not pairs:
        return graph
    return rewrite(graph, rule, _order(graph, pairs))


def _is_primal(graph: Graph, cells: Cells, call: int, derivative: int) -> bool:
    first, second = graph[call], graph[derivative]
    if first.op != "call" or first.call.network != second.call.network:
        return False
    point = second.call.point
    if first.call.record != second.call.record or first.inputs[:point] != second.inputs[:point]:
        return False
    if _reaches(graph, call, derivative):
        return False
    if first.rows == second.rows:
        return True
    share = cells.share(rows_of(graph, cells, derivative))
    return first.rows is None and RULES.derivative * share + 1 > RULES.derivative


def _reaches(graph: Graph, call: int, derivative: int) -> bool:
    """Whether the direction depends on the value."""
    found = {call}
    for at in graph.used:
        if any(i in found for i in graph[at].inputs):
            found.add(at)
    return derivative in found


def _order(graph: Graph, pairs: dict[int, int]) -> list[int]:
    """Topological, with a derivative's inputs before its primal."""
    order = nx.DiGraph()
    order.add_nodes_from(range(len(graph.nodes)))
    for at, node in enumerate(graph.nodes):
        order.add_edges_from((i, at) for i in node.inputs)
    for call, derivative in pairs.items():
        order.add_edges_from((i, call) for i in graph[derivative].inputs)
    return list(nx.lexicographical_topological_sort(order))
