"""Reuse across rows: where two evaluations coincide on some rows, those rows are evaluated once.

On diagonal rows `u(z, t, t)` of the guidance is the prediction `u(z, t, r)`, because `r = t` there;
so the guidance reads it (without gradient) instead of evaluating the network again, and is left
with the other rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import networkx as nx

from flowdsl.ir.cells import Cells, analyse, build_condition
from flowdsl.ir.gradient import gradient
from flowdsl.ir.graph import Builder, Graph, Node, rewrite
from flowdsl.ir.rowsets import can_run_on_rows, count_of

#: A reuse must save at least this share of a forward pass; it costs a selection, and a longer text.
WORTHWHILE = 0.1
MOST_ROUNDS = 16
#: Pairs of passes are compared: beyond this many the search would take longer than it saves.
MOST_CALLS = 64


@dataclass(frozen=True)
class Reuse:
    """`call` takes the value of `source` in the cases `where`; elsewhere, if anywhere, it is
    evaluated itself.
    """

    call: int
    source: int
    where: int
    saved: float


def reuse(graph: Graph) -> Graph:
    """Apply the best reuse until none is worthwhile."""
    if len(graph.calls()) > MOST_CALLS:
        return graph
    for _ in range(MOST_ROUNDS):
        cells = analyse(graph)
        found = [r for r in _candidates(graph, cells) if r.saved >= WORTHWHILE]
        if not found:
            break
        graph = _apply(graph, cells, max(found, key=lambda r: (r.saved, -r.call)))
    return graph


def _candidates(graph: Graph, cells: Cells) -> list[Reuse]:
    calls = [at for at in graph.calls() if graph[at].op == "call"]
    carries = gradient(graph).carries
    found = []
    for call in calls:
        needed = cells.demand[call]
        below = _reached_from(graph, call)
        for source in calls:
            same_network = graph[call].call.network == graph[source].call.network
            if source == call or not same_network or source in below or not needed:
                continue
            if graph[call].call.record and not _same_inputs(graph, carries, call, source):
                continue
            choice = _choose(graph, cells, call, source, needed)
            if choice is not None:
                found.append(choice)
    return found


def _same_inputs(graph: Graph, carries: tuple[frozenset[str], ...], call: int, source: int) -> bool:
    """Does gradient leave two calls of equal value by the same ways? At `x` and at `stop(x)` a
    network has one value, and passes gradient on only in the one case."""
    pairs = zip(graph[call].inputs, graph[source].inputs, strict=True)
    return all(a == b or not (carries[a] or carries[b]) for a, b in pairs)


def _choose(graph: Graph, cells: Cells, call: int, source: int, needed: int) -> Reuse | None:
    equal = cells.same(call, source)
    both_recorded = graph[call].call.record and graph[source].call.record
    if graph[call].call.record and not both_recorded:
        return None
    if needed & ~equal == 0:
        # the whole call is superfluous, if its rows cost no more in the other
        extra = cells.share(needed & ~cells.demand[source])
        price = 3.0 if graph[source].call.record else 1.0
        own = 3.0 if graph[call].call.record else 1.0
        saved = own * cells.share(needed) - price * extra
        return Reuse(call, source, needed, saved + WORTHWHILE)
    overlap = equal & needed & cells.demand[source]
    if graph[call].call.record or not overlap or not can_run_on_rows(graph, graph[call]):
        return None
    rest = needed & ~overlap
    was_static = needed == cells.all or count_of(graph, cells, needed) is not None
    if was_static and count_of(graph, cells, rest) is None:
        return None
    return Reuse(call, source, overlap, cells.share(overlap))


def _reached_from(graph: Graph, start: int) -> set[int]:
    """The nodes that depend on a node."""
    found = {start}
    for at in graph.used:
        if any(i in found for i in graph[at].inputs):
            found.add(at)
    return found


def _apply(graph: Graph, cells: Cells, choice: Reuse) -> Graph:
    """Let the call's readers take the other call's value where the two coincide."""
    several = len(graph.objective.networks[graph[choice.call].call.network].heads) > 1
    results = (
        {r for r in graph.users[choice.call] if graph[r].op == "head"} if several else {choice.call}
    )
    whole = cells.demand[choice.call] & ~choice.where == 0
    cubes = cells.cubes(choice.where, cells.demand[choice.call] & ~choice.where)
    quiet = graph[choice.source].call.record and not graph[choice.call].call.record

    def rule(builder: Builder, node: Node, old: int) -> int:
        if old not in results:
            return builder.add(node)
        own = builder.add(node if whole else replace(node, name=""))
        source = builder.place[choice.source]
        if several:
            source = builder.add(Node("head", (source,), node.kind, node.level, node.detail))
        source = builder.stop(source) if quiet else source
        if whole:
            return source
        atoms = tuple(builder.place.get(at, -1) for at in cells.atoms)
        return builder.apply("select", build_condition(builder, atoms, cubes), source, own)

    order = nx.DiGraph()
    order.add_nodes_from(range(len(graph.nodes)))
    for at, node in enumerate(graph.nodes):
        order.add_edges_from((i, at) for i in node.inputs)
    for result in results:
        order.add_edge(choice.source, result)
        order.add_edges_from((atom, result) for atom in cells.atoms if not whole)
    return rewrite(graph, rule, nx.lexicographical_topological_sort(order))
