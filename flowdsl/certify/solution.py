"""What the networks of an objective compute when training has succeeded, found in numbers.

The flow to be learned is that of a field v with v = E[guided | z], the networks inside `guided` at
their own truth: a linear equation at every time, solved for v. A combination of the data's velocity
with and without a label counts as guidance if its factors sum to 1: were all labels the same, the
flow would be the data's. Anything else is a wrong target, and is measured at the data's own flow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowdsl.certify.diagonal import on_diagonal
from flowdsl.certify.errors import Uncertified
from flowdsl.certify.means import MeanReader, Shown
from flowdsl.certify.places import Place, state_argument
from flowdsl.certify.regression import Guide, Regression, reading_of
from flowdsl.certify.shape import MapShape
from flowdsl.spec.core import Evaluate, Expr, Level, PathVelocity, walk
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective

Scalars = Mapping[str, Tensor]
TOLERANCE = 1e-7
SOME = 1.7  #: a value of a drawn condition, where it can have this one
DEEPEST = 3  #: guidance by fields that are guided themselves


@dataclass(frozen=True)
class Equation:
    """Where the field is defined: on the rows of a place, by a direction or by the term itself."""

    place: Place
    along: Expr | None


@dataclass(frozen=True)
class Relation:
    """V = `labelled` v(label) + `free` v(null), by time (rows,)."""

    labelled: Tensor
    free: Tensor
    state: Tensor  # what must be zero: a multiple of the state

    @property
    def is_guidance(self) -> bool:
        total = self.labelled + self.free - 1
        worst = torch.stack([total.abs().max(), self.state.abs().max()]).max()
        return bool(torch.isfinite(worst)) and bool(worst < TOLERANCE)


@dataclass
class Solution:
    """The truth of every network of one objective.

    Raises `Uncertified`, in words, where it is not known. `span` is where times lie in the draws.
    """

    objective: Objective
    reader: MeanReader
    shapes: Mapping[str, MapShape]
    places: tuple[Place, ...]
    span: tuple[float, float]
    drawn: Mapping[Expr, Tensor] = field(default_factory=dict)  # of the rows of a batch
    guides: Mapping[str, Guide] = field(default_factory=dict)
    regressions: dict[tuple[str, str], Regression] = field(default_factory=dict)
    _equations: dict[bool, Equation | None] = field(default_factory=dict)

    @property
    def blind(self) -> bool:
        """Is there a network that has to tell the time from its state?"""
        if any(shape.blind for shape in self.shapes.values()):
            return True
        mapped = {(network, shape.call.head) for network, shape in self.shapes.items()}
        heads = {(p.learner.network, p.learner.head) for p in self.places} - mapped
        learning = [self._learning(*head) for head in heads]
        return any(bool(found) and reading_of(found[0]) is None for found in learning)

    # one-time regression

    def regression(self, network: str, head: str) -> Regression:
        """How a network without a map learns, at the first place that tells."""
        known = self.regressions.get((network, head))
        if known is not None:
            return known
        reasons = []
        for place in self._learning(network, head):
            found = Regression(place, network, head, reading_of(place))
            try:
                probe = self.probe()
                p, q = self.predicted(found, probe, self.parameters(place, probe))
            except Uncertified as uncertified:
                reasons.append(uncertified.reason)
                continue
            if not bool(torch.isfinite(p).all() and torch.isfinite(q).all()):
                reasons.append(f"the target of {head} has a pole")
                continue
            if bool((q.abs() < TOLERANCE).all()):
                raise Uncertified("what the network predicts does not determine the velocity",
                                  place.term.span)  # fmt: skip
            self.regressions[(network, head)] = found
            return found
        raise Uncertified(reasons[0] if reasons else f"nothing says what {head} learns")

    def _learning(self, network: str, head: str) -> list[Place]:
        """Where a network learns, at first where it is shown the time of its state."""
        own = [p for p in self.places if (p.learner.network, p.learner.head) == (network, head)
               and not p.learner.directions]  # fmt: skip
        shown = [p for p in own if reading_of(p) is not None]
        blind = [p for p in own if p not in shown and level_of(p.base.time) is Level.ROW]
        return shown + blind

    def predicted(
        self, regression: Regression, time: Tensor, scalars: Scalars
    ) -> tuple[Tensor, Tensor]:
        """p and q at times (rows,), all conditions taken as equal."""
        mean = self.reader.difference(regression.place, time, scalars)
        own = torch.zeros_like(time)
        for shown in mean.shown:
            if self.owner(shown.call) != (regression.network, regression.head):
                raise Uncertified("one network learns from another", shown.call.span)
            own = own + shown.factor
        return -mean.state / own, -mean.velocity / own

    def owner(self, call: Evaluate) -> tuple[str, str]:
        """The network whose parameters a call uses, and its head."""
        return self.objective.origin(call.network, call.head)

    # guidance

    def equation(self, unlabelled: bool) -> Equation | None:
        """The equation of the field with or without a label; None where it is the data's."""
        if unlabelled not in self._equations:
            self._equations[unlabelled] = None  # while it is sought, the field is the data's
            self._equations[unlabelled] = self._find(unlabelled)
        return self._equations[unlabelled]

    def _find(self, unlabelled: bool) -> Equation | None:
        """The first equation that says that the field is guided, of the most conditions. Raises
        `Uncertified` where there are equations and none of them can be read: what is to be learned
        is then not known."""
        unread: list[Uncertified] = []
        readable = False
        best: Equation | None = None
        for equation in self._candidates(unlabelled):
            known = None if best is None else len(best.place.parameters)
            if known is not None and len(equation.place.parameters) <= known:
                continue  # rows of more conditions say more: on others some of them are fixed
            probe = self.probe()
            scalars = self.parameters(equation.place, probe)
            try:
                found = self._solve(equation, probe, scalars, 0)
            except Uncertified as uncertified:
                unread.append(uncertified)
                continue
            readable = True
            own, other = found.labelled, found.free
            if unlabelled:
                own, other = other, own
            holds = bool((own.abs() > TOLERANCE).any())  # else it is no field of this label at all
            if found.is_guidance and holds and bool((other.abs() > TOLERANCE).any()):
                best = equation
        if unread and not readable:
            raise Uncertified(
                f"which field is to be learned cannot be read: {unread[0].reason}", unread[0].span
            )
        return best

    def _candidates(self, unlabelled: bool) -> Iterator[Equation]:
        """The direction of differentiation speaks first, then each term about its own rows, at last
        where its map's times are equal."""
        moving = self.objective.moving
        own = [place for place in self.places if place.unlabelled == unlabelled]
        if moving is not None and moving.along is not None:
            for place in own:
                base = place.base
                here = PathVelocity(base.path, base.time, base.data, base.noise)
                if any(node == here for node in walk(place.reduce(moving.along))):
                    yield Equation(place, moving.along)
        yield from (Equation(place, None) for place in own)
        for place in own:
            shape = self.shapes.get(place.learner.network)
            level = None if shape is None else on_diagonal(place, shape)
            if level is not None:
                yield Equation(level, None)

    def relation(
        self, time: Tensor, unlabelled: bool, scalars: Scalars, depth: int = 0
    ) -> Relation:
        """The field under conditions as a combination of the data's velocities."""
        equation = self.equation(unlabelled)
        one, zero = torch.ones_like(time), torch.zeros_like(time)
        if equation is None or depth >= DEEPEST:
            return Relation(zero, one, zero) if unlabelled else Relation(one, zero, zero)
        return self._solve(equation, time, scalars, depth)

    def _solve(self, equation: Equation, time: Tensor, scalars: Scalars, depth: int) -> Relation:
        place = equation.place
        needed = {f.name: scalars[f.name] for f in place.parameters.values()}
        own = state = labelled = free = torch.zeros_like(time)
        if equation.along is None:
            mean = self.reader.difference(place, time, needed)
        else:
            mean = self.reader.mean(place, equation.along, time, needed)
            own = own - 1
        if place.unlabelled:
            free = free + mean.velocity
        else:
            labelled = labelled + mean.velocity
        state = state + mean.state
        for shown in mean.shown:
            of_state, of_field = self.value(shown, time, depth == 0)
            state = state + shown.factor * of_state
            weight = shown.factor * of_field
            frozen = self.objective.networks[shown.call.network].frozen
            if shown.call.conditions == place.conditions and not frozen:
                own = own + weight
                continue
            same = torch.zeros_like(time)
            if depth and not frozen and shown.unlabelled == place.unlabelled:
                same = _alike(shown.scalars, needed, time)
            own = own + same * weight
            weight = (1 - same) * weight
            if bool(same.all()):
                continue
            step = DEEPEST if frozen else depth + 1
            other = self.relation(time, shown.unlabelled, shown.scalars, step)
            labelled = labelled + weight * other.labelled
            free = free + weight * other.free
        return Relation(-labelled / own, -free / own, state / own)

    def value(self, shown: Shown, time: Tensor, checked: bool) -> tuple[Tensor, Tensor]:
        """A network at the row's state as multiples of the state and of the field there."""
        source, head = self.owner(shown.call)
        zero = torch.zeros_like(time)
        if self.objective.networks[source].frozen:
            return self._guide(source, shown, time, checked)
        shape = self.shapes.get(source)
        if shape is None or head != shape.call.head:
            regression = self.regression(source, head)
            seen = regression.time(self.reader.numbers, shown.times, time)
            if checked and not _equal(seen, time):
                raise Uncertified("a network at another time than the row's", shown.call.span)
            scalars = {**self.parameters(regression.place, time), **shown.scalars}
            return self.predicted(regression, time, scalars)
        start, end = shape.times_of(shown.times, time)
        if checked and not (_equal(start, time) and _equal(end, time)):
            raise Uncertified("a network away from the diagonal", shown.call.span)
        scalars = {n: shown.scalars[n] for n in shape.parameters}
        if checked and not _equal(shape.input_scale(start, end, scalars), shown.scale):
            raise Uncertified("a network at a state of another scale", shown.call.span)
        if not shape.bounded:
            skip, out = shape.weights(time, time, scalars)
            return (1 - skip) / out, zero
        a, b = shape.slopes(time, time, scalars)
        return a / b, 1 / b

    def _guide(
        self, source: str, shown: Shown, time: Tensor, checked: bool
    ) -> tuple[Tensor, Tensor]:
        guide = self.guides.get(source)
        if guide is None:
            return torch.zeros_like(time), torch.ones_like(time)
        of_state, of_field, when = guide.value(shown, time)
        if checked and not _equal(when, time):
            raise Uncertified("a network at another time than the row's", shown.call.span)
        return of_state, of_field

    # probes

    def probe(self) -> Tensor:
        """A few times inside those that are drawn."""
        low, high = self.span
        shares = torch.tensor([0.11, 0.32, 0.5, 0.68, 0.87], dtype=torch.float64)
        return low + (high - low) * shares

    def parameters(self, place: Place, like: Tensor) -> dict[str, Tensor]:
        """Values of a place's scalar conditions: those of the spec where it fixes them."""
        found = {}
        for expr, formal in place.parameters.items():
            try:
                found[formal.name] = self.reader.numbers.rows(expr, {}, like)
            except Uncertified:
                found[formal.name] = torch.full_like(like, self._some(expr))
        return found

    def _some(self, expr: Expr) -> float:
        """A value of a condition, no special one of those that are drawn."""
        try:
            values = self.reader.numbers(expr, self.drawn)
        except Uncertified:
            return SOME
        low, high = float(values.min()), float(values.max())
        return SOME if low <= SOME <= high else (low + high) / 2


def _alike(some: Scalars, others: Scalars, like: Tensor) -> Tensor:
    """1 on rows whose conditions have the same values, else 0."""
    same = torch.ones_like(like, dtype=torch.bool)
    for name, value in others.items():
        if name not in some:
            return torch.zeros_like(like)
        same = same & (some[name] == value)
    return same.to(like)


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-9)


def input_factor(solution: Solution, regression: Regression) -> Expr:
    """The factor of the state that a regressed network is given."""
    read = state_argument(solution.objective, regression.place.learner)
    assert read is not None
    return read[regression.place.base]
