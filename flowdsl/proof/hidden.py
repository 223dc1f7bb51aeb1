"""Labels that a target knows and the network that learns does not: they are averaged out.

Given the state, the velocity under a label has the velocity without one as its mean (and guidance
whose factors sum to 1 keeps that). Of a flow map, or of a velocity anywhere else, the mean over the
labels is not that of the flow without them: the label and the place are not independent there.
"""

from __future__ import annotations

from flowdsl.calculus.context import Conditions
from flowdsl.calculus.state import Field, FunctionAtom, State, VelocityAtom
from flowdsl.truth.sample import Row, X

HIDDEN = "label"


def averaged(row: Row, own: Conditions, state: State) -> State:
    """The state with the mean taken over a label that the learning network does not see."""
    calculus = row.context.calculus
    x = calculus.symbol(X)
    total = calculus.zero
    for atom, c in state.terms.items():
        term = calculus.single(atom)
        if isinstance(atom, VelocityAtom) and knows(atom.field):
            plain = not atom.directions and not atom.order
            if plain and atom.point == x and atom.time == row.time:
                kind, conditions = atom.field
                shown = dict(own)
                blind = tuple(
                    (n, shown[n] if v == HIDDEN else v)
                    for n, v in conditions
                    if v != HIDDEN or n in shown
                )
                term = calculus.velocity((kind, blind), x, row.time)
        total = total + term.scaled(c)
    return total


def knows(field: Field) -> bool:
    """Does a flow depend on the row's label?"""
    return any(value == HIDDEN for _, value in field[1])


def remains(state: State) -> bool:
    """Is anything left in a state that depends on the label?"""
    for atom in state.atoms():
        if isinstance(atom, FunctionAtom):
            if knows(atom.name):
                return True
        elif atom.parts is not None and knows(atom.field):  # type: ignore[attr-defined]
            return True
    return False
