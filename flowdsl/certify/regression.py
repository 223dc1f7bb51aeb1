"""Networks that learn a conditional mean at one time, and those that are given as guides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.inverse import SHOWN, Reading, readings
from flowdsl.certify.means import Shown
from flowdsl.certify.numbers import Numbers
from flowdsl.certify.places import Place
from flowdsl.exact.networks import Truth
from flowdsl.exact.told import Telling


@dataclass(frozen=True)
class Regression:
    """A network that learns `p x + q v` at one time: the conditional mean of its target."""

    place: Place
    network: str
    head: str
    reading: Reading | None  # the time of its state from those it sees; None: it tells it itself

    def time(self, numbers: Numbers, shown: Sequence[Tensor], told: Tensor | None) -> Tensor:
        """The time of its state where it sees these times; `told` is what the state tells."""
        if self.reading is None:
            if told is None:
                raise Uncertified(f"{self.network} is not shown the time of its state")
            return told
        seen = shown[self.reading.place]
        if self.reading.tree == SHOWN:
            return seen
        return numbers.rows(self.reading.tree, {SHOWN: seen}, seen)


class Guide(Protocol):
    """A network given from outside, at the truth of the stage that it comes from."""

    def truth(self, telling: Telling | None) -> Truth:
        """What it computes."""
        ...

    def value(self, shown: Shown, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At its state, as multiples of the state and of the velocity there; and its time."""
        ...


def reading_of(place: Place) -> Reading | None:
    """The time of the state that a place's learner sees, from the times that it is shown; None
    where it has to tell it from the state."""
    found = readings(place.learner.args[1:], [place.base.time])
    return None if found is None else found[0]
