"""Edits in the messages of a report: one mistake is told once, at its place, with its remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flowdsl.checks.report import Report, Verdict
from flowdsl.repair.edit import Edit
from flowdsl.repair.verify import Judged


def told(
    report: Report, edit: Edit, concerned: Callable[[Verdict], bool], judged: Judged
) -> Report:
    """The report with the edit as the place and hint of the failures that it mends: shown once, for
    the first check and term concerned; the messages of the others go."""
    cured = [v for v in report.verdicts if judged.cured(v)]
    first = next((v for v in cured if v.diagnostic is not None and concerned(v)), None)
    if first is None:
        return report

    def shown(verdict: Verdict) -> Verdict:
        if verdict.diagnostic is None or not judged.cured(verdict):
            return verdict
        if (verdict.check, verdict.term, verdict.cause) == (first.check, first.term, first.cause):
            return with_edit(verdict, edit)
        return replace(verdict, diagnostic=None)

    return replace(report, verdicts=tuple(map(shown, report.verdicts)))


def with_edit(verdict: Verdict, edit: Edit) -> Verdict:
    """A failure, shown where the edit is, with the edit as its hint."""
    shown = verdict.diagnostic
    assert shown is not None
    if edit.place is not None:
        shown = replace(shown, span=edit.place, label=edit.label, others=edit.others)
    return replace(verdict, diagnostic=replace(shown, hint=edit.hint, fix=edit.changes))


def of_map(report: Report, edit: Edit) -> Report:
    """One message for all that the map spoils."""
    failing = [v for v in report.verdicts if not v.ok and v.diagnostic is not None]
    first = failing[0]
    message = first.diagnostic.message if first.diagnostic is not None else first.message
    if first.check != "boundary":
        message = "the map is not the one that its terms are about"

    def only(verdict: Verdict) -> Verdict:
        if verdict.ok or verdict.diagnostic is None:
            return verdict
        if verdict is not first:
            return replace(verdict, diagnostic=None)
        return with_edit(
            replace(verdict, diagnostic=replace(verdict.diagnostic, message=message)), edit
        )

    return replace(report, verdicts=tuple(map(only, report.verdicts)))


def one_cause(report: Report) -> Report:
    """Times that leave the path, or lead the wrong way, are why others are not reached: the first
    such message stays, and says it for all."""
    failing = [v for v in report.verdicts if not v.ok and v.cause == "times"]
    first = next((v for v in failing if v.check == "times"), None)
    if first is None:
        return report

    def only(verdict: Verdict) -> Verdict:
        shown = verdict.diagnostic
        if verdict not in failing or verdict is first or shown is None or shown.fix:
            return verdict
        return replace(verdict, diagnostic=None)

    return replace(report, verdicts=tuple(map(only, report.verdicts)))
