"""What a network is shown beside the state and the times of its flow: that all conditions the flow.

A network v(y, s, r, x(t), t) of a map from y(s) to y(r) learns one ordinary flow for every outer
state x(t), the flow of E[velocity(y) | y(s), x(t)]: for each value of what else the network is
shown the data's law is the conditional one, and every identity of flow maps holds under it. So do
features: they are taken to tell all that the network which makes them is shown. Such arguments
become conditions, as a label is one.
"""

from __future__ import annotations

from collections.abc import Iterator

from flowdsl.calculus.errors import Undecided
from flowdsl.spec.core import Evaluate, Expr, Kind, PathState, Stop, walk
from flowdsl.spec.objective import FlowMap, Objective

NUMBERS = (Kind.TIME, Kind.SCALAR)


def places(objective: Objective, network: str) -> frozenset[int]:
    """The arguments of a network that have no part in its flow: states after the first, and numbers
    that belong to these or that the network's map holds fixed."""
    kinds = [kind for _, kind in objective.networks[network].arguments]
    states = [k for k, kind in enumerate(kinds) if kind is Kind.STATE]
    found = {*states[1:], *(k for k, kind in enumerate(kinds) if kind is Kind.FEATURES)}
    call = _map_call(objective, network)
    if call is not None:
        flow_map, inside = call
        formals = {flow_map.start, flow_map.end, flow_map.state}
        found |= {
            k
            for k, arg in enumerate(inside.args)
            if kinds[k] in NUMBERS and not formals & set(walk(arg))
        }
    elif states[1:]:
        found |= _times_of_others(objective, network, states)
    return frozenset(found)


def _map_call(objective: Objective, network: str) -> tuple[FlowMap, Evaluate] | None:
    """A map that jumps by this network, and the call inside it."""
    owner = objective.networks[network].average_of or network
    for flow_map in objective.maps.values():
        for node in walk(flow_map.body):
            if not isinstance(node, Evaluate) or node.network != owner:
                continue
            if any(n == flow_map.state for arg in node.args for n in walk(arg)):
                return flow_map, node
    return None


def _times_of_others(objective: Objective, network: str, states: list[int]) -> set[int]:
    """The numbers that are times of further states wherever the network is evaluated."""
    found: set[int] | None = None
    for node in _calls(objective, network):
        own = {n.time for n in walk(node.args[states[0]]) if isinstance(n, PathState)}
        others = {
            n.time for k in states[1:] for n in walk(node.args[k]) if isinstance(n, PathState)
        }
        here = {k for k, arg in enumerate(node.args) if arg in others and arg not in own}
        found = here if found is None else found & here
    return found or set()


def _calls(objective: Objective, network: str) -> Iterator[Evaluate]:
    for term in objective.terms:
        for expr in (term.prediction, term.target):
            for node in walk(expr) if expr is not None else ():
                if isinstance(node, Evaluate) and node.network == network:
                    yield node


def shown(objective: Objective, node: Evaluate) -> list[tuple[str, Expr]]:
    """What a call shows its network beside its flow's state and times, by name: the conditions, the
    further arguments, and what features are made of. Raises `Undecided` for two things of one name.
    """
    found: dict[str, Expr] = {}
    for name, value in _shown(objective, node):
        if found.setdefault(name, value) != value:
            raise Undecided(f"{node.network} is shown two different things named {name}", node.span)
    return list(found.items())


def _shown(objective: Objective, node: Evaluate) -> Iterator[tuple[str, Expr]]:
    named = objective.networks[node.network].arguments
    for name, value in node.conditions:
        if objective.kind(value) is Kind.FEATURES:
            yield from _features(objective, value)
        else:
            yield name, value
    for k in sorted(places(objective, node.network)):
        name, kind = named[k]
        if kind is Kind.FEATURES:
            yield from _features(objective, node.args[k])
        else:
            yield name, node.args[k]


def _features(objective: Objective, value: Expr) -> Iterator[tuple[str, Expr]]:
    """All that the network which makes these features is shown."""
    while isinstance(value, Stop):
        value = value.body
    if not isinstance(value, Evaluate):
        raise Undecided("features that no network gives", value.span)
    for (name, kind), arg in zip(
        objective.networks[value.network].arguments, value.args, strict=True
    ):
        if kind is Kind.FEATURES:
            yield from _features(objective, arg)
        else:
            yield name, arg
    for name, condition in value.conditions:
        if objective.kind(condition) is Kind.FEATURES:
            yield from _features(objective, condition)
        else:
            yield name, condition


def by_features(objective: Objective, node: Evaluate) -> bool:
    """Is the network shown anything by way of features?"""
    return any(objective.kind(value) is Kind.FEATURES for _, value in node.conditions)


def outer_states(objective: Objective, node: Evaluate) -> list[PathState]:
    """The states of paths that a call is conditioned on, in their order."""
    return [value for _, value in shown(objective, node) if isinstance(value, PathState)]


__all__ = ["by_features", "outer_states", "places", "shown"]
