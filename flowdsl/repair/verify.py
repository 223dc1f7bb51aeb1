"""Does an edit mend a term? Asked of the proof, about the spec as the edit would leave it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flowdsl.calculus.errors import Clock, Pole, Undecided
from flowdsl.checks import check
from flowdsl.checks.report import Report
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

    def mends(self, edit: Edit) -> bool:
        """Do the terms pass after the edit, and is nothing else worse?"""
        try:
            revised = self.revise(edit.applied())
            return self._passes(revised) and self._judged(revised)
        except REFUSED:
            return False

    def anchors(self, edit: Edit) -> bool:
        """Is only one flow left after the edit, and nothing else worse?"""
        try:
            report = check(self.revise(edit.applied()), only=NEEDED, time_limit=self.limit)
        except REFUSED:
            return False
        before = {(v.check, v.status) for v in self.report.verdicts if not v.ok}
        after = {(v.check, v.status) for v in report.verdicts if not v.ok}
        return not after - before and all(v.status != "unanchored" for v in report.verdicts)

    def _passes(self, revised: Objective) -> bool:
        """Are the terms proved with the constants at their values, the worst rows first?"""
        analysis = self._analysis(revised)
        for name in self.terms:
            term = next((t for t in revised.terms if t.name == name), None)
            if term is None or term.target is None:
                return False
            for case in self.kinds(name):
                if not _holds(analysis, make_case(term, case.facts, case.implied)):
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
        found = self._own if same else _fresh(revised, self.limit)
        found.clock.start()
        return found

    @property
    def _own(self) -> Analysis:
        if "" not in self._kept:
            self._kept[""] = _fresh(self.objective, self.limit)
        return self._kept[""]

    def kinds(self, name: str) -> list[Case]:
        """The kinds of rows of a term, those on which it fails first."""
        if name not in self._worst:
            term = next(t for t in self.objective.terms if t.name == name)
            self._worst[name] = _by_failure(term, self._own)
        return self._worst[name]

    def _judged(self, revised: Objective) -> bool:
        """Does a whole check of the revised spec agree?"""
        report = check(revised, only=NEEDED, time_limit=self.limit)
        before = {(v.check, v.status) for v in self.report.verdicts if not v.ok}
        for verdict in report.verdicts:
            own = verdict.term in self.terms and verdict.check in OF_TERM
            if not verdict.ok and (own or (verdict.check, verdict.status) not in before):
                return False
        return not _empty(report) or _empty(self.report)


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
