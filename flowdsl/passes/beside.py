"""A derivative beside the prediction: one pass gives the value, recorded, and on the way its
derivative, which carries no gradient.

Where a derivative stands under `stop` and the value at the same point is predicted, the value's
pass is split: rows that need the derivative get both from one pass, the others a plain call. The
derivative then costs one forward pass instead of two, and no graph.

The direction may depend on the prediction itself, on rows that need no derivative: guidance reads
it on diagonal rows. So what leads to the direction is made to read the plain call alone, which is
possible where it reads nothing on the other rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import networkx as nx

from flowdsl.ir.cells import Cells, analyse, build_condition
from flowdsl.ir.cost import RULES, rows_of
from flowdsl.ir.graph import Builder, Graph, Node, finish
from flowdsl.ir.rowsets import can_run_on_rows, count_of
from flowdsl.passes.rows import depends_on_network, on_cases

MOST_ROUNDS = 16


@dataclass(frozen=True)
class _Pair:
    """`call` and `derivative` are to share a pass in the cases `shared`; in the cases `rest` the
    call stays plain. `saved` is in forward passes.
    """

    call: int
    derivative: int
    shared: int
    rest: int
    saved: float


def beside(graph: Graph) -> Graph:
    """Join derivatives without gradient to the predictions at the same points."""
    for _ in range(MOST_ROUNDS):
        cells = analyse(graph)
        found = max(_pairs(graph, cells), key=lambda p: (p.saved, -p.call), default=None)
        if found is None:
            break
        graph = _join(graph, cells, found)
    return graph


def _pairs(graph: Graph, cells: Cells) -> Iterator[_Pair]:
    calls = graph.calls()
    for derivative in calls:
        if not _is_quiet_derivative(graph[derivative]):
            continue
        for call in calls:
            if _same_point(graph, call, derivative):
                yield from _ways(graph, cells, call, derivative)


def _is_quiet_derivative(node: Node) -> bool:
    return node.op == "derivative" and len(node.call.directions) == 1 and not node.call.record


def _same_point(graph: Graph, call: int, derivative: int) -> bool:
    first, second = graph[call], graph[derivative]
    if first.op != "call" or first.call.network != second.call.network or not first.call.record:
        return False
    if first.call.conditions != second.call.conditions:
        return False
    point = range(first.call.point)
    return all(_bare(graph, first.inputs[i]) == _bare(graph, second.inputs[i]) for i in point)


def _bare(graph: Graph, at: int) -> int:
    """The value without a `stop` around it."""
    while graph[at].op == "stop":
        at = graph[at].inputs[0]
    return at


def _ways(graph: Graph, cells: Cells, call: int, derivative: int) -> Iterator[_Pair]:
    """Ways to share a pass between the two: on the derivative's rows, or on all of the call's."""
    own, asked = rows_of(graph, cells, call), rows_of(graph, cells, derivative)
    wanted = cells.demand[derivative]
    if wanted & ~own:
        return
    forbidden = _read_on_the_way(graph, cells, call, derivative)
    for shared in dict.fromkeys((asked & own, own)):
        rest = own & ~shared
        if wanted & ~shared or forbidden & shared:
            continue
        if rest and not _can_split(graph, cells, call, (shared, rest)):
            continue
        tangents = RULES.tangent * cells.share(shared)
        saved = RULES.derivative * cells.share(asked) - tangents
        if saved > 0:
            yield _Pair(call, derivative, shared, rest, saved)


def _can_split(graph: Graph, cells: Cells, call: int, parts: tuple[int, ...]) -> bool:
    """What learns must run on numbers of rows that the batch size alone decides."""
    plain = replace(graph[call], detail=replace(graph[call].call, on_rows=False))
    if depends_on_network(graph, cells) or not can_run_on_rows(graph, plain):
        return False
    return all(count_of(graph, cells, part) is not None for part in parts)


def _read_on_the_way(graph: Graph, cells: Cells, call: int, derivative: int) -> int:
    """The cases in which the derivative's inputs depend on the call."""
    results = _results(graph, call)
    readers = {derivative, *_between(graph, call, derivative)} - set(results)
    found = 0
    for reader in readers:
        for result in results:
            found |= cells.reads.get((reader, result), 0)
    return found


def _results(graph: Graph, call: int) -> list[int]:
    """The nodes through which a call is read: itself, or its heads."""
    if len(graph.objective.networks[graph[call].call.network].heads) == 1:
        return [call]
    return [at for at in graph.used if graph[at].op == "head" and graph[at].inputs[0] == call]


def _after(graph: Graph, start: int) -> set[int]:
    """The nodes that depend on a node, and it."""
    found = {start}
    for at in graph.used:
        if any(i in found for i in graph[at].inputs):
            found.add(at)
    return found


