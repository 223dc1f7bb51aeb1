"""What the passes make: one straight graph for each phase of training, and how to tell the phases
apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from flowdsl.ir.graph import Graph


@dataclass(frozen=True)
class Phase:
    """One graph, right whenever each of `given` holds: (node of the program's common graph, its
    value).
    """

    name: str
    given: tuple[tuple[int, Fraction | bool], ...]
    graph: Graph


@dataclass(frozen=True)
class Step:
    """One line of the passes' protocol: name, number of nodes and of network passes, cost in
    forward passes.
    """

    name: str
    phase: str
    nodes: int
    passes: int
    cost: float


@dataclass(frozen=True)
class Program:
    """The optimised loss. `written` is the graph before any pass; `common` is the graph in which
    phases are told apart; the last phase is the rest. `optimized` is false where no pass ran: the
    loss as anyone would write it down.
    """

    common: Graph
    phases: tuple[Phase, ...]
    steps: tuple[Step, ...] = field(default=(), compare=False)
    optimized: bool = True
    written: Graph | None = field(default=None, compare=False)

    def _repr_svg_(self) -> str:
        """The last phase's evaluations as a picture, for a notebook."""
        from flowdsl.ir.picture import svg

        return svg(self.phases[-1].graph)
