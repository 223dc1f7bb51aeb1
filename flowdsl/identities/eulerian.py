"""The start time moves: along a trajectory the landing point stays."""

from __future__ import annotations

from itertools import chain, combinations

from flowdsl.calculus.state import Calculus, MapAtom, State
from flowdsl.identities.identity import Identity, slope


def _rule(calculus: Calculus, atom: MapAtom) -> State:
    """State derivatives of -J φ[v] by the product rule: each direction acts on φ or on v."""
    count = len(atom.directions)
    places = range(count)
    total = calculus.zero
    for chosen in chain.from_iterable(combinations(places, k) for k in range(count + 1)):
        on_velocity = [calculus.single(atom.directions[k]) for k in chosen]
        on_map = [calculus.single(atom.directions[k]) for k in places if k not in chosen]
        velocity = calculus.velocity(atom.field, atom.point, atom.start, on_velocity)
        total = total - calculus.flow(
            atom.field, atom.point, atom.start, atom.end, [*on_map, velocity]
        )
    return total


IDENTITY = Identity(
    name="eulerian",
    title="Eulerian",
    statement="∂φ(x, t, s)/∂t + J φ(x, t, s)[v(x, t)] = 0",
    source="Boffi et al. 2024, Flow map matching, eq. 9; Geng et al. 2025, Mean Flows, eq. 6",
    acts="the derivative of a map in its start time is minus its Jacobian on the velocity there",
    residual=lambda flow, x, t, s: (
        slope(lambda q: flow.map(x, q, s), t)
        + slope(lambda y: flow.map(y, t, s), x) * flow.velocity(x, t)
    ),
    start_rule=_rule,
)
