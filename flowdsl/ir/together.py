"""Which network passes are made in one call."""

from __future__ import annotations

from flowdsl.ir.graph import Graph


def made_with(graph: Graph, at: int) -> tuple[int, ...]:
    """The passes that are made in one call with this one, itself among them, in order."""
    number = graph[at].call.together
    if not number:
        return (at,)
    return tuple(other for other in graph.calls() if graph[other].call.together == number)


def made(graph: Graph) -> list[tuple[int, ...]]:
    """The calls that are made: passes alone, or several in one."""
    return list(dict.fromkeys(made_with(graph, at) for at in graph.calls()))
