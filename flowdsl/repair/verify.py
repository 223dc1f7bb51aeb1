"""Does an edit mend a term? Asked of the proof, about the spec as the edit would leave it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from flowdsl.calculus.errors import Clock, Pole, Undecided
from flowdsl.checks import CHECKS, check
from flowdsl.checks.report import Report, Verdict
from flowdsl.diagnostics import DiagnosticError, Source
from flowdsl.identities import IDENTITIES
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.judge import judge
from flowdsl.repair.edit import Edit
from flowdsl.spec.core import Evaluate, PathVelocity, walk
from flowdsl.spec.objective import Objective, Term
from flowdsl.truth.cases import Case, make_case

#: Reads a spec again with one of its texts (its own, or one that it extends) replaced.
Revise = Callable[[Source], Objective]
#: Reads it again so, and runs these checks.
Judge = Callable[[Source, tuple[str, ...]], Report]

Outcome = Literal["mends", "helps", ""]


@dataclass(frozen=True)
class Judged:
    """What became of a spec by an edit: nothing is wrong with what it was made for, or one thing
    less; and the report of the checks that were asked."""

    outcome: Outcome
    report: Report | None = None
    asked: tuple[str, ...] = ()

    def cured(self, verdict: Verdict) -> bool:
        """Did this failure go?"""
        if verdict.ok or self.report is None or verdict.check not in self.asked:
            return False
        left = {(v.check, v.term) for v in self.report.verdicts if not v.ok}
        return (verdict.check, verdict.term) not in left


NOTHING = Judged("")

#: Checks that must have no complaint about a term that an edit has mended.
OF_TERM = ("identity", "unbiased", "gradient", "times")
NEEDED = ("boundary", "anchored", *OF_TERM)

#: What the proof says when it cannot go on, and what a text that is no spec says.
REFUSED = (DiagnosticError, Undecided, Pole, RecursionError)


@dataclass(frozen=True)
class Trial:
    """The failing terms of an objective, and what is needed to judge an edit of them.

    Most edits are rejected on the row on which a term fails, by the analysis of the objective as it
    is: networks, maps and their truths are the same, and need not be thought through again.
    """

    objective: Objective
    report: Report
    terms: tuple[str, ...]
    revise: Revise
    limit: float = 5.0
    _worst: dict[str, list[Case]] = field(default_factory=dict)
    _kept: dict[str, Analysis] = field(default_factory=dict)

    def judged(self, edit: Edit) -> Judged:
        """Do the terms pass after the edit, with nothing else worse? It *helps* where the first of
        their failures is cured and others stay, or are seen only now."""
        try:
            revised = self.revise(edit.applied())
            if not self._passes(revised):
                return NOTHING
            names = NEEDED if self._courses is None else (*NEEDED, "curriculum")
            report = check(revised, only=names, time_limit=self.limit)
            if self._courses is not None and _courses(report) != self._courses:
                return NOTHING  # what is never looked at is not wrong, and not mended
            return Judged(self._outcome(report), report, names)
        except REFUSED:
            return NOTHING

    def cures(
        self,
        edit: Edit,
        mine: Callable[[Verdict], bool],
        first: tuple[str, ...],
        judge: Judge | None = None,
    ) -> Judged:
        """Do these failures go, and none come? The checks named `first` are asked first, then those
        of terms, or with `judge` all. What `first` spoke of must still be there."""
        alone = first == ("claims",)  # nothing else depends on them
        asked = NEEDED if judge is None else first if alone else tuple(CHECKS)
        spoken = {v.term for v in self.report.verdicts if v.check in first}
        try:
            for names in dict.fromkeys((first, asked)):
                if judge is None:
                    revised = self.revise(edit.applied())
                    report = check(revised, only=names, time_limit=self.limit)
                else:
                    report = judge(edit.applied(), names)
                if any(mine(v) for v in report.verdicts if not v.ok):
                    return NOTHING
                if judge is not None and spoken - {v.term for v in report.verdicts}:
                    return NOTHING
        except REFUSED:
            return NOTHING
        known = {(v.check, v.term) for v in self.report.verdicts if not v.ok and not mine(v)}
        fine = all((v.check, v.term) in known for v in report.verdicts if not v.ok)
        return Judged("mends", report, asked) if fine else NOTHING

    def anchors(self, edit: Edit) -> Judged:
        """Is only one flow left after the edit, and nothing else worse?"""
        try:
            report = check(self.revise(edit.applied()), only=NEEDED, time_limit=self.limit)
        except REFUSED:
            return NOTHING
        before = {(v.check, v.status) for v in self.report.verdicts if not v.ok}
        after = {(v.check, v.status) for v in report.verdicts if not v.ok}
        tied = all(v.status != "unanchored" for v in report.verdicts)
        return Judged("mends", report, NEEDED) if tied and not after - before else NOTHING

    def _passes(self, revised: Objective) -> bool:
        """Are the terms proved with the constants at their values, the worst rows first?"""
        analysis = self._analysis(revised)
        for name in self.terms:
            term = next((t for t in revised.terms if t.name == name), None)
            if term is None or term.target is None:
                return False
            for case in self.kinds(name):
                if not _holds(analysis, make_case(analysis.domain, term, case.facts, case.implied)):
                    return False
        return True

    def _analysis(self, revised: Objective) -> Analysis:
        mine, theirs = self.objective, revised
        same = (mine.maps == theirs.maps and mine.moving == theirs.moving
                and mine.networks == theirs.networks and mine.paths == theirs.paths)  # fmt: skip
        others = [[t for t in o.terms if t.name not in self.terms] for o in (mine, theirs)]
        truth = mine.moving is not None and mine.moving.along is not None
        same = same and others[0] == others[1] and (
            truth or not any(_guides(o, self.terms) for o in (mine, theirs)))  # fmt: skip
        found = self.own if same else _fresh(revised, self.limit)
        found.clock.start()
        return found

    @property
    def own(self) -> Analysis:
        """The analysis of the objective as it is."""
        if "" not in self._kept:
            self._kept[""] = _fresh(self.objective, self.limit)
        return self._kept[""]

    @property
    def _courses(self) -> set[str] | None:
        """The curricula that terms use, where one of them has a fault."""
        failed = any(not v.ok for v in self.report.of("curriculum"))
        return _courses(self.report) if failed else None

    def kinds(self, name: str) -> list[Case]:
        """The kinds of rows of a term, those on which it fails first."""
        if name not in self._worst:
            term = next(t for t in self.objective.terms if t.name == name)
            self._worst[name] = _by_failure(term, self.own)
        return self._worst[name]

    def _outcome(self, report: Report) -> Outcome:
        """What a whole check of the revised spec says."""
        if _empty(report) and not _empty(self.report):
            return ""
        before = {(v.check, v.status) for v in self.report.verdicts if not v.ok}
        failed = [v for v in report.verdicts if not v.ok]
        own = [v for v in failed if v.term in self.terms and v.check in OF_TERM]
        if not own and all((v.check, v.status) in before for v in failed):
            return "mends"
        cured = self._first()
        if any(v.check == cured for v in own):
            return ""
        known = {(v.check, v.term) for v in self.report.verdicts if not v.ok}
        return "helps" if all((v.check, v.term) in known or self._hidden(v) for v in failed) else ""

    def _first(self) -> str:
        """The first check that the terms fail."""
        failed = {v.check for v in self.report.verdicts if not v.ok and v.term in self.terms}
        return next((name for name in OF_TERM if name in failed), "identity")

    def _hidden(self, verdict: Verdict) -> bool:
        """Was there no answer to this question while the first failure stood before it?"""
        if verdict.cause == "times":  # not asked where the truth itself does not pass
            return any(not v.ok for v in self.report.of("identity"))
        mine = [v for v in self.report.of(verdict.check) if verdict.check == "anchored"
                or v.term == verdict.term]  # fmt: skip
        return not any(v.status in ("proved", "order") for v in mine)


def _courses(report: Report) -> set[str]:
    return {v.term for v in report.of("curriculum")}


def _fresh(objective: Objective, limit: float) -> Analysis:
    clock = Clock(limit)
    clock.start()
    return Analysis(objective, tuple(IDENTITIES.values()), clock, symbolic=False)


def _guides(objective: Objective, names: tuple[str, ...]) -> bool:
    """May one of these terms say which flow is to be learned (see `truth/marginal.py`)?

    A velocity beside networks under several conditions is guidance; a change of it is another
    truth.
    """
    for term in objective.terms:
        if term.name not in names or term.target is None:
            continue
        found = [n for e in (term.prediction, term.target) for n in walk(e)]
        shown = {n.conditions for n in found if isinstance(n, Evaluate)}
        if len(shown) > 1 and any(isinstance(n, PathVelocity) for n in found):
            return True
    return False


def _holds(analysis: Analysis, case: Case) -> bool:
    """Proved, or to an order in a curriculum."""
    finding = judge(analysis, case)
    if finding.outcome == "order":
        steps = analysis.curricula.all
        return any(finding.small.startswith((name, f"({name} ")) for name in steps)
    return finding.outcome == "proved"


def _empty(report: Report) -> bool:
    """Is some term satisfied by every network?"""
    return any("for every network: nothing is learnt" in v.message for v in report.verdicts)


def _by_failure(term: Term, analysis: Analysis) -> list[Case]:
    """A term's kinds of rows, those first that a wrong edit will hardly satisfy."""
    try:
        found = analysis.cases(term)
        failing = [c for c in found if judge(analysis, c).outcome in ("refuted", "biased")]
    except (Undecided, Pole):
        return []
    return failing[::-1] + [c for c in found if c not in failing]
