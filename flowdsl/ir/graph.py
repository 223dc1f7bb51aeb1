"""The graph of a loss: what is computed, from what, and nothing about how it is written down.

A graph is a tuple of immutable nodes in topological order; a node names its inputs by position.
Equal nodes are one node (hash-consing), so sharing is explicit. Every value concerns the whole
batch: a network call that runs on some rows only has a row set as its last input and is zero
elsewhere.

Beside the operations of `spec/operations.py` a node's `op` is one of

    number constant training draw given null   leaves; `detail` is the value or the name
    stop        the input's value, without gradient
    call        one forward pass of a network; `detail` is a `Call`
    derivative  its directional derivative, by one forward-mode pass
    dual        both from one forward-mode pass; read by `primal` and `tangent`
    beside      both again, but only the value is recorded; the derivative carries no gradient
    head        one output of a network with several; `detail` is its name
    rows        the indices where a condition holds; `detail` is their `Count`
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

import networkx as nx

from flowdsl.spec.core import Kind, Level
from flowdsl.spec.objective import Objective
from flowdsl.spec.operations import OPERATIONS

NETWORK_OPS = frozenset({"call", "derivative", "dual", "beside"})
#: Passes that give a value and its derivative.
PAIRS = frozenset({"dual", "beside"})
LEAVES = frozenset({"number", "constant", "training", "draw", "given", "null"})
OTHER_OPS = LEAVES | NETWORK_OPS | {"stop", "head", "primal", "tangent", "rows"}


@dataclass(frozen=True)
class Call:
    """How a network is called. Inputs: arguments, conditions, tangents of the arguments that move,
    then the rows.

    `directions` holds, for each order of differentiation, which arguments move. `record` is false
    when no reverse-mode graph is kept. `occurrence` tells apart calls that have not been recognised
    as equal. Calls whose `together` is the same number, other than 0, are made in one.
    """

    network: str
    arguments: int
    conditions: tuple[str, ...] = ()
    directions: tuple[tuple[bool, ...], ...] = ()
    record: bool = True
    on_rows: bool = False
    occurrence: int = 0
    together: int = 0

    @property
    def point(self) -> int:
        """How many inputs say where the network is evaluated."""
        return self.arguments + len(self.conditions)


@dataclass(frozen=True)
class Count:
    """A number of rows that depends on the batch size only: a sum of multiples of the sizes of
    shares (None: all).
    """

    parts: tuple[tuple[int, str | None], ...]


@dataclass(frozen=True)
class Node:
    """One value. `name` is the spec's name for it, if any, and no part of its identity."""

    op: str
    inputs: tuple[int, ...]
    kind: Kind
    level: Level
    detail: Hashable = None
    name: str = field(default="", compare=False)

    @property
    def call(self) -> Call:
        assert isinstance(self.detail, Call)
        return self.detail

    @property
    def value(self) -> Fraction:
        assert isinstance(self.detail, Fraction)
        return self.detail

    @property
    def rows(self) -> int | None:
        """The node that says on which rows this network call runs; None for all."""
        return self.inputs[-1] if self.op in NETWORK_OPS and self.call.on_rows else None


@dataclass(frozen=True)
class Output:
    """One term: the batch mean of `loss` on `rows` (None: everywhere) and of zero elsewhere."""

    term: str
    loss: int
    rows: int | None = None


