"""One flow in the place of another inside a state, reduced afresh."""

from __future__ import annotations

from collections.abc import Callable

from flowdsl.calculus.state import Atom, Calculus, Field, FunctionAtom, MapAtom, State, VelocityAtom


def renamed(calculus: Calculus, state: State, field: Callable[[Field], Field]) -> State:
    """The state with every flow and velocity of a field replaced by those of `field(…)`."""
    known: dict[Atom, State] = {}

    def visit(atom: Atom) -> State:
        if atom not in known:
            known[atom] = rebuilt(atom)
        return known[atom]

    def whole(inner: State) -> State:
        total = calculus.zero
        for atom, c in inner.terms.items():
            total = total + visit(atom).scaled(c)
        return total

    def rebuilt(atom: Atom) -> State:
        if atom.parts is None:
            return calculus.single(atom)
        point, atoms = whole(atom.parts[0]), atom.parts[2]
        directions = [visit(a) for a in atoms]
        match atom:
            case MapAtom(_, whose, _, start, end, _, orders):
                return calculus.flow(field(whose), point, start, end, directions, orders)
            case VelocityAtom(_, whose, _, time, order, _):
                return calculus.velocity(field(whose), point, time, directions, order)
            case FunctionAtom(_, whose, _, moments, orders, _):
                return calculus.function(whose, point, moments, directions, orders)
        raise AssertionError(type(atom).__name__)

    return whole(state)
