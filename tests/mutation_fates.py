"""What becomes of one mutant: read, checked, compared with its spec, and measured.

A mutant is unreadable, killed by a check, left undecided, or accepted; one that is accepted is the
same objective, has the same gradient for every network, or is another objective that is proved. The
compiled loss is measured too, which may contradict the proof.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from traceback import extract_tb

from flowdsl.calculus.errors import Clock, Pole, Undecided
from flowdsl.checks import Report, Verdict, check
from flowdsl.checks.certificate import agreement, with_certificate
from flowdsl.diagnostics import DiagnosticError
from flowdsl.identities import IDENTITIES
from flowdsl.pipeline import compiled, load, load_text
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.compare import compare
from flowdsl.spec.objective import Claim, Objective
from flowdsl.syntax.format import format_tree
from tests.mutations import Mutant, base_tree

#: What a measurement can say, the worst first.
AGREEMENTS = ("disagrees", "too small to see", "agrees", "measured alone", "not measured")
ACCEPTED = ("same", "equal", "another", "as biased")


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: `kind`, the check or stage that says so, and the reason.

    Kinds: "unreadable", "killed", "undecided", "crashed" (a fault of flowdsl); of those that pass
    "same" (the very same one), "equal" (the same gradient for every network), "another" (another
    objective, proved). A mutant of a spec that is itself biased and fails in no other way is "as
    biased".
    """

    mutant: Mutant
    kind: str
    by: str = ""
    reason: str = ""
    measured: str = ""  # one of AGREEMENTS, or nothing
    detail: str = ""  # what disagrees, or why nothing was measured or seen
    seconds: float = 0.0
    measuring: float = 0.0  # seconds of the measurement
    commit: str = ""  # of the tree that judged it

    @property
    def accepted(self) -> bool:
        return self.kind in ACCEPTED

    @property
    def proof_alone(self) -> bool:
        """Was it judged without a measurement, which was not asked for?"""
        return not self.measured and self.kind not in ("unreadable", "crashed")


def judged(mutant: Mutant) -> tuple[Fate, Objective | None, Report | None]:
    """Read and check a mutant."""
    began = time.process_time()
    try:
        objective = load_text(mutant.text)
    except DiagnosticError as error:
        first = error.diagnostics[0]
        return Fate(mutant, "unreadable", first.code, first.message), None, None
    report = check(objective, find=load)
    fate = _fate(mutant, objective, report)
    return replace(fate, seconds=time.process_time() - began), objective, report


def _fate(mutant: Mutant, objective: Objective, report: Report) -> Fate:
    known = _failures(check(base(mutant.spec), find=load)) if _is_biased(mutant.spec) else set()
    failing = [v for v in report.verdicts if not v.ok]
    fresh = [v for v in failing if _essence(v) not in known]
    decided = [v for v in fresh if v.status != "undecided"]
    if decided:
        first = decided[0]
        return Fate(mutant, "killed", first.check, f"{first.status}: {first.reason}")
    if fresh:
        return Fate(mutant, "undecided", fresh[0].check, fresh[0].message)
    kind, reason = neutral(mutant.spec, objective, report)
    return Fate(mutant, "as biased" if failing and kind == "another" else kind, "", reason)


def _failures(report: Report) -> set[tuple[str, ...]]:
    return {_essence(v) for v in report.verdicts if not v.ok}


def _essence(verdict: Verdict) -> tuple[str, ...]:
    return verdict.check, verdict.status, verdict.term, verdict.case, verdict.left_over


@cache
def _is_biased(spec: str) -> bool:
    """Does the spec itself fail (trajectory flow matching is biased by its nature)?"""
    return not check(base(spec), find=load).ok


def neutral(spec: str, objective: Objective, report: Report) -> tuple[str, str]:
    """Why a mutant that passes is no worse: the same objective, or another one that is proved."""
    if same(base(spec), objective):
        return "same", "the very same objective"
    drawn = "" if base(spec).draws == objective.draws else "; rows and times are drawn otherwise"
    equal, how = beside(base(spec), objective)
    if equal:
        return "equal", how + drawn
    told = {
        f"{v.term} {v.case}: {v.shown}, {v.reason}".replace(" : ", ": ")
        for v in report.of("identity") if v.term
    }  # fmt: skip
    return "another", "; ".join(sorted(told)) + f" -- {how}{drawn}"


def beside(one: Objective, other: Objective) -> tuple[bool, str]:
    """Do two objectives have the same gradient for every network, on the rows of both?"""
    try:
        for first, second in ((one, other), (other, one)):
            analysis = Analysis(first, tuple(IDENTITIES.values()), Clock(20.0))
            pairs = compare(analysis, second, Claim("gradient", second.name, "always"))
            for pair in pairs:
                if not pair.same:
                    return False, f"for any network it differs by {pair.left}"
            weighted = all(p.weights for p in pairs)
    except (Undecided, Pole) as undecided:
        return False, getattr(undecided, "reason", "not comparable")
    if weighted:
        return True, "the same gradient for every network"
    return True, "the same gradient for every network, up to a positive weight"


@cache
def base(spec: str) -> Objective:
    return load_text(format_tree(base_tree(spec)))


def same(one: Objective, other: Objective) -> bool:
    """Do two objectives compute the same from the same draws?"""
    parts = ("constants", "paths", "draws", "networks", "maps", "terms")
    return all(getattr(one, p) == getattr(other, p) for p in parts)


def measured(fate: Fate, objective: Objective, report: Report) -> Fate:
    """The fate with a measurement: how the compiled loss's mean gradient stands to the proof.

    The worst of the terms counts; "too small to see" is told apart from agreement.
    """
    from flowdsl.certify import certify

    began = time.process_time()
    certificate = certify(objective, compiled, find=load)
    fate = replace(fate, measuring=time.process_time() - began)
    joined = with_certificate(report, certificate)
    wrong = [v for v in joined.of("certificate") if v.status == "disagreement"]
    if wrong:
        return replace(fate, measured="disagrees", detail=wrong[0].message)
    said = [(agreement(report, term), term.reason) for term in certificate.terms]
    worst = min(said, key=lambda s: AGREEMENTS.index(s[0]), default=("not measured", "no term"))
    told = worst[1] if worst[0] in ("too small to see", "not measured") else ""
    return replace(fate, measured=worst[0], detail=told)


def run(mutant: Mutant, certify: bool) -> Fate:
    """One mutant, from text to fate; whatever goes wrong is told, and the others go on."""
    try:
        fate, objective, report = judged(mutant)
        if not certify or objective is None or report is None:
            return fate
        return measured(fate, objective, report)
    except Exception as error:  # a fault of flowdsl, which the table must show
        frame = extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return Fate(mutant, "crashed", type(error).__name__, f"{error} ({place})")
