"""The order of the passes, and the protocol of what each of them gained."""

from __future__ import annotations

from collections.abc import Callable

from flowdsl.ir.graph import Graph, verify
from flowdsl.passes.decide import decide
from flowdsl.passes.fold import fold
from flowdsl.passes.program import Phase, Program

Pass = Callable[[Graph], Graph]

PASSES: tuple[tuple[str, Pass], ...] = (("fold", fold), ("decide", decide))


def run_passes(graph: Graph, *, optimize: bool = True, derivative: str = "exact") -> Program:
    """The program of a lowered graph."""
    if optimize:
        for _, apply in PASSES:
            graph = apply(graph)
            verify(graph)
    return Program(graph, (Phase("", (), graph),))
