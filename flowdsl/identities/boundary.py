"""The map from a time to the same time moves nothing."""

from __future__ import annotations

from flowdsl.calculus.state import Calculus, MapAtom, State
from flowdsl.identities.identity import Identity


def _rule(calculus: Calculus, atom: MapAtom) -> State | None:
    if atom.start != atom.end or atom.orders != (0, 0):
        return None
    if not atom.directions:
        return atom.point
    if len(atom.directions) == 1:
        return calculus.single(atom.directions[0])
    return calculus.zero


IDENTITY = Identity(
    name="boundary",
    title="Boundary",
    statement="φ(x, t, t) = x",
    source="definition of the flow; consistency models build it in: Song et al. 2023, eq. 5",
    acts="a map with equal times is its base point, its Jacobian the identity, its Hessian zero",
    residual=lambda flow, x, t, s: flow.map(x, t, t) - x,
    map_rule=_rule,
)
