"""What the networks compute on the rows of one case when training has succeeded.

Other flows can be put in the place of the truth, to see whether they pass as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flowdsl.calculus.context import Conditions, Context, numbers_in
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Call
from flowdsl.calculus.state import Field, State
from flowdsl.spec.core import Evaluate
from flowdsl.truth.learnt import Regression
from flowdsl.truth.maps import MapNetwork

Marginal = Callable[[Conditions, State, Element], State]
APART = ("still apart", "any apart")  #: maps that are the truth on the diagonal alone


@dataclass
class Networks:
    """A `Solution`: every network at the truth, or with another flow in its place.

    `kind` is whose flow the maps are solved for: "flow" (the truth), "hat" (any other), "zero" (no
    motion), "constant" (one landing point for all), "free" (networks about which nothing is known),
    "still apart" and "any apart" (the truth where a map's times are equal, elsewhere no motion, or
    a map about which nothing is known).
    """

    context: Context
    kind: str
    maps: dict[str, MapNetwork]  # by network
    marginal: Marginal  # the velocity of the data under conditions: what teachers know
    regression: dict[str, Regression] = field(default_factory=dict)  # by head
    aliases: dict[str, str] = field(default_factory=dict)  # names shared with another objective
    elsewhere: Callable[[State], State] | None = None  # velocities that other rows determine
    own: Conditions = ()  # under which the learning network sees the row
    lesson: Callable[[str], Regression | None] | None = None  # of frozen networks, from stages
    _known: dict[object, State] = field(default_factory=dict)

    def value(self, call: Call) -> State:
        owner, head = self.context.objective.origin(call.network, call.head)
        key = (owner, head, call.conditions, call.point, call.times, call.moment)
        known = self._known.get(key)
        if known is None:
            known = self._value(call, owner, head)
            if self.elsewhere is not None and call.conditions:
                known = self.elsewhere(known)
            self._known[key] = known
            if self.kind == "flow" and not self._teaches(owner):
                self._shown(call, known)
        if not call.live:
            return known
        test = self.context.calculus.function(
            (f"δ{self._name(owner, head)}", call.conditions), call.point, call.times
        )
        return known + test.scaled(self.context.scalars.generator(self.context.eta))

    def _teaches(self, owner: str) -> bool:
        """Is this a frozen velocity? It is the data's, whatever flow its guided forms make of
        it."""
        return self.context.objective.networks[owner].frozen and owner not in self.maps

    def _shown(self, call: Call, value: State) -> None:
        """A network can only compute what it sees: state, times and conditions."""
        scalars, series = self.context.scalars, self.context.series
        seen = set(series.generators_in(call.point))
        for _, given in call.conditions:
            if isinstance(given, State):
                seen |= series.generators_in(given)
        if call.moment is not None:  # told by the state itself
            seen |= scalars.generators_in(call.moment)
        for shown in (*call.times, *numbers_in(call.conditions).values()):
            seen |= scalars.generators_in(shown)
        hidden = (series.generators_in(value) & self.context.drawn) - seen
        if hidden:
            names = ", ".join(scalars.name_of(i) for i in sorted(hidden))
            raise Undecided(f"{call.head} is not shown {names}, on which its target depends",
                            call.node.span)  # fmt: skip

    def jumps(self, node: Evaluate) -> bool:
        """Is this an evaluation of the head by which a map jumps?"""
        owner, head = self.context.objective.origin(node.network, node.head)
        return owner in self.maps and self.maps[owner].shape.call.head == head

    def _name(self, owner: str, head: str) -> str:
        """What a network is called where nothing is known about it: each head is another one."""
        name = self.aliases.get(owner, owner)
        several = len(self.context.objective.networks[owner].heads) > 1
        return f"{name}.{head}" if several else name

    def _value(self, call: Call, owner: str, head: str) -> State:
        if self.kind == "free":
            return self.context.calculus.function(
                (self._name(owner, head), call.conditions), call.point, call.times
            )
        if owner in self.maps and self.maps[owner].shape.call.head == head:
            kept = self.context.objective.networks[owner].frozen  # a teacher, whoever else moves
            return self.maps[owner].solve(call, self.true_landing if kept else self.landing)
        if head in self.regression:
            return self.regression[head].value(self.context, self.velocity, call)
        if self._teaches(owner) and self.lesson is not None:
            lesson = self.lesson(owner)
            if lesson is not None:
                return lesson.value(self.context, self._taught, call)
        if owner not in self.maps and len(call.times) == 1:
            if self._teaches(owner):
                return self._taught(call.conditions, call.point, call.times[0])
            if not self.maps:
                return self.marginal(call.conditions, call.point, call.times[0])
            # a critic of generated samples: these have the law that the flow carries
            return self.context.calculus.velocity(
                ("flow", call.conditions), call.point, call.times[0]
            )
        raise Undecided(f"it is not known what {head} computes at the truth", call.node.span)

    def _taught(self, conditions: Conditions, point: State, time: Element) -> State:
        """The data's velocity, as a teacher under these conditions knows it."""
        return self.marginal(self._as_own(conditions), point, time)

    def _as_own(self, conditions: Conditions) -> Conditions:
        """The row's own conditions, where a teacher sees all of them but numbers.

        Numbers are drawn without the data: the mean velocity given a state and a label is the same
        whether or not one also knows a guidance scale.
        """
        seen = dict(conditions)
        rest = {name: value for name, value in self.own if name not in seen}
        same = all(dict(self.own).get(name, self) == value for name, value in seen.items())
        return (
            self.own if same and not any(isinstance(v, str) for v in rest.values()) else conditions
        )

    def landing(self, conditions: Conditions, point: State, start: Element, end: Element) -> State:
        calculus = self.context.calculus
        if self.kind == "constant":
            return calculus.symbol("c")
        if self.kind in APART:
            if self._meet(start, end):
                return calculus.flow(("flow", conditions), point, start, end)
            if self.kind == "still apart":
                return point
            return calculus.function(("F", conditions), point, (start, end))
        return calculus.flow((self.kind, conditions), point, start, end)

    def velocity(self, conditions: Conditions, point: State, time: Element) -> State:
        """The velocity of the flow that the networks of maps stand for."""
        if self.kind == "constant":
            raise Undecided("a constant map has no velocity")
        kind = "flow" if self.kind in APART else self.kind
        return self.context.calculus.velocity((kind, conditions), point, time)

    def true_landing(
        self, conditions: Conditions, point: State, start: Element, end: Element
    ) -> State:
        """Where the data's own flow lands."""
        return self.context.calculus.flow(("flow", conditions), point, start, end)

    def _meet(self, start: Element, end: Element) -> bool:
        """Are two times equal, small steps apart from each other?"""
        scalars, apart = self.context.scalars, end - start
        for step in scalars.smalls:
            apart = scalars.at_zero(apart, step)
        return not apart


def data_field(conditions: Conditions) -> Field:
    """The field of the data's own velocity under conditions."""
    return ("data", conditions)
