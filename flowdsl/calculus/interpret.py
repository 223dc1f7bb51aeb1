"""Core expressions as states and scalars of the calculus.

The reader walks the very trees that are compiled. What a network computes is asked of a `Solution`;
what a path state is, of a `Sample`. Gradient is followed by one small generator η: a network that
learns computes `solution + η g` with a free test function g, `stop` sets η to 0, and the
coefficient of η is the variation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flowdsl.calculus.beside import by_features, shown
from flowdsl.calculus.context import Conditions, Context
from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.moment import moment_of
from flowdsl.calculus.scalar_reader import ScalarReader, describe
from flowdsl.calculus.state import State, Symbol
from flowdsl.spec.core import (
    Apply,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Null,
    PathState,
    PathVelocity,
    Stop,
    walk,
)
from flowdsl.spec.notation import Notation


class Solution(Protocol):
    """What the networks of an objective compute."""

    def value(self, call: Call) -> State: ...


@dataclass(frozen=True)
class NoNetwork:
    """A `Solution` for what no network may be evaluated in."""

    where: str

    def value(self, call: Call) -> State:
        raise Undecided(f"a network inside a {self.where}")


@dataclass(frozen=True)
class Call:
    """A network's head at a point; `live` when its parameters receive gradient here.

    `times` are those of its flow; what else it is shown is among the conditions. `moment` is the
    time of the point where its form tells it: what a network that is not shown this time is taken
    to read off its state.
    """

    network: str
    head: str
    conditions: Conditions
    point: State
    times: tuple[Element, ...]
    live: bool
    node: Evaluate
    moment: Element | None = None


class Sample(Protocol):
    """The random row: its path state is the symbol x, its data and noise follow from x and
    velocity."""

    @property
    def time(self) -> Element: ...

    def state(self, reader: Reader, node: PathState, live: bool) -> State: ...

    def velocity(self, reader: Reader, node: PathVelocity, live: bool) -> State: ...

    def end(self, name: str) -> State: ...

    def draw(self, node: Draw) -> State: ...


class Reader(ScalarReader):
    """Reads expressions in one setting: formals, a sample, and what the networks compute."""

    def __init__(
        self,
        context: Context,
        solution: Solution,
        sample: Sample | None = None,
        formals: Mapping[str, Element | State] | None = None,
    ) -> None:
        super().__init__(context, formals)
        self.solution = solution
        self.sample = sample
        self._states: dict[tuple[Expr, bool], State] = {}

    # states

    def state(self, expr: Expr, live: bool = True) -> State:
        """A state-kind expression; `live` says whether gradient may flow through it."""
        known = self._states.get((expr, live))
        if known is None:
            self.context.calculus.clock.look()
            known = self._states[expr, live] = self._state(expr, live)
        return known

    def _state(self, expr: Expr, live: bool) -> State:
        match expr:
            case PathState() if self.sample is not None:
                return self.sample.state(self, expr, live)
            case PathVelocity() if self.sample is not None:
                return self.sample.velocity(self, expr, live)
            case Given(name) if self.sample is not None and name in ("data", "noise"):
                return self.sample.end(name)
            case Draw(_, Kind.STATE, _) if self.sample is not None:
                return self.sample.draw(expr)
            case Formal(name, Kind.STATE):
                value = self.formals.get(name)
                if isinstance(value, State):
                    return value
            case Stop(body):
                return self.state(body, False)
            case Evaluate():
                return self._evaluate(expr, live)
            case Apply(op, args):
                return self._apply(expr, op, args, live)
        raise Undecided(f"nothing is known about {describe(expr)}", expr.span)

    def _apply(self, expr: Expr, op: str, args: tuple[Expr, ...], live: bool) -> State:
        match op:
            case "add":
                return self.state(args[0], live) + self.state(args[1], live)
            case "sub":
                return self.state(args[0], live) - self.state(args[1], live)
            case "neg":
                return -self.state(args[0], live)
            case "mul":
                first = self._is_state(args[0])
                vector, factor = args if first else reversed(args)
                return self.state(vector, live).scaled(self.scalar(factor))
            case "div":
                try:
                    return self.state(args[0], live).over(self.scalar(args[1]))
                except Pole:
                    raise Undecided("a division by zero", expr.span) from None
            case "clip":
                self.context.notes.add(
                    "clip is taken as the identity: it must not bind at the truth"
                )
                return self.state(args[0], live)
            case "select":
                raise Undecided("a selection that the case does not decide", expr.span)
        raise Undecided(f"{op} of a state is not linear in it", expr.span)

    def _is_state(self, expr: Expr) -> bool:
        return self.context.objective.kind(expr) is Kind.STATE

    # networks

    def _evaluate(self, node: Evaluate, live: bool) -> State:
        """A network, or its derivative along tangents: the coefficient of e1 … ek."""
        context = self.context
        network = context.objective.networks[node.network]
        point, moment = None, None
        times: list[Element] = []
        beside = context.beside(node.network)
        borrowed = [context.scalars.small(inside=True) for _ in node.directions]
        try:
            for k, ((_, kind), arg) in enumerate(zip(network.arguments, node.args, strict=True)):
                moves = [(e, d[k]) for e, d in zip(borrowed, node.directions, strict=True)]
                if k in beside:
                    self._still(node, k)
                elif kind is Kind.STATE and point is None:
                    point = self._moved_state(arg, moves, live)
                    moment = self.moment(arg, point, moves)
                elif kind in (Kind.TIME, Kind.SCALAR):
                    times.append(self._moved_scalar(arg, moves))
            if point is None:
                raise Undecided(f"{node.network} reads no state", node.span)
            learns = live and not network.frozen and network.average_of is None
            call = Call(node.network, node.head, self.conditions(node), point, tuple(times),
                        learns, node, moment)  # fmt: skip
            value = self.solution.value(call)
            for e in borrowed:
                value = context.series.coefficient(value, e, 1)
        except Pole:
            raise Undecided(f"{node.network} is evaluated where it has a pole", node.span) from None
        finally:
            for _ in borrowed:
                context.scalars.release()
        return value

    def _moved_state(self, arg: Expr, moves: list[tuple[int, Expr | None]], live: bool) -> State:
        point = self.state(arg, live)
        for e, tangent in moves:
            if tangent is not None:
                step = self.context.scalars.generator(e)
                point = point + self.state(tangent, live).scaled(step)
        return point

    def _still(self, node: Evaluate, k: int) -> None:
        """What a flow is conditioned on does not move with it, and passes no gradient."""
        name, _ = self.context.objective.networks[node.network].arguments[k]
        if any(direction[k] is not None for direction in node.directions):
            raise Undecided(f"{name}, by which the flow of {node.network} is conditioned, moves",
                            node.span)  # fmt: skip

    def moment(
        self, arg: Expr, point: State, moves: Sequence[tuple[int, Expr | None]] = ()
    ) -> Element | None:
        """The time of a network's state argument, moved along tangents; None where it is not
        known."""
        if self.sample is None:
            return None
        if not isinstance(arg, PathState) or self.sample.state(self, arg, False).only() is not None:
            return moment_of(self.context.calculus, point, {"x": self.sample.time})
        moment = self.scalar(arg.time)
        for e, tangent in moves:
            if tangent is None:
                continue
            if tangent != PathVelocity(arg.path, arg.time, arg.data, arg.noise):
                return None
            moment = moment + self.context.scalars.generator(e)
        return moment

    def _moved_scalar(self, arg: Expr, moves: list[tuple[int, Expr | None]]) -> Element:
        time = self.scalar(arg)
        for e, tangent in moves:
            if tangent is not None:
                time = time + self.scalar(tangent) * self.context.scalars.generator(e)
        return time

    def conditions(self, node: Evaluate) -> Conditions:
        """The conditions of a call, as keys: a label by its name, a number or a state by its
        value."""
        objective = self.context.objective
        if by_features(objective, node):
            self.context.notes.add(
                f"the features shown to {node.network} are taken to tell what they are made of"
            )
        return tuple((name, self._condition(value)) for name, value in shown(objective, node))

    def _condition(self, value: Expr) -> object:
        match value:
            case Null():
                return "null"
            case Given(name) | Draw(name, Kind.LABEL, _):
                return name
        if self.context.objective.kind(value) in (Kind.TIME, Kind.SCALAR):
            return self.scalar(value)
        if self.context.objective.kind(value) is Kind.STATE:
            return self._outer(value)
        raise Undecided("a condition that the calculus cannot name", value.span)

    def _outer(self, value: Expr) -> object:
        """A state on which a flow is conditioned: by its name where it is one of the row's, else by
        its value."""
        networks = self.context.objective.networks
        if any(isinstance(n, Evaluate) and not networks[n.network].frozen for n in walk(value)):
            raise Undecided("a flow that is conditioned on a state made by a network", value.span)
        if self.sample is None:
            return Notation().text(value)
        state = self.state(value, False)
        atom = state.only()
        return atom.name if isinstance(atom, Symbol) else state
