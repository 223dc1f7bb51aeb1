"""Where gradient flows in a graph: to which networks, and through which nodes."""

from __future__ import annotations

from dataclasses import dataclass

from flowdsl.ir.graph import NETWORK_OPS, Graph, Node
from flowdsl.spec.core import Kind

#: Operations through which no gradient passes.
BARRIERS = frozenset({"stop", "batch_mean", "rows"})


@dataclass(frozen=True)
class Gradient:
    """Per node: `carries`, the learned networks on which its value depends differentiably, and
    `wanted`, whether the loss depends differentiably on its value.
    """

    carries: tuple[frozenset[str], ...]
    wanted: tuple[bool, ...]

    def learns(self, at: int) -> frozenset[str]:
        """The networks that receive gradient through this node."""
        return self.carries[at] if self.wanted[at] else frozenset()


def gradient(graph: Graph) -> Gradient:
    """Analyse a graph."""
    none: frozenset[str] = frozenset()
    carries: list[frozenset[str]] = []
    for node in graph.nodes:
        if is_barrier(graph, node):
            carries.append(none)
        elif node.op in NETWORK_OPS:
            own = learned(graph, node)
            inside = none.union(*(carries[i] for i in differentiated(node)))
            carries.append((own | inside) if node.call.record else none)
        else:
            carries.append(none.union(*(carries[i] for i in node.inputs)))
    wanted = [False] * len(graph.nodes)
    for output in graph.outputs:
        wanted[output.loss] = True
    for at in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[at]
        if not wanted[at] or is_barrier(graph, node):
            continue
        if node.op in NETWORK_OPS and not node.call.record:
            continue
        for i in differentiated(node):
            wanted[i] = True
    return Gradient(tuple(carries), tuple(wanted))


def is_barrier(graph: Graph, node: Node) -> bool:
    """Whether no gradient passes through a node, whatever its inputs."""
    beside = node.op == "tangent" and graph[node.inputs[0]].op == "beside"
    return node.op in BARRIERS or node.kind is Kind.TRUTH or beside


def differentiated(node: Node) -> tuple[int, ...]:
    """The inputs through which gradient passes, if it passes at all: of a derivative without one,
    the direction is none.
    """
    return node.inputs[: node.call.point] if node.op == "beside" else node.inputs


def learned(graph: Graph, node: Node) -> frozenset[str]:
    """The network of a call, when its parameters are trained."""
    network = graph.objective.networks[node.call.network]
    trained = not network.frozen and network.average_of is None
    return frozenset({network.name}) if trained else frozenset()
