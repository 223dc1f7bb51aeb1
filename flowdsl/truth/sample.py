"""One random row: its path state is the symbol x, and given x only the velocity is random.

With z = α data + σ noise and velocity = α' data + σ' noise,

    data  = (σ' z - σ velocity) / W,   noise = (α velocity - α' z) / W,   W = α σ' - σ α',

so that the single centred noise ξ = velocity - E[velocity | z] carries all randomness, for any
path. Where a network is shown further states the same holds given these: they are symbols too, and
what the data and noises are follows from all of them (see known.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from flowdsl.calculus.context import Context
from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Reader, Solution
from flowdsl.calculus.numbers import evaluate, path_weights
from flowdsl.calculus.state import State
from flowdsl.spec.core import (
    Apply,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    PathState,
    PathVelocity,
    Stop,
    number,
    transform,
    walk,
)
from flowdsl.spec.notation import Notation
from flowdsl.spec.objective import LawCall, Objective, Path
from flowdsl.truth.known import Combination, Known
from flowdsl.truth.live import learning_calls, live_calls

X, XI = "x", "ξ"
#: Centred, and independent of each other and of the row's state (see `Row.end`, `Row.draw`).
NOISES = frozenset({XI, *(f"noise{chr(39) * k}" for k in range(9))})


class PathReader(Reader):
    """Reads a path's body at a time, with its ends and what else it is made of as symbols."""

    def __init__(self, context: Context, networks: Solution, path: Path, time: Element) -> None:
        self.leaves: dict[Expr, State] = {}
        ends = {name: self._leaf(context, Formal(name, Kind.STATE)) for name in ("data", "noise")}
        super().__init__(context, networks, None, {path.time: time, **ends})

    def _leaf(self, context: Context, leaf: Formal | Draw) -> State:
        return self.leaves.setdefault(leaf, context.calculus.symbol(f"path {leaf.name}"))

    def _state(self, expr: Expr, live: bool) -> State:
        if isinstance(expr, Draw) and expr.kind is Kind.STATE:
            return self._leaf(self.context, expr)
        return super()._state(expr, live)

    def weights(self, expr: Expr) -> dict[Expr, Element]:
        """The coefficients of the path's ends, and of other noises in it."""
        value = self.state(expr)
        found = {}
        for leaf, symbol in self.leaves.items():
            atom = symbol.only()
            assert atom is not None
            if atom in value.terms:
                found[leaf] = value.terms[atom]
        if len(value.terms) > len(found):
            raise Undecided("the path is not linear in data and noise", expr.span)
        return found


