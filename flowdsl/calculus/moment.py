"""When a point is: the time of a state, read off its normal form.

A network that is not shown the time of its state can still tell it where states of different times
look different, and what it computes at the truth depends on that time:

    x is at the row's time, φ(x, t, s) at s, and a point that moves along a velocity of the flow
    moves in time at speed 1: x + c v(x, t) is at t + c.

The centred noise does not move in time: z + c velocity is as late as z + c v.
"""

from __future__ import annotations

from collections.abc import Mapping

from flowdsl.calculus.field import Element
from flowdsl.calculus.state import Calculus, FunctionAtom, MapAtom, State, Symbol, VelocityAtom

CENTRED = "ξ"


def moment_of(calculus: Calculus, point: State, times: Mapping[str, Element]) -> Element | None:
    """The time of a point, or None where its form does not tell; `times` are those of symbols.

    A point that is scaled by a constant, as networks like to see it, is at the same time.
    """
    scalars = calculus.scalars
    total, points = scalars.zero, scalars.zero
    for atom, c in point.terms.items():
        match atom:
            case Symbol(_, name) if name in times:
                total, points = total + c * times[name], points + c
            case Symbol(_, name) if name == CENTRED:
                continue
            case FunctionAtom(_, (name, _)) if name.startswith("δ"):
                continue  # a change of a network is no motion in time
            case MapAtom(_, _, _, _, end, (), (0, 0)):
                total, points = total + c * end, points + c
            case VelocityAtom(_, _, _, _, 0, ()):
                total = total + c
            case _:
                return None
    if not points or scalars.generators_in(points) & set(scalars.smalls):
        return None
    return scalars.divide(total, points)
