"""Is each curriculum continuous and finite, and does its end satisfy the identity?"""

from __future__ import annotations

import time
from dataclasses import replace

from flowdsl.calculus.curriculum import Profile
from flowdsl.calculus.errors import Undecided
from flowdsl.checks.check import Check, Example, rows_text
from flowdsl.checks.report import Status, Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.moments import RANKS, Outcome, current, outcome_at
from flowdsl.proof.show import Printer
from flowdsl.spec.core import Expr, walk
from flowdsl.spec.objective import Objective
from flowdsl.truth.cases import Case

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
    leaps = profile.staircase or bool(profile.jumps)
    verdicts = [Verdict(NAME, "note" if leaps else "proved", course + _jumps(profile))]
    moments = [("at the start", 0.0), ("inside", profile.inside), ("at the end", 1.0)]
    for place, progress in moments:
        if progress is not None:
            verdicts.append(_at(analysis, name, expr, place, progress))
    return verdicts


def _jumps(profile: Profile) -> str:
    if profile.staircase:
        return ", in many steps"
    if not profile.jumps:
        return ", continuous"
    shown = [f"{j.before:.4g} to {j.after:.4g} at {j.progress:.3f}" for j in profile.jumps[:4]]
    return "; jumps from " + ", ".join(shown)


def _at(analysis: Analysis, name: str, expr: Expr, place: str, progress: float) -> Verdict:
    """The objective at one moment of training: start and inside may differ from the truth, the end
    may not."""
    head = f"{place} ({name} = {analysis.curricula.value(expr, progress):g})"
    found = [
        (case, outcome_at(analysis, case, progress))
        for case in analysis.all_cases()
        if current(analysis, case, progress)
    ]
    silent = [case for case, outcome in found if outcome.silent]
    found = [(case, outcome) for case, outcome in found if not outcome.silent]
    if not found:
        message = f"{head} every weight is zero: nothing is learnt"
        return _failed(message, expr, "refuted") if progress == 1.0 else Verdict(
            NAME, "note", message)  # fmt: skip
    case, worst = min(found, key=lambda item: RANKS.index(item[1].status))
    if silent:
        head += f" without {', '.join(dict.fromkeys(c.term.name for c in silent))}, of weight zero,"
    if worst.status == "proved":
        return Verdict(NAME, "proved", f"{head} every term satisfies the identity")
    if worst.status == "order":
        message = f"{head} the identity holds to order {worst.order} in {worst.small}"
        return Verdict(NAME, "order", message, order=worst.order)
    left, shown = _told(analysis, case, worst)
    message = f"{head} {shown}"
    if progress < 1.0:
        return Verdict(NAME, "note", message, left_over=left)
    return replace(_failed(message, expr, worst.status), left_over=left)


def _told(analysis: Analysis, case: Case, outcome: Outcome) -> tuple[str, str]:
    """What is left over, and the verdict in words."""
    where = case.term.name
    rows = rows_text(analysis, [case])
    where += "" if rows == "all" else f" on {rows}"
    printer = Printer.of(analysis, case)
    left = ""
    if outcome.study is not None and outcome.left is not None:
        left = printer.left_over(outcome.study, outcome.left)
    if outcome.status == "undecided":
        return left, f"{where} is undecided: {outcome.reason}"
    if outcome.status == "biased" and outcome.study is not None:
        return left, f"{where} is biased: its solution is another one than the map"
    return left, f"{where} is {outcome.status}: the identity does not hold"


def _failed(message: str, expr: Expr, status: Status) -> Verdict:
    diagnostic = Diagnostic(NAME, message, expr.span,
                            hint="let the curriculum end where the identity is exact")  # fmt: skip
    return Verdict(NAME, status, message, diagnostic=diagnostic)


CHECK = Check(
    NAME,
    7,
    "Is each curriculum continuous and finite, and does its end satisfy the identity?",
    """A curriculum is evaluated over the whole training, its jumps are located, and its values at
the start, half of the way and at the end are put into the terms. An objective may begin anywhere;
it should end where its identity holds, with a weight that is not zero.

    curriculum  warm = min(1, step / 10000)

ends at 1, where sCM's target is the derivative of its map; inside the warm-up it is refuted, which
is told and does no harm.""",
    _run,
    Example(
        good="""\
curriculum    warm = min(1, 2 * progress)
target        match u(z, t, r) to stop(velocity - warm * (t - r) * d/dt[u(z, t, r)])""",
        bad="""\
curriculum    warm = progress / 2
target        match u(z, t, r) to stop(velocity - warm * (t - r) * d/dt[u(z, t, r)])""",
        status="refuted",
    ),
)
