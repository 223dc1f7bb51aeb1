"""The conditional expectation given the state that a network sees, taken exactly where it can be.

A state of the path is kept, and the data and noise that made it are replaced by a few of their
posterior. Where the gradient is at most quadratic in the velocity, 2 d of them with the right mean
and covariance give its expectation exactly; elsewhere they are drawn, in antithetic pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.linear import combination
from flowdsl.certify.numbers import Numbers
from flowdsl.certify.places import Place
from flowdsl.exact.estimation import Posterior
from flowdsl.spec.core import (
    Draw,
    Evaluate,
    Expr,
    Given,
    Kind,
    PathState,
    PathVelocity,
    walk,
)
from flowdsl.spec.objective import Objective, Term

DRAWN = 16  #: posterior draws of a state where its moments are not enough


@dataclass(frozen=True, eq=False)
class Kept:
    """The states that are kept: of one term, on the rows of its places."""

    objective: Objective
    places: tuple[Place, ...]
    numbers: Numbers

    @classmethod
    def of(
        cls, objective: Objective, term: Term, places: Iterable[Place], numbers: Numbers
    ) -> Kept | None:
        """The states of a term; None where data and noise of no state can be drawn again."""
        own = tuple(p for p in places if p.term.name == term.name)
        bases = {(p.base.data, p.base.noise) for p in own}
        if len(bases) != 1:
            return None
        ((data, noise),) = bases
        known = noise == Given("noise") or isinstance(noise, Draw)
        return cls(objective, own, numbers) if data == Given("data") and known else None

    def posterior(self, *, exact: bool) -> Posterior:
        """How rows are made; `exact` where the very term is measured, without its own loss."""
        noise = self.places[0].base.noise
        return Posterior(
            state_time=self._times,
            shown=self._labels,
            noise=noise.name if isinstance(noise, Draw) else "noise",
            copies=None if exact and all(map(self._quadratic, self.places)) else DRAWN,
        )

    def _rows(self, place: Place, draws: dict[str, Tensor], rows: int) -> Tensor:
        """The rows of a place, (rows,) booleans."""
        found = torch.ones(rows, dtype=torch.bool)
        for fact, value in place.facts.items():
            if isinstance(fact, Draw) and fact.name in draws:
                found = found & (draws[fact.name].expand(rows) == value)
        return found

    def _times(self, draws: dict[str, Tensor], rows: int) -> Tensor:
        """The time of each row's state, NaN where there is none."""
        time = torch.full((rows,), torch.nan, dtype=torch.float64)
        bound: dict[Expr, Tensor] = {
            d.symbol: draws[d.name].expand(rows)
            for d in self.objective.draws.values()
            if d.kind in (Kind.TIME, Kind.SCALAR, Kind.TRUTH) and d.name in draws
        }
        for place in self.places:
            own = self.numbers.rows(place.base.time, bound, time)
            time = torch.where(self._rows(place, draws, rows), own, time)
        return time

    def _labels(self, draws: dict[str, Tensor], label: Tensor) -> Tensor:
        """The labels under which states are looked at: none where nobody sees one."""
        for place in self.places:
            if not self._sees_label(place):
                hidden = self._rows(place, draws, len(label))
                label = torch.where(hidden, torch.full_like(label, -1), label)
        return label

    def _sees_label(self, place: Place) -> bool:
        return any(
            isinstance(dict(call.conditions).get("label"), Given)
            for expr in _sides(place)
            for call in walk(expr)
            if isinstance(call, Evaluate)
        )

    def _quadratic(self, place: Place) -> bool:
        """Does no network see anything random but the state that is kept?"""
        calls = [n for expr in _sides(place) for n in walk(expr) if isinstance(n, Evaluate)]
        kinds = {n: [k for _, k in w.arguments] for n, w in self.objective.networks.items()}
        for call in calls:
            for kind, argument in zip(kinds[call.network], call.args, strict=True):
                if kind is Kind.STATE and not self._still(place, argument):
                    return False
        return True

    def _still(self, place: Place, state: Expr) -> bool:
        try:
            leaves = combination(state, self.objective.networks)
        except Uncertified:
            return False
        return all(
            leaf == place.base or not isinstance(leaf, PathState | PathVelocity | Given | Draw)
            for leaf in leaves
        )


def _sides(place: Place) -> list[Expr]:
    """Prediction and target on the rows of a place."""
    sides = (place.term.prediction, place.term.target)
    return [place.reduce(side) for side in sides if side is not None]
