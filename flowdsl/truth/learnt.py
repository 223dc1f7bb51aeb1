"""What a network has learnt by one-time regression, at any state and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flowdsl.calculus.context import Conditions, Context
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Call
from flowdsl.calculus.preimage import preimage
from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.state import State

Velocity = Callable[[Conditions, State, Element], State]


@dataclass(frozen=True)
class Regression:
    """A network that sees c(t) z and g(t), and predicts p(t) z + q(t) v(z, t).

    `time` is t where it was solved for, a generator of its own index where the row's time is drawn;
    `shown` is g there and `place` says which of the network's times it is, None where the network
    sees no time.
    """

    time: Element
    index: int | None
    p: Element
    q: Element
    place: int | None
    scale: Element
    shown: Element

    def value(self, context: Context, velocity: Velocity, call: Call) -> State:
        """The network's value, with this velocity in the place of the data's.

        Raises `Undecided` where the time of the call is not known.
        """
        time = self._moment(context, call)
        if self.place is None:
            context.notes.add(hidden_time(call.network))
        scale, p, q = (self.at(context.scalars, x, time) for x in (self.scale, self.p, self.q))
        point = call.point.over(scale)
        return point.scaled(p) + velocity(call.conditions, point, time).scaled(q)

    def at(self, scalars: Scalars, x: Element, time: Element) -> Element:
        """A function of the time it was solved at, at another time."""
        if time == self.time:
            return x
        if self.index is None:
            raise Undecided("a network at a time that is not drawn")
        return scalars.substitute(x, self.index, time)

    def _moment(self, context: Context, call: Call) -> Element:
        """The time t for which g(t) is what the call shows."""
        if self.place is None:
            if call.moment is None:
                raise Undecided("the time of the state is not known here", call.node.span)
            return call.moment
        shown = call.times[self.place]
        if self.shown == self.time:
            return shown
        hints = [self.time] if call.moment is None else [self.time, call.moment]
        time = None
        if self.index is not None:
            time = preimage(context.scalars, self.shown, self.index, shown, hints)
        if time is None:
            raise Undecided(f"the time is not known at which {call.head} sees this", call.node.span)
        return time


def hidden_time(network: str) -> str:
    """The assumption under which a network that does not see a time can learn at all."""
    return f"{network} is not shown the time of its state: it is taken to tell it from the state"
