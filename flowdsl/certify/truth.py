"""Exact networks: the truth of every role, as the loss calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.guided import GuidedField, Strength
from flowdsl.certify.shape import MapShape
from flowdsl.certify.solution import Regression, Solution, input_factor
from flowdsl.exact.field import MixtureField
from flowdsl.exact.flow import FlowMap
from flowdsl.exact.networks import Truth
from flowdsl.exact.variation import Memo
from flowdsl.spec.core import Kind, Level
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Network

Scalars = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Truths:
    """Makes the truth of each network; flows are integrated in `steps` steps of order eight."""

    solution: Solution
    data: MixtureField
    strength: Strength
    steps: int
    memo: Memo = field(default_factory=Memo)

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
        """A network given from outside: the velocity of the data under its label."""
        kinds = [kind for _, kind in network.arguments]
        if len(kinds) != 2 or kinds[0] is not Kind.STATE or len(network.heads) > 1:
            raise Uncertified(f"it is not known what {network.name} computes", network.span)

        def truth(state: Tensor, time: Tensor, **conditions: Tensor) -> Tensor:
            return self.data.velocity(state, time, conditions.get("label"))

        return truth

    def _field(self, scalars: Scalars, like: Tensor) -> GuidedField:
        return GuidedField.under(self.data, self.strength, scalars, len(like))

    def _jump(self, shape: MapShape) -> Callable[..., Tensor]:
        def truth(state: Tensor, *times: Tensor, **conditions: Tensor) -> Tensor:
            label = conditions.get("label")
            scalars = {n: v for n, v in conditions.items() if n != "label"}
            own = {n: scalars[n] for n in shape.parameters}
            start, end = shape.times_of(times)
            point = state / shape.input_scale(start, end, own)[:, None]
            flow = FlowMap(self._field(scalars, start), self.steps, self.memo)
            average = flow.average_velocity(point, start, end, label)
            if shape.bounded:
                a, b = shape.slopes(start, end, own)
                return (a[:, None] * point + average) / b[:, None]
            skip, out = shape.weights(start, end, own)
            landed = point + (end - start)[:, None] * average
            return (landed - skip[:, None] * point) / out[:, None]

        return truth

    def _mean(self, regression: Regression) -> Callable[..., Tensor]:
        solution = self.solution
        factor = input_factor(solution, regression)
        base = regression.place.base.time

        def truth(state: Tensor, *times: Tensor, **conditions: Tensor) -> Tensor:
            time = times[regression.moment]
            scalars = {n: v for n, v in conditions.items() if n != "label"}
            known = {**solution.parameters(regression.place, time), **scalars}
            bound = {base: time} if level_of(base) is Level.ROW else {}
            point = state / solution.reader.numbers.rows(factor, bound, time)[:, None]
            p, q = solution.predicted(regression, time, known)
            velocity = self._field(known, time).velocity(point, time, conditions.get("label"))
            return p[:, None] * point + q[:, None] * velocity

        return truth


def _nothing(*arguments: Tensor, **_: Tensor) -> Tensor:
    """A learned weight: it has no part in the squared error."""
    return torch.zeros(len(arguments[0]), dtype=torch.float64)
