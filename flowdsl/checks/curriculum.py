"""Is each curriculum continuous and finite, and does its end satisfy the identity?"""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

from flowdsl.checks.check import Check
from flowdsl.checks.report import Status, Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.cases import Case
from flowdsl.proof.curriculum import Profile
from flowdsl.proof.errors import Undecided
from flowdsl.proof.judge import judge
from flowdsl.spec.core import Expr, Level, walk
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective

NAME = "curriculum"


def _run(objective: Objective, analysis: Analysis) -> list[Verdict]:
    used = {
        node
        for term in objective.terms
        for expr in (term.prediction, term.target, term.loss, term.rows)
        if expr is not None
        for node in walk(expr)
    }
    verdicts: list[Verdict] = []
    for name, expr in analysis.curricula.all.items():
        if expr not in used:
            continue
        begin = time.perf_counter()
        found = _course(analysis, name, expr)
        each = (time.perf_counter() - begin) / len(found)
        verdicts += [replace(verdict, term=name, seconds=each) for verdict in found]
    return verdicts or [Verdict(NAME, "not applicable", "nothing changes during training")]


def _course(analysis: Analysis, name: str, expr: Expr) -> list[Verdict]:
    try:
        profile = analysis.curricula.profile(expr)
    except Undecided as undecided:
        return [Verdict(NAME, "undecided", undecided.reason)]
    middle = analysis.curricula.value(expr, 0.5)
    course = (
        f"{profile.start:g} at the start, {middle:g} half-way, {profile.end:g} at the end, "
        f"within [{profile.low:g}, {profile.high:g}]"
    )
    verdicts = [Verdict(NAME, "proved" if not profile.jumps else "note", course + _jumps(profile))]
    for place, value in (("start", profile.start), ("end", profile.end)):
        verdicts.append(_at(analysis, name, expr, place, value))
    return verdicts


def _jumps(profile: Profile) -> str:
    if not profile.jumps:
        return ", continuous"
    shown = [f"{j.before:.4g} to {j.after:.4g} at {j.progress:.3f}" for j in profile.jumps[:4]]
    return "; jumps from " + ", ".join(shown)


def _at(analysis: Analysis, name: str, expr: Expr, place: str, value: float) -> Verdict:
    """The objective with the curriculum at one of its ends."""
    progress = 0.0 if place == "start" else 1.0
    outcomes = [
        _outcome(analysis, case, expr, value)
        for case in analysis.all_cases()
        if current(analysis, case, progress)
    ]
    ranked: tuple[Status, ...] = ("refuted", "undecided", "order")
    worst: Status = next((s for s in ranked if s in outcomes), "proved")
    head = f"at the {place} ({name} = {value:g})"
    if worst == "proved":
        return Verdict(NAME, "proved", f"{head} every term satisfies the identity")
    if place == "start":
        return Verdict(NAME, "note", f"{head} the solution is another one than the map")
    message = f"{head} the identity does not hold"
    diagnostic = Diagnostic(NAME, message, expr.span,
                            hint="let the curriculum end where the identity is exact")  # fmt: skip
    return Verdict(NAME, worst, message, diagnostic=None if worst == "order" else diagnostic)


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


def _outcome(analysis: Analysis, case: Case, expr: Expr, value: float) -> str:
    """The identity of a case with the curriculum's value put in."""
    inside = any(
        node == expr for e in (case.prediction, case.target) if e is not None for node in walk(e)
    )
    if not inside:
        outcome = judge(analysis, case).outcome
        return "refuted" if outcome == "biased" else outcome
    fixed = analysis.scalars.number(Fraction(value).limit_denominator(1000))
    try:
        sorted_parts = analysis.study(case, bindings={expr: fixed}).parts
    except Undecided:
        return "undecided"
    return "refuted" if sorted_parts.mean or not sorted_parts.affine else "proved"


CHECK = Check(
    NAME,
    7,
    "Is each curriculum continuous and finite, and does its end satisfy the identity?",
    """A curriculum is evaluated over the whole training, its jumps are located, and its values at
the start and at the end are put into the terms. An objective may begin anywhere; it should end
where its identity holds.

    curriculum  warm = min(1, step / 10000)

ends at 1, where sCM's target is the derivative of its map.""",
    _run,
)
