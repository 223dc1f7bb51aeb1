"""What networks given from outside compute: the truth of the stage from which they are carried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.means import Shown
from flowdsl.certify.truth import Truths
from flowdsl.diagnostics import DiagnosticError
from flowdsl.exact.networks import Truth
from flowdsl.exact.paths import AffinePath
from flowdsl.exact.told import Telling
from flowdsl.spec.carried import carried_role, source_stage
from flowdsl.spec.objective import Objective

Find = Callable[[str], Objective]


@dataclass(frozen=True)
class Lesson:
    """A network of another objective, at its truth there."""

    role: str
    truths: Truths

    def truth(self, telling: Telling | None) -> Truth:
        """What it computes."""
        own = self.truths.told_by(telling)
        return own.of(own.solution.objective.networks[self.role])

    def value(self, shown: Shown, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At its state, as multiples of the state and of the velocity there; and its time.

        Raises `Uncertified` where it is no such combination of the data's own velocity.
        """
        solution = self.truths.solution
        head = solution.objective.networks[self.role].heads[0][0]
        if self.role in solution.shapes or self.truths.strength.guided:
            raise Uncertified("a guide that learned more than the data's velocity", shown.call.span)
        regression = solution.regression(self.role, head)
        when = regression.time(solution.reader.numbers, shown.times, time)
        scalars = {**solution.parameters(regression.place, time), **shown.scalars}
        return *solution.predicted(regression, time, scalars), when


def lessons(
    objective: Objective, find: Find | None, ready: Callable[[Objective], Truths], path: AffinePath
) -> Mapping[str, Lesson]:
    """The lessons of the networks that stages of other objectives give.

    `find` reads an objective by its name, `ready` knows its truths. Raises `Uncertified` where a
    stage has another path.
    """
    known: dict[str, Truths] = {}
    found: dict[str, Lesson] = {}
    for name, network in objective.networks.items():
        stage = source_stage(objective, name) if network.frozen else None
        if stage is None or find is None:
            continue
        if stage.objective not in known:
            try:
                other = find(stage.objective)
            except DiagnosticError:
                continue
            known[stage.objective] = ready(other)
        truths = known[stage.objective]
        role = carried_role(truths.solution.objective, name)
        if role is None:
            continue
        if not _same(path, truths.data.path):
            raise Uncertified(f"{name} comes from a stage that has another path", network.span)
        found[name] = Lesson(role, truths)
    return found


def _same(one: AffinePath, other: AffinePath) -> bool:
    times = torch.tensor([0.21, 0.5, 0.83], dtype=torch.float64)
    pairs = ((one.alpha, other.alpha), (one.sigma, other.sigma))
    return all(bool((f(times) - g(times)).abs().max() < 1e-9) for f, g in pairs)
