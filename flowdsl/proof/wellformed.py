"""Can a map be a map at all? What it reads, and whether its network can tell what it must."""

from __future__ import annotations

from fractions import Fraction

from flowdsl.spec.core import (
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Null,
    Number,
    PathState,
    PathVelocity,
    transform,
    walk,
)
from flowdsl.spec.notation import Notation
from flowdsl.spec.objective import FlowMap, Objective


def flaw(objective: Objective, flow_map: FlowMap) -> tuple[str, str]:
    """Why a map cannot be one, and what would mend it; empty where nothing is wrong."""
    calls = [node for node in walk(flow_map.body) if isinstance(node, Evaluate)]
    if not calls:
        return "the map evaluates no network", "say how the network gives the landing point"
    foreign = _foreign(objective, flow_map, calls)
    if foreign:
        return (
            f"the map reads {foreign}, which is neither its state nor one of its times",
            f"write it in {_own(flow_map)} alone",
        )
    for call in calls:
        for found in (_unlearned(objective, call), _unseen(objective, flow_map, call)):
            if found[0]:
                return found
    return "", ""


def _own(flow_map: FlowMap) -> str:
    formals = (flow_map.state, flow_map.start, flow_map.end)
    names = [f.name for f in formals if isinstance(f, Formal)]
    return ", ".join(names)


def _foreign(objective: Objective, flow_map: FlowMap, calls: list[Evaluate]) -> str:
    """Something random that the map depends on and that no condition tells its network."""
    shown = {value: Formal(name, Kind.SCALAR) for call in calls for name, value in call.conditions}
    body = transform(flow_map.body, lambda node: shown.get(node, node))
    notation = Notation.of(objective)
    for outer in _outer(objective, flow_map):  # states first, whose times are else replaced in them
        body = _without(body, outer)
    for node in walk(body):
        match node:
            case PathState() | PathVelocity():
                return f"`{_text(node, notation)}`"
            case Given("data" | "noise" as name):
                return f"`{name}`"
            case Draw(name, Kind.TIME | Kind.STATE, _):
                return f"`{name}`"
    return ""


def _without(body: Expr, gone: frozenset[Expr]) -> Expr:
    return transform(body, lambda node: Number(Fraction(0)) if node in gone else node)


def _outer(objective: Objective, flow_map: FlowMap) -> tuple[frozenset[Expr], frozenset[Expr]]:
    """What an inner flow is conditioned on: states of the paths before its own, and their times.

    They stay as they are while the inner state moves. States and times of the map's own path are
    what its formals are for.
    """
    paths = list(objective.paths)
    before = paths[: paths.index(flow_map.path)]
    states = {n for n in walk(flow_map.body) if isinstance(n, PathState) and n.path in before}
    times = {t for n in states for t in walk(n.time) if isinstance(t, Draw)}
    return frozenset(states), frozenset(times)


def _text(node: Expr, notation: Notation) -> str:
    span = node.span
    if span is not None and "\n" not in span.text:
        return span.text
    return notation.text(node)


def _unlearned(objective: Objective, call: Evaluate) -> tuple[str, str]:
    """The map of a network that never learns."""
    network = objective.networks[call.network]
    if network.average_of is not None:
        return (
            f"the map is made of {call.network}, an average of {network.average_of}",
            f"write {network.average_of} in the map; an average is asked for with "
            f"`map(… | {network.average_of} = {call.network})`",
        )
    if "label" in network.conditions and dict(call.conditions).get("label") == Null():
        return (
            f"the map always shows {call.network} the null label",
            "leave the label out: it is then the row's own",
        )
    return "", ""


def _unseen(objective: Objective, flow_map: FlowMap, call: Evaluate) -> tuple[str, str]:
    """A network with room for all of the map's times that is not told one of them."""
    network = objective.networks[call.network]
    times = [f for f in (flow_map.start, flow_map.end) if isinstance(f, Formal)]
    room = sum(kind is not Kind.STATE for _, kind in network.arguments)
    if room < len(times):
        return "", ""
    told = {node for arg in call.args for node in walk(arg) if node in times}
    lost = [f.name for f in times if f not in told]
    if not lost:
        return "", ""
    return (
        f"the map never tells {call.network} its time {lost[0]}",
        f"show it {' and '.join(f.name for f in times)}",
    )
