"""On the diagonal the map starts out with the velocity."""

from __future__ import annotations

from flowdsl.calculus.state import Calculus, MapAtom, State
from flowdsl.identities.identity import Identity, slope


def _rule(calculus: Calculus, atom: MapAtom) -> State | None:
    if atom.start != atom.end or atom.orders not in ((0, 1), (1, 0)):
        return None
    directions = [calculus.single(a) for a in atom.directions]
    velocity = calculus.velocity(atom.field, atom.point, atom.start, directions)
    # φ(x, t, t) = x does not move with t, so the two partial derivatives are opposite
    return velocity if atom.orders == (0, 1) else -velocity


IDENTITY = Identity(
    name="tangent",
    title="Tangent",
    statement="∂φ(x, t, s)/∂s at s = t is v(x, t)",
    source="Boffi, Albergo, Vanden-Eijnden 2025, How to build a consistency model, lemma 2.1",
    acts="a first time derivative of a map with equal times is the velocity at its base point",
    residual=lambda flow, x, t, s: slope(lambda q: flow.map(x, t, q), t) - flow.velocity(x, t),
    map_rule=_rule,
)
