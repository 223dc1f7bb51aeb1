"""One random row: its path state is the symbol x, and given x only the velocity is random.

With z = α data + σ noise and velocity = α' data + σ' noise,

    data  = (σ' z - σ velocity) / W,   noise = (α velocity - α' z) / W,   W = α σ' - σ α',

so that the single centred noise ξ = velocity - E[velocity | z] carries all randomness, for any
path.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Context, Reader
from flowdsl.calculus.numbers import evaluate, path_weights
from flowdsl.calculus.state import State
from flowdsl.spec.core import (
    Draw,
    Evaluate,
    Expr,
    Given,
    PathState,
    PathVelocity,
    Stop,
    children,
    number,
    transform,
    walk,
)
from flowdsl.spec.objective import LawCall, Objective, Path
from flowdsl.truth.networks import Networks

X, XI = "x", "ξ"
#: Centred, and independent of each other and of the row's state (see `Row.end`, `Row.draw`).
NOISES = frozenset({XI, *(f"noise{chr(39) * k}" for k in range(9))})


class PathReader(Reader):
    """Reads a path's body at a time, with its ends as symbols."""

    def __init__(self, context: Context, networks: Networks, path: Path, time: Element) -> None:
        calculus = context.calculus
        ends = {name: calculus.symbol(f"path {name}") for name in ("data", "noise")}
        super().__init__(context, networks, None, {path.time: time, **ends})

    def weights(self, expr: Expr) -> tuple[Element, Element]:
        """The coefficients of data and noise."""
        value = self.state(expr)
        found = []
        for name in ("data", "noise"):
            atom = self.context.calculus.symbol(f"path {name}").only()
            assert atom is not None
            found.append(value.terms.get(atom, self.context.scalars.zero))
        if len(value.terms) > sum(1 for c in found if c):
            raise Undecided("the path is not linear in data and noise", expr.span)
        return found[0], found[1]


@dataclass(frozen=True)
class Row:
    """A row whose state `base` is the symbol x and whose mean velocity there is `marginal`."""

    context: Context
    networks: Networks
    base: PathState
    marginal: State

    def weights(self, name: str, time: Element, velocity: bool) -> tuple[Element, Element]:
        """The coefficients of data and noise in a path's state, or in its velocity."""
        path = self.context.objective.paths[name]
        reader = PathReader(self.context, self.networks, path, time)
        return reader.weights(path.velocity if velocity else path.body)

    def same_state(self, other: Row) -> bool:
        """Is the state that two rows condition on the same function of the same data, and of noise
        of the same law?"""
        if self.time != other.time or _made(self) != _made(other):
            return False
        return all(
            self.weights(self.base.path, self.time, velocity)
            == other.weights(other.base.path, other.time, velocity)
            for velocity in (False, True)
        )

    @cached_property
    def time(self) -> Element:
        return Reader(self.context, self.networks).scalar(self.base.time)

    @cached_property
    def random_velocity(self) -> State:
        """velocity = E[velocity | x] + ξ."""
        return self.marginal + self.context.calculus.symbol(XI)

    @cached_property
    def ends(self) -> tuple[State, State]:
        """Data and noise of the row, given x."""
        a, s = self.weights(self.base.path, self.time, False)
        da, ds = self.weights(self.base.path, self.time, True)
        w = a * ds - s * da
        if not w:
            raise Undecided("the path stands still: its state and velocity do not give its ends")
        x, velocity = self.context.calculus.symbol(X), self.random_velocity
        data = (x.scaled(ds) - velocity.scaled(s)).over(w)
        noise = (velocity.scaled(a) - x.scaled(da)).over(w)
        return data, noise

    def end(self, name: str) -> State:
        """`data` or `noise`: an end of the row's state, or a noise that has no part in it."""
        found = self._own_end(Given(name))
        if found is None and name == "noise":
            return self.context.calculus.symbol(name)
        if found is None:
            raise Undecided(f"`{name}` is no end of the state that the network sees")
        return found

    def draw(self, node: Draw) -> State:
        """A fresh noise: an end of the row's state, or independent of it with mean zero."""
        found = self._own_end(node)
        if found is not None:
            return found
        if not _centred(self.context.objective, node):
            raise Undecided(f"the law of {node.name} may have a mean", node.span)
        return self.context.calculus.symbol(node.name)

    def _own_end(self, expr: Expr) -> State | None:
        """The end of the row's state that this is; None when it has nothing to do with it."""
        for own, value in ((self.base.data, 0), (self.base.noise, 1)):
            if own == expr:
                return self.ends[value]
        if any(node == expr for own in (self.base.data, self.base.noise) for node in walk(own)):
            raise Undecided("the state that the network sees was made of this noise", expr.span)
        return None

    def state(self, reader: Reader, node: PathState) -> State:
        if node == self.base:
            return self.context.calculus.symbol(X)
        return self._combine(reader, node, self.weights(node.path, reader.scalar(node.time), False))

    def velocity(self, reader: Reader, node: PathVelocity) -> State:
        base = self.base
        same = (node.path, node.time, node.data, node.noise)
        if same == (base.path, base.time, base.data, base.noise):
            return self.random_velocity
        return self._combine(reader, node, self.weights(node.path, reader.scalar(node.time), True))

    def _combine(
        self, reader: Reader, node: PathState | PathVelocity, weights: tuple[Element, Element]
    ) -> State:
        data, noise = (self._end(reader, e) for e in (node.data, node.noise))
        return data.scaled(weights[0]) + noise.scaled(weights[1])

    def _end(self, reader: Reader, expr: Expr) -> State:
        if expr == self.base.data:
            return self.ends[0]
        if expr == self.base.noise:
            return self.ends[1]
        return reader.state(expr)