@dataclass(frozen=True)
class Row:
    """A row whose state `base` is the symbol x and whose mean velocity there is `marginal`.

    `given` are the other states that its network is shown: given these too, the data and noises
    that all of them are made of follow from what is seen and from the velocity, as far as they do.
    """

    context: Context
    networks: Solution
    base: PathState
    marginal: State
    given: tuple[PathState, ...] = ()

    def made_of(self, node: PathState | PathVelocity) -> dict[Expr, Element]:
        """A path's state, or its velocity, as a combination of data, noises and what stands in
        their places."""
        weights = self._weights(node)
        ends = {"data": node.data, "noise": node.noise}
        total: dict[Expr, Element] = {}
        for leaf, c in weights.items():
            end = ends[leaf.name] if isinstance(leaf, Formal) else leaf
            for part, share in self._parts(end).items():
                term = self.context.scalars.product(c, share)
                total[part] = total[part] + term if part in total else term
        return total

    def _parts(self, expr: Expr) -> dict[Expr, Element]:
        """What stands at a path's end, as a combination of what cannot be taken apart."""
        one = self.context.scalars.one
        match expr:
            case PathState():
                return self.made_of(expr)
            case Apply("add" | "sub" as op, (a, b)):
                total = dict(self._parts(a))
                for part, c in self._parts(b).items():
                    c = c if op == "add" else -c
                    total[part] = total[part] + c if part in total else c
                return total
            case Apply("neg", (a,)):
                return {part: -c for part, c in self._parts(a).items()}
        return {expr: one}

    def _scalar(self, expr: Expr) -> Element:
        return Reader(self.context, self.networks).scalar(expr)

    def same_state(self, other: Row) -> bool:
        """Is the state that two rows condition on the same function of the same data, and of noise
        of the same law?"""
        if self.time != other.time or _made(self) != _made(other):
            return False
        return self._forms() == other._forms()

    def _forms(self) -> list[dict[Expr, Element]]:
        """How each state that is seen, and the velocity, is made of the ends of its path."""
        seen: list[PathState | PathVelocity] = [self.base, self.velocity_of_base, *self.given]
        return [self._weights(node) for node in seen]

    def _weights(self, node: PathState | PathVelocity) -> dict[Expr, Element]:
        path = self.context.objective.paths[node.path]
        reader = PathReader(self.context, self.networks, path, self._scalar(node.time))
        return reader.weights(path.body if isinstance(node, PathState) else path.velocity)

    @cached_property
    def time(self) -> Element:
        return self._scalar(self.base.time)

    @property
    def velocity_of_base(self) -> PathVelocity:
        base = self.base
        return PathVelocity(base.path, base.time, base.data, base.noise)

    @cached_property
    def random_velocity(self) -> State:
        """velocity = E[velocity | x] + ξ."""
        return self.marginal + self.context.calculus.symbol(XI)

    @cached_property
    def known(self) -> Known:
        """What the row's states say about its data and noises."""
        calculus = self.context.calculus
        found = Known(self.context.scalars, calculus.zero)
        found.add(self.made_of(self.base), calculus.symbol(X))
        if found.add(self.made_of(self.velocity_of_base), self.random_velocity) is not None:
            raise Undecided("the path stands still: its state and velocity do not give its ends")
        for state in self.given:
            if found.add(self.made_of(state), calculus.symbol(outer_name(state))):
                raise Undecided(
                    f"given {outer_name(state)}, nothing of {self.base.path} is random: both are "
                    "made of the same data and noise",
                    state.span,
                )
        return found

    @cached_property
    def fresh(self) -> list[Given | Draw]:
        """The noises from which the row's flow starts: each stands alone at an end of its path."""
        found: list[Given | Draw] = []
        for time in (0, 1):
            end = PathState(self.base.path, number(time), self.base.data, self.base.noise)
            try:
                made = {leaf: c for leaf, c in self.made_of(end).items() if c}
            except (Undecided, Pole):
                continue
            if len(made) == 1:
                (leaf,) = made
                if isinstance(leaf, Draw) or (isinstance(leaf, Given) and leaf.name == "noise"):
                    found.append(leaf)
        return found

    def reused(self) -> tuple[Expr, PathState] | None:
        """A noise from which the row's flow starts and of which a state is made by which it is
        conditioned: given that state the noise has another law."""
        for state in self.given:
            inside = {node for leaf in self.made_of(state) for node in walk(leaf)}
            for leaf in self.fresh:
                if leaf in inside:
                    return leaf, state
        return None

    def end(self, name: str) -> State:
        """`data` or `noise`: an end of the row's state, or a noise that has no part in it."""
        return self._leaf(Given(name))

    def draw(self, node: Draw) -> State:
        """A fresh noise: an end of the row's state, or independent of it with mean zero."""
        return self._leaf(node)

    def _leaf(self, leaf: Given | Draw) -> State:
        return self._read({leaf: self.context.scalars.one}, None)

    def _read(self, combination: Combination, reader: Reader | None, live: bool = False) -> State:
        """A combination of data and noises, given what the network is shown."""
        rest, total = self.known.reduce(combination)
        for leaf, c in rest.items():
            total = total + self._free(leaf, reader, live).scaled(c)
        return total

    def _free(self, leaf: Expr, reader: Reader | None, live: bool) -> State:
        """What no state of the row tells: a noise that has no part in them."""
        if any(leaf == node for own in self.known.leaves for node in walk(own)):
            raise Undecided("the state that the network sees was made of this noise", leaf.span)
        match leaf:
            case Given("noise"):
                return self.context.calculus.symbol("noise")
            case Given(name):
                raise Undecided(f"`{name}` is no end of the state that the network sees")
            case Draw(name):
                if not _centred(self.context.objective, leaf):
                    raise Undecided(f"the law of {name} may have a mean", leaf.span)
                return self.context.calculus.symbol(name)
        if reader is None:
            raise Undecided("nothing is known about an end of a path", leaf.span)
        return reader.state(leaf, live)

    def state(self, reader: Reader, node: PathState, live: bool) -> State:
        if node == self.base:
            return self.context.calculus.symbol(X)
        if node in self.given:
            return self.context.calculus.symbol(outer_name(node))
        return self._read(self.made_of(node), reader, live)

    def velocity(self, reader: Reader, node: PathVelocity, live: bool) -> State:
        if node == self.velocity_of_base:
            return self.random_velocity
        return self._read(self.made_of(node), reader, live)


def outer_name(state: PathState) -> str:
    """The symbol of a state on which a row is conditioned, as the spec writes it."""
    return Notation().text(state)


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


def _standard(objective: Objective, noise: Expr) -> bool:
    """Is this normal noise of mean 0 and variance 1, or its mirror image, which has the same
    law?"""
    while isinstance(noise, Stop) or (isinstance(noise, Apply) and noise.op == "neg"):
        noise = noise.parts[0]
    if not isinstance(noise, Draw):
        return noise == Given("noise")
    return all(
        line.law.law == "normal" and _numbers(objective, line.law) == [0.0, 1.0]
        for line in objective.draws[noise.name].lines
    )


def check_law(objective: Objective, base: PathState) -> None:
    """Raises `Undecided` unless a state has the law of the path, with its own ends or with others.

    Data may be generated by networks: at the truth these have the law of the data. Noise may be
    drawn afresh, from the same law.
    """
    generated = any(isinstance(node, Evaluate) for node in walk(base.data))
    if base.data != Given("data") and not generated:
        raise Undecided("what stands in the place of the data has another law", base.data.span)
    path = objective.paths[base.path]
    inner = [n for n in walk(path.body) if isinstance(n, Draw) and n.kind is Kind.STATE]
    if all(_standard(objective, noise) for noise in (base.noise, *inner)):
        return
    raise Undecided("what stands in the place of the noise has another law", base.noise.span)


def base_state(objective: Objective, prediction: Expr, target: Expr | None) -> PathState:
    """The path state that the learning network sees: the row is conditioned on it."""
    calls = learning_calls(objective, prediction, target)
    for arg in [arg for call in calls for arg in call.args]:
        while isinstance(arg, Stop):
            arg = arg.body
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
