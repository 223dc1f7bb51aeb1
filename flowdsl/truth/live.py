"""Where gradient flows in a term: which evaluations of networks learn there."""

from __future__ import annotations

from flowdsl.spec.core import Evaluate, Expr, Stop, children
from flowdsl.spec.objective import Objective


def live_nodes(expr: Expr) -> list[Evaluate]:
    """The evaluations of networks that are under no stop, in order."""
    found: dict[Evaluate, None] = {}
    seen: set[Expr] = set()

    def visit(node: Expr) -> None:
        if isinstance(node, Stop) or node in seen:
            return
        seen.add(node)
        for child in children(node):
            visit(child)
        if isinstance(node, Evaluate):
            found[node] = None

    visit(expr)
    return list(found)


def live_calls(objective: Objective, expr: Expr) -> list[Evaluate]:
    """The evaluations of learning networks through which gradient flows, in order."""
    networks = objective.networks
    return [
        node
        for node in live_nodes(expr)
        if not networks[node.network].frozen and networks[node.network].average_of is None
    ]


def learning_calls(objective: Objective, prediction: Expr, target: Expr | None) -> list[Evaluate]:
    """Where a term teaches: in its prediction, the outermost call first, then in its target."""
    calls = live_calls(objective, prediction)[::-1]
    return calls + (live_calls(objective, target)[::-1] if target is not None else [])


def taught(objective: Objective, prediction: Expr, target: Expr | None) -> Evaluate | None:
    """What a term teaches: the outermost live call of its prediction, or where that has none, as in
    `match noise to epsilon(z, t)`, of its target."""
    calls = learning_calls(objective, prediction, None)
    calls = calls or learning_calls(objective, prediction, target)
    return calls[0] if calls else None
