"""The mean of a tree given the row's state: how much of the state, of the velocity, of networks.

Given z(t) = x, data and noise are linear in x and the velocity, and the mean of the velocity is the
marginal one. So the mean of a tree that is linear in all of these needs no more than factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.linear import Combination, combination, folded, plus, scaled
from flowdsl.certify.numbers import Numbers
from flowdsl.certify.places import Place, label_of, state_argument
from flowdsl.exact.paths import AffinePath
from flowdsl.spec.core import (
    ONE,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Level,
    Null,
    PathState,
    PathVelocity,
    replace_formals,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective

Scalars = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shown:
    """A network at the row's state: its factor, the times and conditions it is shown, and the
    factor of the state it is given."""

    factor: Tensor
    call: Evaluate
    scale: Tensor
    times: tuple[Tensor, ...]
    unlabelled: bool
    scalars: Scalars


@dataclass(frozen=True)
class _Call:
    """The trees of a network at the row's state, read once."""

    call: Evaluate
    scale: Expr
    times: tuple[Expr, ...]
    unlabelled: bool
    scalars: dict[str, Expr]


@dataclass
class Mean:
    """`state x + velocity v + Σ factor network(x, …)`, factors (rows,)."""

    state: Tensor
    velocity: Tensor
    shown: list[Shown] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class MeanReader:
    """Reads the means of trees of one objective."""

    objective: Objective
    numbers: Numbers
    paths: Mapping[str, AffinePath]
    _plans: dict[tuple[Place, Expr], list[tuple[Expr, Expr | _Call]]] = field(default_factory=dict)

    def mean(self, place: Place, expr: Expr, time: Tensor, scalars: Scalars) -> Mean:
        """The mean of a tree on the rows of a place whose state is at `time`, under conditions.

        Raises `Uncertified` where the tree is no such combination.
        """
        bound: dict[Expr, Tensor] = {f: scalars[f.name] for f in place.parameters.values()}
        if level_of(place.base.time) is Level.ROW:
            bound[place.base.time] = time
        mean = Mean(torch.zeros_like(time), torch.zeros_like(time))
        for factor, leaf in self._plan(place, expr):
            weight = self.numbers.rows(factor, bound, time)
            if isinstance(leaf, _Call):
                mean.shown.append(self._shown(leaf, weight, bound, time))
            else:
                x, v = self._known(place, leaf, time)
                mean.state, mean.velocity = mean.state + weight * x, mean.velocity + weight * v
        return mean

    def difference(self, place: Place, time: Tensor, scalars: Scalars) -> Mean:
        """The mean of prediction - target."""
        term = place.term
        assert term.target is not None
        one, other = (self.mean(place, e, time, scalars) for e in (term.prediction, term.target))
        negative = [replace(shown, factor=-shown.factor) for shown in other.shown]
        return Mean(one.state - other.state, one.velocity - other.velocity, one.shown + negative)

    def _plan(self, place: Place, expr: Expr) -> list[tuple[Expr, Expr | _Call]]:
        known = self._plans.get((place, expr))
        if known is None:
            terms = self._opened(
                place, combination(folded(place.reduce(expr)), self.objective.networks)
            )
            known = self._plans[place, expr] = [
                (factor, self._call(place, leaf) if isinstance(leaf, Evaluate) else leaf)
                for leaf, factor in terms.items()
            ]
        return known

    def _opened(self, place: Place, terms: Combination) -> Combination:
        """States and velocities at other times than the row's, written with data and noise.

        What does not depend on its time needs no value for it: on a straight path the velocity is
        noise - data at every time, also at one that the network does not see.
        """
        found: Combination = {}
        for leaf, factor in terms.items():
            found = plus(found, scaled(self._ends_of(place, leaf), factor))
        return found

    def _ends_of(self, place: Place, leaf: Expr) -> Combination:
        base = place.base
        if not isinstance(leaf, PathState | PathVelocity):
            return {leaf: ONE}
        if (leaf.path, leaf.data) != (base.path, base.data):
            raise Uncertified("a state that is not on the row's path", leaf.span)
        if (leaf.time, leaf.noise) == (base.time, base.noise):
            return {leaf: ONE}
        path = self.objective.paths[leaf.path]
        body = path.body if isinstance(leaf, PathState) else path.velocity
        ends = {Formal("data", Kind.STATE): leaf.data, Formal("noise", Kind.STATE): leaf.noise}
        terms = combination(replace_formals(body, {path.time: leaf.time}), self.objective.networks)
        return {ends[end]: factor for end, factor in terms.items() if isinstance(end, Formal)}

    def _call(self, place: Place, call: Evaluate) -> _Call:
        read = state_argument(self.objective, call)
        if call.directions or read is None or set(read) != {place.base}:
            raise Uncertified("a network that is not at the row's state", call.span)
        kinds = self.objective.networks[call.network].arguments
        times = tuple(
            a for (_, kind), a in zip(kinds, call.args, strict=True) if kind is not Kind.STATE
        )
        scalars = {name: value for name, value in call.conditions if name != "label"}
        unlabelled = isinstance(label_of(call), Null)
        return _Call(call, read[place.base], times, unlabelled, scalars)

    def _shown(
        self, leaf: _Call, weight: Tensor, bound: Mapping[Expr, Tensor], time: Tensor
    ) -> Shown:
        def rows(expr: Expr) -> Tensor:
            return self.numbers.rows(expr, bound, time)

        return Shown(
            weight,
            leaf.call,
            rows(leaf.scale),
            tuple(rows(t) for t in leaf.times),
            leaf.unlabelled,
            {name: rows(value) for name, value in leaf.scalars.items()},
        )

    def _known(self, place: Place, leaf: Expr, time: Tensor) -> tuple[Tensor, Tensor]:
        """A leaf as a multiple of the state and of the velocity, in the mean."""
        base = place.base
        one, zero = torch.ones_like(time), torch.zeros_like(time)
        if isinstance(leaf, PathState):  # `_opened` leaves those at the row's own time
            return one, zero
        if isinstance(leaf, PathVelocity):
            return zero, one
        if leaf == base.data:
            return self._ends(place, base.noise, time, (one, zero))
        match leaf:
            case Given("noise") | Draw(_, Kind.STATE, _):
                return self._ends(place, leaf, time, (zero, one))
        raise Uncertified("a state that is not on the row's path", leaf.span)

    def _ends(
        self, place: Place, noise: Expr, time: Tensor, weights: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """α data + σ noise given the state; a noise of its own has mean zero."""
        path = self.paths[place.base.path]
        a, s = path.alpha(time), path.sigma(time)
        da, ds = path.alpha_dot(time), path.sigma_dot(time)
        turn = a * ds - s * da
        of_data, of_noise = weights
        if noise != place.base.noise:
            of_noise = torch.zeros_like(time)
        return (of_data * ds - of_noise * da) / turn, (of_noise * a - of_data * s) / turn