def _between(graph: Graph, start: int, end: int) -> set[int]:
    """The nodes that depend on `start` and on which `end` depends, without these two."""
    below, stack = set(), [end]
    while stack:
        for i in graph[stack.pop()].inputs:
            if i not in below:
                below.add(i)
                stack.append(i)
    return (_after(graph, start) & below) - {start, end}


_PAIR = -1  # the shared pass, among the nodes of the old graph
_JOINED = -2  # from here downwards: what is read in place of each result of the call


def _join(graph: Graph, cells: Cells, pair: _Pair) -> Graph:
    """The graph with the shared pass. What leads to the direction reads the plain call."""
    results = _results(graph, pair.call)
    joined = {result: _JOINED - k for k, result in enumerate(results)}
    early = _between(graph, pair.call, pair.derivative) - set(results)
    builder = Builder(graph.objective)
    plain: dict[int, int] = {}  # the call on the other rows, and its heads
    place = builder.place
    for at in _order(graph, cells, pair, joined, early):
        if at == _PAIR:
            place[at] = _shared_pass(builder, graph, cells, pair)
        elif at <= _JOINED:
            result = results[_JOINED - at]
            place[at] = _joined(builder, graph, cells, pair, result, plain.get(result))
        elif at == pair.call or at in joined:
            if pair.rest:
                node = graph[at]
                if at == pair.call:
                    node = on_cases(builder, graph, cells, _placed(node, place), pair.rest)
                else:
                    node = replace(node, inputs=(plain[pair.call],))
                plain[at] = builder.add(replace(node, name=""))
        elif at == pair.derivative:
            node = graph[at]
            place[at] = builder.rename(
                builder.add(Node("tangent", (place[_PAIR],), node.kind, node.level)), node.name
            )
        else:
            late = {i: place[j] for i, j in joined.items() if j in place}
            known = {**place, **(plain if at in early else late)}
            place[at] = builder.add(builder.refreshed(_placed(graph[at], known)))
    return finish(builder, graph, {**place, **{i: place[j] for i, j in joined.items()}})


def _placed(node: Node, place: dict[int, int]) -> Node:
    return replace(node, inputs=tuple(place[i] for i in node.inputs))


def _order(
    graph: Graph, cells: Cells, pair: _Pair, joined: dict[int, int], early: set[int]
) -> Iterator[int]:
    """Topological, each value as near to its old place as it can be."""
    order = nx.DiGraph()
    order.add_nodes_from(range(len(graph)))
    for at, node in enumerate(graph.nodes):
        if at == pair.derivative:
            continue
        for i in node.inputs:
            moved = at not in early and at not in joined and i in joined
            order.add_edge(joined[i] if moved else i, at)
    for i in (*graph[pair.call].inputs, *graph[pair.derivative].inputs, pair.call, *cells.atoms):
        order.add_edge(i, _PAIR)
    order.add_edge(_PAIR, pair.derivative)
    for result, late in joined.items():
        order.add_edges_from([(_PAIR, late), (result, late)])
    if pair.rest:
        order.add_edges_from((atom, pair.call) for atom in cells.atoms)
    first = pair.call
    found: Iterator[int] = nx.lexicographical_topological_sort(
        order, key=lambda at: (first, -at) if at < 0 else (at, 0)
    )
    return found


def _shared_pass(builder: Builder, graph: Graph, cells: Cells, pair: _Pair) -> int:
    call, derivative = graph[pair.call], graph[pair.derivative]
    place = builder.place
    point = call.inputs[: call.call.point]
    tangents = derivative.inputs[call.call.point : len(derivative.inputs) - derivative.call.on_rows]
    detail = replace(call.call, directions=derivative.call.directions, on_rows=False)
    inputs = tuple(place[i] for i in (*point, *tangents))
    node = Node("beside", inputs, call.kind, call.level, detail)
    if pair.shared != cells.all:
        node = on_cases(builder, graph, cells, node, pair.shared)
    return builder.add(node)


def _joined(
    builder: Builder, graph: Graph, cells: Cells, pair: _Pair, result: int, plain: int | None
) -> int:
    """The value that is read in place of a result of the call."""
    node, call = graph[result], graph[pair.call]
    value = builder.add(Node("primal", (builder.place[_PAIR],), call.kind, call.level))
    if node.op == "head":
        value = builder.add(replace(node, inputs=(value,), name=""))
    if plain is not None:
        atoms = tuple(builder.place[at] for at in cells.atoms)
        where = build_condition(builder, atoms, cells.cubes(pair.shared, pair.rest))
        value = builder.apply("select", where, value, plain)
    return builder.rename(value, node.name)