@dataclass(frozen=True)
class Graph:
    """The nodes, in topological order, the terms, and what is known of its conditions.

    `implies` holds pairs (rows that were drawn on other rows only, those other rows).
    """

    objective: Objective = field(repr=False)
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    implies: tuple[tuple[int, int], ...] = ()

    def __getitem__(self, at: int) -> Node:
        return self.nodes[at]

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def roots(self) -> tuple[int, ...]:
        """What the loss is made of."""
        found = [o.loss for o in self.outputs] + [
            o.rows for o in self.outputs if o.rows is not None
        ]
        return tuple(dict.fromkeys(found))

    @cached_property
    def used(self) -> tuple[int, ...]:
        """The nodes that the loss depends on, in topological order."""
        seen: set[int] = set()
        stack = list(self.roots)
        while stack:
            at = stack.pop()
            if at not in seen:
                seen.add(at)
                stack.extend(self.nodes[at].inputs)
        return tuple(sorted(seen))

    @cached_property
    def users(self) -> dict[int, tuple[int, ...]]:
        """For each node that the loss depends on, the nodes that read it (once per reading)."""
        found: dict[int, list[int]] = {at: [] for at in self.used}
        for at in self.used:
            for source in self.nodes[at].inputs:
                found[source].append(at)
        return {at: tuple(readers) for at, readers in found.items()}

    def calls(self) -> list[int]:
        """The network passes, in order."""
        return [at for at in self.used if self.nodes[at].op in NETWORK_OPS]

    def is_python(self, at: int) -> bool:
        """Whether the value is a plain number (or truth value) before any tensor is touched."""
        return self._python[at]

    @cached_property
    def _python(self) -> tuple[bool, ...]:
        known: list[bool] = []
        for node in self.nodes:
            if node.op in LEAVES:
                known.append(node.op in ("number", "constant", "training"))
            else:
                arithmetic = (
                    node.op in OPERATIONS and node.op != "batch_mean"
                ) or node.op == "stop"
                known.append(arithmetic and all(known[i] for i in node.inputs))
        return tuple(known)

    def network(self) -> nx.DiGraph:
        """The used part as a networkx graph, edges from input to reader; node attribute `node`."""
        graph = nx.DiGraph()
        for at in self.used:
            graph.add_node(at, node=self.nodes[at])
            graph.add_edges_from((source, at) for source in self.nodes[at].inputs)
        return graph

    def dominators(self) -> dict[int, int]:
        """For each used node, the nearest node through which all of its influence on the loss
        passes (-1: none).
        """
        graph = self.network().reverse()
        graph.add_edges_from((-1, root) for root in self.roots)
        return dict(nx.immediate_dominators(graph, -1))


class Builder:
    """Makes nodes one by one; equal nodes become one."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.nodes: list[Node] = []
        self.place: dict[int, int] = {}  # while rewriting: where each old node went
        self._known: dict[Node, int] = {}

    def add(self, node: Node) -> int:
        """The position of this node, new or already there; a name is kept, the first one wins."""
        at = self._known.get(node)
        if at is None:
            at = self._known[node] = len(self.nodes)
            self.nodes.append(node)
        elif node.name and not self.nodes[at].name:
            self.rename(at, node.name)
        return at

    def rename(self, at: int, name: str) -> int:
        """Give a nameless inner node a name."""
        node = self.nodes[at]
        if name and not node.name and node.op not in LEAVES:
            self.nodes[at] = replace(node, name=name)
        return at

    def number(self, value: Fraction | int, kind: Kind = Kind.SCALAR) -> int:
        return self.add(Node("number", (), kind, Level.CONSTANT, Fraction(value)))

    def apply(self, op: str, *inputs: int, name: str = "") -> int:
        """An operation of the core language; kind and level follow from the inputs."""
        nodes = [self.nodes[i] for i in inputs]
        kind = result_kind(op, [n.kind for n in nodes])
        level = max((n.level for n in nodes), default=Level.CONSTANT)
        if op == "batch_mean":
            level = min(level, Level.STEP)
        return self.add(Node(op, inputs, kind, level, name=name))

    def refreshed(self, node: Node) -> Node:
        """The node with the kind and level that follow from its inputs, which may have changed."""
        if not node.inputs or (node.op not in OPERATIONS and node.op != "stop"):
            return node
        inputs = [self.nodes[i] for i in node.inputs]
        level = max(n.level for n in inputs)
        if node.op == "stop":
            return replace(node, kind=inputs[0].kind, level=level)
        level = min(level, Level.STEP) if node.op == "batch_mean" else level
        return replace(node, kind=result_kind(node.op, [n.kind for n in inputs]), level=level)

    def stop(self, at: int, name: str = "") -> int:
        node = self.nodes[at]
        return self.add(Node("stop", (at,), node.kind, node.level, name=name))

    def finish(self, outputs: Iterable[Output], implies: Iterable[tuple[int, int]] = ()) -> Graph:
        graph = Graph(self.objective, tuple(self.nodes), tuple(outputs), tuple(implies))
        verify(graph)
        return graph


def result_kind(op: str, kinds: list[Kind]) -> Kind:
    """The kind of an operation's result."""
    match OPERATIONS[op].shape:
        case "comparison" | "logic":
            return Kind.TRUTH
        case "reduction":
            return Kind.SCALAR
        case "batch":
            return Kind.SCALAR
        case "select":
            rest = kinds[1:]
        case _:
            rest = kinds
    for kind in (Kind.STATE, Kind.LABEL, Kind.FEATURES, Kind.TRUTH):
        if kind in rest:
            return kind
    return Kind.TIME if rest and all(k is Kind.TIME for k in rest) else Kind.SCALAR


