"""Calls made in one: several evaluations of a network on their rows one after another.

Each evaluation stays a value of its own; which of them share a call is all that is decided here.
One call in place of two saves no arithmetic. It saves launches, which a GPU is short of where
batches are small, and keeps it filled; on a CPU it gains nothing from eight rows on. The price is
memory: a call without a graph holds the values of all its rows at once. So nothing is merged unless
it is asked for, and then up to a number of rows.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import networkx as nx

from flowdsl.ir.cells import analyse
from flowdsl.ir.cost import rows_of
from flowdsl.ir.gradient import gradient
from flowdsl.ir.graph import Builder, Graph, Node, rewrite
from flowdsl.ir.rowsets import can_run_on_rows


def merge(graph: Graph, limit: float) -> Graph:
    """As few calls as can be, each of at most `limit` times the rows of the batch.

    Merged are calls of one network that need a graph alike, give the same heads and, among players,
    serve the same terms, of which none depends on another, not even by way of other merged calls.
    """
    cells = analyse(graph)
    shares = {at: cells.share(rows_of(graph, cells, at)) for at in graph.calls()}
    kinds = {at: _kind(graph, at) for at in graph.calls() if _can_merge(graph, graph[at])}
    order = graph.network()
    groups: list[list[int]] = []
    # the largest first: what is left over then fills the gaps
    for at in sorted(kinds, key=lambda at: (-shares[at], at)):
        for group in groups:
            full = sum(shares[i] for i in group) + shares[at] > limit + 1e-9
            if full or kinds[group[0]] != kinds[at]:
                continue
            joined = nx.contracted_nodes(order, group[0], at, self_loops=True)
            if nx.is_directed_acyclic_graph(joined):
                order = joined
                group.append(at)
                break
        else:
            groups.append([at])
    several = sorted(sorted(group) for group in groups if len(group) > 1)
    number = {at: k for k, group in enumerate(several, 1) for at in group}

    def rule(builder: Builder, node: Node, old: int) -> int:
        if old in number:
            node = replace(node, detail=replace(node.call, together=number[old]))
        return builder.add(node)

    return rewrite(graph, rule)


def _can_merge(graph: Graph, node: Node) -> bool:
    """Plain calls, whose rows do not see one another."""
    call = replace(node, detail=replace(node.call, on_rows=False))
    return node.op == "call" and can_run_on_rows(graph, call)


def _kind(graph: Graph, at: int) -> Hashable:
    """What must agree between the calls that are made in one."""
    call = graph[at].call
    heads = frozenset(graph[user].detail for user in graph.users[at] if graph[user].op == "head")
    learns = gradient(graph).learns(at)
    terms = _terms(graph, at) if graph.objective.players else None
    return call.network, call.conditions, call.record, learns, heads, terms


def _terms(graph: Graph, at: int) -> frozenset[str]:
    """The terms that read a value: one player's step computes only its own."""
    readers = nx.descendants(graph.network(), at) | {at}
    return frozenset(o.term for o in graph.outputs if o.loss in readers or o.rows in readers)
