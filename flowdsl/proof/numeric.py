"""A left-over in numbers: its value on the exact flow of Gaussian data, as an example for a
message.

One dimension suffices to show a size; it proves nothing, since there all Jacobians commute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.numbers import path_weights
from flowdsl.calculus.state import Atom, Field, FunctionAtom, MapAtom, State, Symbol, VelocityAtom
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.spec.objective import Path
from flowdsl.truth.sample import XI, X

STEP = 1e-4
STATE, NOISE = 1.0, 0.5  #: where examples are evaluated


@dataclass
class GaussianExample:
    """Values of scalars by generator, and one exact Gaussian flow per field."""

    analysis: Analysis
    path: Path
    values: dict[int, float]

    def __post_init__(self) -> None:
        self._deviation: dict[Field, float] = {}

    def _std(self, field: Field) -> float:
        """Every field its own data: standard deviations 0.5, 0.8, 1.1, …"""
        return self._deviation.setdefault(field, 0.5 + 0.3 * len(self._deviation))

    def scalar(self, x: object) -> float:
        return self.analysis.scalars.numeric(x, self.values)

    def _spread(self, field: Field, t: float) -> float:
        a, s = path_weights(self.analysis.objective, self.path, t)
        return math.hypot(a * self._std(field), s)

    def _rate(self, field: Field, t: float, order: int = 0) -> float:
        """v(x, t) = rate(t) x, and its time derivatives by central differences."""
        if order:
            after, before = (self._rate(field, t + d, order - 1) for d in (STEP, -STEP))
            return (after - before) / (2 * STEP)
        a, s = path_weights(self.analysis.objective, self.path, t)
        da, ds = path_weights(self.analysis.objective, self.path, t, velocity=True)
        return (a * da * self._std(field) ** 2 + s * ds) / self._spread(field, t) ** 2

    def state(self, state: State) -> float:
        return sum(self.scalar(c) * self.atom(atom) for atom, c in state.terms.items())

    def atom(self, atom: Atom) -> float:
        match atom:
            case Symbol(_, name):
                return STATE if name == X else NOISE if name == XI else 0.0
            case MapAtom(_, field, point, start, end, directions, (0, 0)) if len(directions) < 2:
                ratio = self._spread(field, self.scalar(end)) / self._spread(
                    field, self.scalar(start)
                )
                return ratio * (self.atom(directions[0]) if directions else self.state(point))
            case MapAtom(_, _, _, _, _, _, (0, 0)):
                return 0.0  # the flow of Gaussian data is linear
            case VelocityAtom(_, field, point, time, order, directions) if len(directions) < 2:
                rate = self._rate(field, self.scalar(time), order)
                return rate * (self.atom(directions[0]) if directions else self.state(point))
            case VelocityAtom():
                return 0.0
            case FunctionAtom():
                raise Undecided("an unknown function has no value")
        raise Undecided("a derivative of a map has no value here")


def example(analysis: Analysis, study: Study) -> GaussianExample:
    """Times spread over (0, 1) in the order of the spec: the first drawn is the largest."""
    scalars = analysis.scalars
    values: dict[int, float] = {}
    usual = iter((0.7, 0.2, 0.4, 0.55, 0.85, 0.1))
    for index, name in enumerate(scalars.names):
        constant = analysis.objective.constants.get(name)
        values[index] = float(constant) if constant is not None else next(usual, 0.5)
    for index, definition in scalars.defined.items():
        if definition.function == "opaque":
            values[index] = 0.5
    for index in scalars.smalls:
        values[index] = 0.0
    return GaussianExample(analysis, analysis.objective.paths[study.row.base.path], values)


def witness(analysis: Analysis, study: Study, state: State) -> str:
    """`e.g. -0.66 at t = 0.7, r = 0.2 on an exact flow`, or nothing when it has no number."""
    try:
        here = example(analysis, study)
        value = here.state(state)
    except (Undecided, Pole, ArithmeticError, ValueError, KeyError):
        return ""
    if not math.isfinite(value):
        return ""
    scalars = analysis.scalars
    named = sorted(study.context.series.generators_in(state))
    times = [
        f"{scalars.names[i]} = {here.values[i]:g}"
        for i in named
        if i < len(scalars.names) and scalars.names[i] not in analysis.objective.constants
    ]
    return f"e.g. {value:.2g} at {', '.join(['z = 1', *times])} on an exact flow"
