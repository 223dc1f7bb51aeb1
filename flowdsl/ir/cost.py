"""What a training step costs, in units of one forward pass of the network over the whole batch (F).

Counted are network passes only; everything else is pointwise. Row sets count by their share of the
batch, exact for shares, estimated from the laws otherwise. A network with several outputs counts
whole, though it may be asked for one of them: how much these share is the network's affair.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowdsl.ir.cells import Cells, analyse
from flowdsl.ir.gradient import gradient, learned
from flowdsl.ir.graph import Graph, Node

#: The reverse pass of a forward pass, by matrix products: one for the inputs, one for the weights.
BACKWARD = 2.0
#: The same where only the inputs need gradient.
BACKWARD_INPUTS = 1.0


@dataclass(frozen=True)
class Prices:
    """What a derivative costs together with its value, and the reverse pass through both, in F."""

    derivative: float
    backward: float

    @property
    def tangent(self) -> float:
        """The derivative alone, where the value is at hand."""
        return self.derivative - 1


#: `torch.func.jvp` multiplies by the tangents of the weights, which are zero (pytorch#69687).
PLAIN = Prices(3.0, 5.0)
#: With the rules of the runtime, which do not; attention takes a little more than its share.
RULES = Prices(2.1, 4.1)
#: A central difference: two forward passes.
DIFFERENCE = Prices(2.0, 2 * BACKWARD)


@dataclass(frozen=True)
class Cost:
    """Forward passes, forward-mode passes (or differences), and reverse passes, each in F."""

    forwards: float = 0.0
    derivatives: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forwards + self.derivatives + self.backward

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards + other.forwards,
            self.derivatives + other.derivatives,
            self.backward + other.backward,
        )

    def __str__(self) -> str:
        return (
            f"{self.total:.2f} F ({self.forwards:.2f} forward, {self.derivatives:.2f} derivative, "
            f"{self.backward:.2f} backward)"
        )


def cost(graph: Graph, prices: Prices = RULES, cells: Cells | None = None) -> Cost:
    """The cost of one step."""
    cells = cells or analyse(graph)
    flow = gradient(graph)
    total = Cost()
    for at in graph.calls():
        node = graph[at]
        share = cells.share(rows_of(graph, cells, at)) if node.rows is not None else 1.0
        # a graph that is recorded and never run backwards costs memory, not passes
        total += pass_cost(graph, node, share, prices, bool(flow.learns(at)))
    return total


def pass_cost(
    graph: Graph, node: Node, share: float, prices: Prices = RULES, reverse: bool | None = None
) -> Cost:
    """The cost of one network pass on a share of the batch; `reverse` says whether gradient runs
    back through it (by default: where a graph is kept).
    """
    call = node.call
    reverse = call.record if reverse is None else reverse
    order = len(call.directions)
    if order == 0 or node.op == "beside":
        back = BACKWARD if learned(graph, node) else BACKWARD_INPUTS
        tangent = prices.tangent if node.op == "beside" else 0.0
        return Cost(share, tangent * share, back * share if reverse else 0.0)
    again = (order - 1) * prices.derivative
    total = (prices.derivative + again) * share
    return Cost(0.0, total, (prices.backward + again) * share if reverse else 0.0)


def rows_of(graph: Graph, cells: Cells, at: int) -> int:
    """The cases in which the rows of a network pass lie."""
    rows = graph[at].rows
    if rows is None:
        return cells.all
    mask = graph[rows].inputs[0]
    return sum(1 << k for k, holds in enumerate(_where(graph, cells, mask)) if holds)


def _where(graph: Graph, cells: Cells, mask: int) -> list[bool]:
    """In which cases a condition holds (or might)."""
    node = graph[mask]
    if mask in cells.atoms:
        index = cells.atoms.index(mask)
        return [bool(case >> index & 1) for case in cells.cases]
    parts = [_where(graph, cells, i) for i in node.inputs]
    match node.op:
        case "not":
            return [not a for a in parts[0]]
        case "and":
            return [a and b for a, b in zip(*parts, strict=True)]
        case "or":
            return [a or b for a, b in zip(*parts, strict=True)]
        case "false":
            return [False] * len(cells.cases)
    return [True] * len(cells.cases)
