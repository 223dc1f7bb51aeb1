"""Row demand: a network pass runs on the rows that need it.

Rows with `r = t` need no derivative, rows outside the guidance window no guidance, rows outside a
term nothing at all. A pass that keeps no graph may run on a number of rows that is only known when
the draws are; one that learns runs on a number that follows from the batch size, so that every
process of a distributed run has work for every parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flowdsl.ir.cells import Cells, analyse, build_condition
from flowdsl.ir.cost import pass_cost
from flowdsl.ir.graph import NETWORK_OPS, Builder, Count, Graph, Node, rewrite
from flowdsl.ir.rowsets import can_run_on_rows, count_of, static_atoms
from flowdsl.spec.core import Kind, Level

#: An unknown number of rows costs a synchronisation, and shapes that change from step to step and
#: so cannot be compiled: it must save this much more, in forward passes.
DYNAMIC = 0.15


@dataclass(frozen=True)
class _Choice:
    cases: int
    count: Count | None


def rows(graph: Graph) -> Graph:
    """Restrict each pass to the rows that need it, where that pays."""
    return _restricted(graph, dynamic=True)


def fixed_rows(graph: Graph) -> Graph:
    """The same, but only where the batch size alone tells how many rows there are."""
    return _restricted(graph, dynamic=False)


def _restricted(graph: Graph, dynamic: bool) -> Graph:
    cells = analyse(graph)
    found = {at: _choose(graph, cells, at, dynamic) for at in graph.calls()}
    chosen = {at: choice for at, choice in found.items() if choice is not None}

    def rule(builder: Builder, node: Node, old: int) -> int:
        if node.op not in NETWORK_OPS or old not in chosen:
            return builder.add(node)
        choice = chosen[old]
        if choice.cases == 0 and node.kind is Kind.STATE and node.op != "dual":
            return builder.number(0, Kind.STATE)
        return builder.add(on_cases(builder, graph, cells, node, choice.cases))

    order = _conditions_first(graph, cells)
    return rewrite(graph, rule, order)


def on_cases(builder: Builder, graph: Graph, cells: Cells, node: Node, cases: int) -> Node:
    """A placed network pass, on the rows of these cases; the conditions must be placed already."""
    atoms = tuple(builder.place.get(at, -1) for at in cells.atoms)
    mask = build_condition(builder, atoms, cells.cubes(cases, cells.all & ~cases))
    count = count_of(graph, cells, cases)
    some = builder.add(Node("rows", (mask,), Kind.TRUTH, Level.ROW, count))
    inputs = node.inputs[: len(node.inputs) - node.call.on_rows]
    return replace(node, inputs=(*inputs, some), detail=replace(node.call, on_rows=True))


def _conditions_first(graph: Graph, cells: Cells) -> list[int]:
    """Topological order in which the deciding conditions come as early as they can."""
    first: dict[int, None] = {}

    def include(at: int) -> None:
        stack = [(at, False)]
        while stack:
            node_at, ready = stack.pop()
            if node_at in first:
                continue
            if ready:
                first[node_at] = None
            else:
                stack.append((node_at, True))
                stack.extend((i, False) for i in graph[node_at].inputs)

    for atom in cells.atoms:
        include(atom)
    for at in range(len(graph.nodes)):
        include(at)
    return list(first)


def _choose(graph: Graph, cells: Cells, at: int, dynamic: bool) -> _Choice | None:
    node = graph[at]
    needed = cells.demand[at]
    if needed == cells.all or not can_run_on_rows(graph, node):
        return None
    if depends_on_network(graph, cells):
        return None
    count = count_of(graph, cells, needed)
    if count is not None:
        return _Choice(needed, count)
    best: _Choice | None = None
    best_cost = pass_cost(graph, node, 1.0).total
    wider = cells.widen(needed, set(static_atoms(graph, cells)))
    wide_count = count_of(graph, cells, wider) if wider != cells.all else None
    if wide_count is not None:
        best, best_cost = (
            _Choice(wider, wide_count),
            pass_cost(graph, node, cells.share(wider)).total,
        )
    rowwise = {i for i, a in enumerate(cells.atoms) if graph[a].level is Level.ROW}
    exact = cells.widen(needed, rowwise)
    if dynamic and not node.call.record and exact != cells.all:
        own = pass_cost(graph, node, cells.share(exact)).total + DYNAMIC
        if own < best_cost:
            best = _Choice(exact, None)
    return best


def depends_on_network(graph: Graph, cells: Cells) -> bool:
    """Whether a deciding condition is computed from a network: then it comes too late to choose
    rows.
    """
    found: set[int] = set()
    for at, node in enumerate(graph.nodes):
        if node.op in NETWORK_OPS or any(i in found for i in node.inputs):
            found.add(at)
    return any(atom in found for atom in cells.atoms)