Rule = Callable[[Builder, Node, int], int]


def rewrite(graph: Graph, rule: Rule, order: Iterable[int] | None = None) -> Graph:
    """A new graph: `rule(builder, node, old)` places each used node, whose inputs are already new.

    The old name goes to whatever takes the node's place. Nodes that nothing reads any more
    disappear.
    """
    builder = Builder(graph.objective)
    place = builder.place
    known = [*graph.roots, *(at for pair in graph.implies for at in pair)]
    for at in order if order is not None else _reachable(graph, known):
        node = graph.nodes[at]
        moved = builder.refreshed(replace(node, inputs=tuple(place[i] for i in node.inputs)))
        place[at] = builder.rename(rule(builder, moved, at), node.name)
    return finish(builder, graph, place)


def finish(builder: Builder, graph: Graph, place: Mapping[int, int]) -> Graph:
    """The new graph, given where each old node went."""
    outputs = [
        Output(o.term, place[o.loss], _rows(builder, None if o.rows is None else place[o.rows]))
        for o in graph.outputs
    ]
    implies = {(place[a], place[b]): None for a, b in graph.implies}
    return compact(builder.finish(outputs, implies))


def _rows(builder: Builder, at: int | None) -> int | None:
    """The rows of a term; a condition that always holds is none."""
    return None if at is None or builder.nodes[at].op == "true" else at


def compact(graph: Graph) -> Graph:
    """The graph without the nodes that nothing depends on."""
    kept = _reachable(graph, [*graph.roots, *(at for pair in graph.implies for at in pair)])
    if len(kept) == len(graph.nodes):
        return graph
    place = {old: new for new, old in enumerate(kept)}
    nodes = [
        replace(graph.nodes[at], inputs=tuple(place[i] for i in graph.nodes[at].inputs))
        for at in kept
    ]
    outputs = tuple(
        Output(o.term, place[o.loss], None if o.rows is None else place[o.rows])
        for o in graph.outputs
    )
    implies = tuple((place[a], place[b]) for a, b in graph.implies)
    return Graph(graph.objective, tuple(nodes), outputs, implies)


def _reachable(graph: Graph, roots: Iterable[int]) -> list[int]:
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        at = stack.pop()
        if at not in seen:
            seen.add(at)
            stack.extend(graph.nodes[at].inputs)
    return sorted(seen)


class MalformedGraph(Exception):
    """A pass left a graph that makes no sense: a bug in the compiler, never a user's mistake."""


def verify(graph: Graph) -> None:
    """Check that a graph is well formed; run after every pass."""

    def require(condition: bool, at: int, what: str) -> None:
        if not condition:
            raise MalformedGraph(f"node {at} ({graph.nodes[at].op}): {what}")

    for at, node in enumerate(graph.nodes):
        require(all(0 <= i < at for i in node.inputs), at, "an input does not come before it")
        require(node.op in OTHER_OPS or node.op in OPERATIONS, at, "unknown operation")
        if node.op in OPERATIONS:
            kinds = [graph.nodes[i].kind for i in node.inputs]
            require(len(kinds) == OPERATIONS[node.op].arity, at, "wrong number of inputs")
            require(result_kind(node.op, kinds) is node.kind, at, "wrong kind")
        if node.op in NETWORK_OPS:
            call = node.call
            moving = sum(sum(direction) for direction in call.directions)
            require(len(node.inputs) == call.point + moving + call.on_rows, at, "wrong inputs")
            require((node.op == "call") == (not call.directions), at, "wrong directions")
            if node.rows is not None:
                require(graph.nodes[node.rows].op == "rows", at, "its rows are not a row set")
        if node.op in ("primal", "tangent"):
            require(graph.nodes[node.inputs[0]].op in PAIRS, at, "does not read a pair")
    for output in graph.outputs:
        if output.rows is not None:
            kind = graph.nodes[output.rows].kind
            if kind is not Kind.TRUTH:
                raise MalformedGraph(f"the rows of term {output.term} are a {kind.value}")
