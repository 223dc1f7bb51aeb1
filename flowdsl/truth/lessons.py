"""What frozen networks know: what they learned in the stage from which they are carried.

A spec whose stages say `velocity: denoiser for 0.5; distil: this for 0.5, teacher from velocity`
has a teacher that computes at the truth what the network of `denoiser` does there. That is solved
for in the other objective, and written in the scalars of this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.numbers import path_weights
from flowdsl.calculus.scalars import Scalars
from flowdsl.diagnostics import DiagnosticError
from flowdsl.spec.carried import carried_role, source_stage
from flowdsl.spec.core import Kind
from flowdsl.spec.objective import Objective
from flowdsl.truth.learnt import Regression
from flowdsl.truth.solver import Solver

TIME = "_0"  #: the symbol that stands for the time of a teacher's state
_MOMENTS = (0.21, 0.5, 0.83)


def lesson(solver: Solver, owner: str, path: str) -> Regression | None:
    """What a frozen network has learned about the velocity on a path; None where no stage tells.

    Raises `Undecided` where a stage tells of something else than a regression on that path.
    """
    stage = source_stage(solver.objective, owner)
    if stage is None or solver.find is None:
        return None
    try:
        other = solver.find(stage.objective)
    except DiagnosticError:  # objectives that are not at hand are the trainer's to report
        return None
    role = carried_role(other, owner)
    if role is None:
        return None
    theirs = solver.of(other)
    for case in theirs.all_cases():
        networks = theirs.networks(case, theirs.context(), "flow")
        if role in networks.maps:
            raise Undecided(f"{owner} comes from the stage {stage.name}, where it learned a map")
        head = next(h for h, kind in other.networks[role].heads if kind is Kind.STATE)
        learned = networks.regression.get(head)
        if learned is None:
            continue
        if not _same_path(solver.objective, path, other, theirs.base(case).path):
            raise Undecided(f"{owner} comes from the stage {stage.name}, which has another path")
        return _moved(solver, theirs, learned)
    return None


def _same_path(one: Objective, mine: str, other: Objective, theirs: str) -> bool:
    """Are two paths the same function of time, data and noise, at their constants' values?"""
    for moment in _MOMENTS:
        here = path_weights(one, one.paths[mine], moment)
        there = path_weights(other, other.paths[theirs], moment)
        if any(abs(a - b) > 1e-9 * (1 + abs(a)) for a, b in zip(here, there, strict=True)):
            return False
    return True


def _moved(solver: Solver, theirs: Solver, learned: Regression) -> Regression | None:
    """A regression in the scalars of this analysis, its time the symbol `TIME`."""
    if learned.index is None:
        return None
    source, target = theirs.scalars, solver.scalars
    time = target.symbol(TIME)
    values = {learned.index: time}
    for name, value in theirs.objective.constants.items():
        if source.has(name):
            shared = solver.symbolic and solver.objective.constants.get(name) == value
            known = shared and target.has(name)
            values[source.index(name)] = target.symbol(name) if known else target.number(value)
    p, q, scale, shown = (
        moved(x, source, target, values)
        for x in (learned.p, learned.q, learned.scale, learned.shown)
    )
    return Regression(time, target.index(TIME), p, q, learned.place, scale, shown)


def moved(x: Element, source: Scalars, target: Scalars, values: Mapping[int, Element]) -> Element:
    """A scalar of one field in another, with these values in the place of its symbols.

    Raises `Undecided` for a symbol that has none.
    """

    def generator(i: int) -> Element:
        if i in values:
            return values[i]
        definition = source.defined.get(i)
        if definition is None or definition.argument is None:
            raise Undecided("a teacher's scalar depends on more than the time")
        return target.again(definition, moved(definition.argument, source, target, values))

    def polynomial(poly: Mapping[tuple[int, ...], Element]) -> Element:
        total = target.zero
        for powers, c in poly.items():
            term = target.number(Fraction(int(c.numerator), int(c.denominator)))
            for i, power in enumerate(powers):
                if power:
                    term = target.product(term, target.power(generator(i), power))
            total = total + term
        return total

    return target.divide(polynomial(x.numer), polynomial(x.denom))
