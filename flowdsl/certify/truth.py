"""Exact networks: the truth of every role, as the loss calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.guided import GuidedField, Strength
from flowdsl.certify.regression import Regression
from flowdsl.certify.shape import MapShape
from flowdsl.certify.solution import Solution, input_factor
from flowdsl.exact.field import MixtureField
from flowdsl.exact.flow import FlowMap
from flowdsl.exact.networks import Truth
from flowdsl.exact.told import Telling
from flowdsl.exact.variation import Memo
from flowdsl.spec.core import Kind, Level
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Network

Scalars = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Truths:
    """Makes the truth of each network; flows are integrated in `steps` steps of order eight.

    With a `telling`, states have one more entry, from which networks may tell the time.
    """

    solution: Solution
    data: MixtureField
    strength: Strength
    steps: int
    telling: Telling | None = None
    memo: Memo = field(default_factory=Memo)

    def told_by(self, telling: Telling | None) -> Truths:
        """The same where states have another entry that tells the time, or none."""
        return self if telling is self.telling else replace(self, telling=telling)

    def of(self, network: Network) -> Truth:
        """The truth of a role. Raises `Uncertified`."""
        objective = self.solution.objective
        source = objective.networks[network.average_of or network.name]
        self._refuse_kinds(source)
        if source.frozen:
            return self._teacher(source)
        heads = [self._head(source, name, kind) for name, kind in source.heads]
        if len(heads) == 1:
            return heads[0]

        def several(state: Tensor, *times: Tensor, **conditions: Tensor) -> tuple[Tensor, ...]:
            return tuple(head(state, *times, **conditions) for head in heads)

        return several

    def _refuse_kinds(self, network: Network) -> None:
        kinds = [kind for _, kind in network.arguments]
        if any(kind not in (Kind.STATE, Kind.TIME, Kind.SCALAR) for kind in kinds):
            raise Uncertified(f"it is not known what {network.name} computes", network.span)
        if Kind.FEATURES in dict(network.heads).values():
            raise Uncertified(f"it is not known what {network.name} computes", network.span)

    def _head(self, network: Network, head: str, kind: Kind) -> Callable[..., Tensor]:
        if kind is not Kind.STATE:
            return _nothing
        if not network.arguments or network.arguments[0][1] is not Kind.STATE:
            raise Uncertified(f"{network.name} does not take its state first", network.span)
        shape = self.solution.shapes.get(network.name)
        if shape is not None and shape.call.head == head:
            shape.check()
            return self._jump(shape)
        return self._mean(self.solution.regression(network.name, head))

    def _teacher(self, network: Network) -> Truth:
        """A network given from outside: what its stage taught it, else the data's velocity under
        its label."""
        guide = self.solution.guides.get(network.name)
        if guide is not None:
            return guide.truth(self.telling)
        kinds = [kind for _, kind in network.arguments]
        if len(kinds) != 2 or kinds[0] is not Kind.STATE or len(network.heads) > 1:
            raise Uncertified(f"it is not known what {network.name} computes", network.span)

        def truth(state: Tensor, time: Tensor, **conditions: Tensor) -> Tensor:
            own, _ = self._split(state)
            velocity = self.data.velocity(own, time, conditions.get("label"))
            return self._with_rate(velocity, time)

        return truth

    def _split(self, point: Tensor) -> tuple[Tensor, Tensor | None]:
        """A point of the path, and the time that it tells."""
        return (point, None) if self.telling is None else self.telling.split(point)

    def _with_rate(self, velocity: Tensor, time: Tensor) -> Tensor:
        if self.telling is None:
            return velocity
        return self.telling.joined(velocity, self.telling.path.sigma_dot(time))

    def _field(self, scalars: Scalars, like: Tensor) -> GuidedField:
        return GuidedField.under(self.data, self.strength, scalars, like)

    def _jump(self, shape: MapShape) -> Callable[..., Tensor]:
        def truth(state: Tensor, *times: Tensor, **conditions: Tensor) -> Tensor:
            label = conditions.get("label")
            scalars = {n: v for n, v in conditions.items() if n != "label"}
            own = {n: scalars[n] for n in shape.parameters}
            start, end, point = self._placed(shape, state, times, own)
            flow = FlowMap(self._field(scalars, start), self.steps, self.memo)
            average = flow.average_velocity(self._split(point)[0], start, end, label)
            if self.telling is not None:
                average = self.telling.joined(average, self.telling.mean_rate(start, end))
            if shape.bounded:
                a, b = shape.slopes(start, end, own)
                return (a[:, None] * point + average) / b[:, None]
            skip, out = shape.weights(start, end, own)
            landed = point + (end - start)[:, None] * average
            return (landed - skip[:, None] * point) / out[:, None]

        return truth

    def _placed(
        self, shape: MapShape, state: Tensor, times: tuple[Tensor, ...], own: Scalars
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Start, end and point of the map where its network sees a state and times."""
        if not shape.blind:
            start, end = shape.times_of(times)
            return start, end, state / shape.input_scale(start, end, own)[:, None]
        point = state / shape.fixed_scale(state[:, 0])[:, None]
        _, told = self._split(point)
        return *shape.times_of(times, told), point

    def _mean(self, regression: Regression) -> Callable[..., Tensor]:
        solution = self.solution
        factor = input_factor(solution, regression)
        numbers, base = solution.reader.numbers, regression.place.base.time

        def placed(state: Tensor, times: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            """The time of the state, and the point of the path that it stands for."""
            if regression.reading is None:
                point = state / numbers.rows(factor, {}, state[:, 0])[:, None]
                return regression.time(numbers, times, self._split(point)[1]), point
            time = regression.time(numbers, times, None)
            bound = {base: time} if level_of(base) is Level.ROW else {}
            return time, state / numbers.rows(factor, bound, time)[:, None]

        def truth(state: Tensor, *times: Tensor, **conditions: Tensor) -> Tensor:
            time, point = placed(state, times)
            scalars = {n: v for n, v in conditions.items() if n != "label"}
            known = {**solution.parameters(regression.place, time), **scalars}
            p, q = solution.predicted(regression, time, known)
            own = self._split(point)[0]
            velocity = self._field(known, time).velocity(own, time, conditions.get("label"))
            velocity = self._with_rate(velocity, time)
            return p[:, None] * point + q[:, None] * velocity

        return truth


def _nothing(*arguments: Tensor, **_: Tensor) -> Tensor:
    """A learned weight: it has no part in the squared error."""
    return torch.zeros(len(arguments[0]), dtype=torch.float64)
