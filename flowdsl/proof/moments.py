"""An objective at one moment of training: every curriculum at its value there."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.state import State
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.judge import judge, settled
from flowdsl.proof.signs import silent
from flowdsl.spec.core import Expr, Level, walk
from flowdsl.spec.kinds import level_of
from flowdsl.truth.cases import Case

Standing = Literal["refuted", "biased", "undecided", "order", "proved"]
#: The worst first.
RANKS: tuple[Standing, ...] = ("refuted", "biased", "undecided", "order", "proved")


@dataclass(frozen=True)
class Outcome:
    """What is true of a case at a moment; `silent` when its weight is zero there."""

    status: Standing
    study: Study | None = None
    left: State | None = None
    order: int = 0
    small: str = ""
    reason: str = ""
    silent: bool = False


def current(analysis: Analysis, case: Case, progress: float) -> bool:
    """Do the step-level conditions of a case hold at this share of training?"""
    try:
        return all(
            bool(analysis.curricula.value(condition, progress)) == truth
            for condition, truth in case.facts.items()
            if level_of(condition) is Level.STEP
        )
    except Undecided:
        return True


def outcome_at(analysis: Analysis, case: Case, progress: float) -> Outcome:
    """The identity of a case with the curricula's values put in.

    Where the conditional velocity stands inside an argument only the order of what is left over is
    known, which is that of the case in general.
    """
    if silent(analysis, case, progress):
        return Outcome("proved", silent=True)
    try:
        study = analysis.study(case, bindings=_values(analysis, case, progress))
    except Undecided as undecided:
        return Outcome("undecided", reason=undecided.reason)
    if not study.parts.inside:
        left = study.parts.expected
        if not left:
            return Outcome("proved", study)
        status: Standing = "biased" if settled(analysis, case, study) else "refuted"
        return Outcome(status, study, -left)
    finding = judge(analysis, case)
    return Outcome(finding.outcome, finding.study, finding.left, finding.order, finding.small,
                   finding.reason)  # fmt: skip


def _values(analysis: Analysis, case: Case, progress: float) -> dict[Expr, Element]:
    used = {n for e in (case.prediction, case.target) if e is not None for n in walk(e)}
    return {
        expr: analysis.scalars.number(
            Fraction(analysis.curricula.value(expr, progress)).limit_denominator(1000)
        )
        for expr in analysis.curricula.all.values()
        if expr in used
    }
