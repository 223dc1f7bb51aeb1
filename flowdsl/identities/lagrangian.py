"""The end time moves: the map is the solution of the differential equation."""

from __future__ import annotations

from collections.abc import Iterator

from flowdsl.calculus.state import Atom, Calculus, MapAtom, State
from flowdsl.identities.identity import Identity, slope


def partitions(items: tuple[Atom, ...]) -> Iterator[list[tuple[Atom, ...]]]:
    """Every way to divide the items, told apart by position, into non-empty blocks."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for smaller in partitions(rest):
        yield [(first,), *smaller]
        for k, block in enumerate(smaller):
            yield [*smaller[:k], (first, *block), *smaller[k + 1 :]]


def _rule(calculus: Calculus, atom: MapAtom) -> State:
    """State derivatives of v(φ, s) by the chain rule of every order (Faà di Bruno)."""

    def flow(block: tuple[Atom, ...]) -> State:
        directions = [calculus.single(a) for a in block]
        return calculus.flow(atom.field, atom.point, atom.start, atom.end, directions)

    landing = flow(())
    total = calculus.zero
    for blocks in partitions(atom.directions):
        directions = [flow(block) for block in blocks]
        total = total + calculus.velocity(atom.field, landing, atom.end, directions)
    return total


IDENTITY = Identity(
    name="lagrangian",
    title="Lagrangian",
    statement="∂φ(x, t, s)/∂s = v(φ(x, t, s), s)",
    source="the flow's ordinary differential equation; Boffi et al. 2024, Flow map matching, eq. 8",
    acts="the derivative of a map in its end time is the velocity where it lands",
    residual=lambda flow, x, t, s: (
        slope(lambda q: flow.map(x, t, q), s) - flow.velocity(flow.map(x, t, s), s)
    ),
    end_rule=_rule,
)