def _made(row: Row) -> Expr:
    """What stands in the place of the data, without stops that stop nothing."""
    data, objective = row.base.data, row.context.objective
    if live_calls(objective, data):
        return data
    return transform(data, lambda node: node.body if isinstance(node, Stop) else node)


def _numbers(objective: Objective, law: LawCall) -> list[float]:
    """A law's parameters; empty when some are no numbers."""
    constants = {name: float(value) for name, value in objective.constants.items()}
    try:
        return [evaluate(a, constants) for a in law.args if not isinstance(a, LawCall)]
    except Undecided:
        return []


def _centred(objective: Objective, node: Draw) -> bool:
    """Has a drawn noise the mean zero, by its law?"""
    for line in objective.draws[node.name].lines:
        numbers = _numbers(objective, line.law)
        if len(numbers) != 2 or line.law.law not in ("normal", "uniform"):
            return False
        if (numbers[0] if line.law.law == "normal" else sum(numbers)) != 0:
            return False
    return True


def check_law(objective: Objective, base: PathState) -> None:
    """Raises `Undecided` unless a state has the law of the path, with its own ends or with others.

    Data may be generated by networks: at the truth these have the law of the data. Noise may be
    drawn afresh, from the same law.
    """
    generated = any(isinstance(node, Evaluate) for node in walk(base.data))
    if base.data != Given("data") and not generated:
        raise Undecided("what stands in the place of the data has another law", base.data.span)
    if base.noise == Given("noise"):
        return
    if isinstance(base.noise, Draw):
        lines = objective.draws[base.noise.name].lines
        if all(
            line.law.law == "normal" and _numbers(objective, line.law) == [0.0, 1.0]
            for line in lines
        ):
            return
    raise Undecided("what stands in the place of the noise has another law", base.noise.span)


def live_nodes(expr: Expr) -> list[Evaluate]:
    """The evaluations of networks that are under no stop, in order."""
    found: dict[Evaluate, None] = {}
    seen: set[Expr] = set()

    def visit(node: Expr) -> None:
        if isinstance(node, Stop) or node in seen:
            return
        seen.add(node)
        for child in children(node):
            visit(child)
        if isinstance(node, Evaluate):
            found[node] = None

    visit(expr)
    return list(found)


def live_calls(objective: Objective, expr: Expr) -> list[Evaluate]:
    """The evaluations of learning networks through which gradient flows, in order."""
    networks = objective.networks
    return [
        node
        for node in live_nodes(expr)
        if not networks[node.network].frozen and networks[node.network].average_of is None
    ]


def learning_calls(objective: Objective, prediction: Expr, target: Expr | None) -> list[Evaluate]:
    """Where a term teaches: in its prediction, the outermost call first, then in its target."""
    calls = live_calls(objective, prediction)[::-1]
    return calls + (live_calls(objective, target)[::-1] if target is not None else [])


def taught(objective: Objective, prediction: Expr, target: Expr | None) -> Evaluate | None:
    """What a term teaches: the outermost live call of its prediction, or where that has none, as in
    `match noise to epsilon(z, t)`, of its target."""
    calls = learning_calls(objective, prediction, None)
    calls = calls or learning_calls(objective, prediction, target)
    return calls[0] if calls else None


def base_state(objective: Objective, prediction: Expr, target: Expr | None) -> PathState:
    """The path state that the learning network sees: the row is conditioned on it."""
    calls = learning_calls(objective, prediction, target)
    for arg in [arg for call in calls for arg in call.args]:
        if isinstance(arg, PathState):
            return arg
        if isinstance(arg, Given) and arg.name in ("data", "noise"):
            return end_state(objective, arg.name)
    for expr in [*calls, prediction, *([target] if target is not None else [])]:
        for node in walk(expr):
            if isinstance(node, PathState | PathVelocity):
                return PathState(node.path, node.time, node.data, node.noise, span=node.span)
    raise Undecided("no network here sees a state of the path", prediction.span)


def end_state(objective: Objective, name: str) -> PathState:
    """The path state that is `data` or `noise` itself: the path at one of its ends."""
    for path in objective.paths.values():
        for time in (0, 1):
            try:
                weights = path_weights(objective, path, float(time))
            except Undecided:
                continue
            if weights == ((1.0, 0.0) if name == "data" else (0.0, 1.0)):
                return PathState(path.state, number(time), Given("data"), Given("noise"))
    raise Undecided(f"`{name}` is not an end of the path")
