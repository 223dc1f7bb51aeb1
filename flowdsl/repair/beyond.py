"""What still fails in a text once its first slips are mended, told at its place in the text as it
is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flowdsl.checks.report import Report, Verdict
from flowdsl.diagnostics import Diagnostic, DiagnosticError, Source, Span
from flowdsl.repair.edit import Edit, apart
from flowdsl.repair.rounds import Found, Search, searched
from flowdsl.repair.told import one_cause


def rest(found: Found, report: Report, search: Search, deadline: float) -> tuple[Found, Report]:
    """The search of the text that the edits leave, and the report with what it finds there."""
    edits: list[Edit] = []
    for edit in found.edits:
        if all(apart(edit, other) for other in edits):
            edits.append(edit)
    changes = [c for edit in edits for c in edit.changes]
    mended = Edit(tuple(changes), None, "", "").applied()
    try:
        after, own = search.again(mended)
    except DiagnosticError:
        return Found(report), report
    if after.ok:
        return Found(report), report
    later = searched(after, own, deadline)
    back = _Back(edits[0].source, changes)
    shown = _merged(report, one_cause(later.report), back)
    steps = [back.edit(edit) for edit in later.edits]
    whole = tuple(edits) + tuple(e for e in steps if e is not None)
    if len(whole) == len(edits):
        return Found(shown), shown
    return Found(shown, whole, later.partial), shown


def _merged(report: Report, later: Report, back: _Back) -> Report:
    """Failures that the report has take over what was found for them; others stand beside it."""
    hints: dict[tuple[str, str], Diagnostic | None] = {}
    shown_before = {(v.check, v.term) for v in report.verdicts if not v.ok and v.diagnostic}
    further = list(report.further)
    for verdict in later.verdicts:
        shown = verdict.diagnostic
        if verdict.ok or (shown is not None and shown.severity != "error"):
            continue
        placed = None if shown is None else back.diagnostic(shown)
        key = verdict.check, verdict.term
        if key in shown_before:
            hints.setdefault(key, placed)
        elif placed is not None:
            told = replace(placed, facts=(*placed.facts, _ONCE))
            further += [] if told in further else [told]

    def told_now(verdict: Verdict) -> Verdict:
        own, key = verdict.diagnostic, (verdict.check, verdict.term)
        if verdict.ok or own is None or own.fix or key not in hints:
            return verdict
        found = hints[key]
        if found is None:  # told with another
            return replace(verdict, diagnostic=None)
        if not found.hint or not _tried(found, own):
            return verdict
        mine = replace(own, span=found.span, label=found.label, others=found.others,
                       hint=found.hint, fix=found.fix)  # fmt: skip
        return replace(verdict, diagnostic=mine)

    return replace(report, verdicts=tuple(map(told_now, report.verdicts)), further=tuple(further))


def _tried(found: Diagnostic, own: Diagnostic) -> bool:
    """Is this hint one that was tried, whose replacements may not be told apart from earlier
    ones?"""
    return bool(found.fix) or found.hint != own.hint


_ONCE = ("seen", "once the other messages' hints are followed")


class _Back:
    """Places in a mended text as places in the text before."""

    def __init__(self, source: Source, changes: Sequence[tuple[Span, str]]) -> None:
        self._source = source
        self._moves: list[tuple[int, int, int, int]] = []  # start and end before, and after
        shift = 0
        for span, new in sorted(changes, key=lambda c: c[0].start):
            start = span.start + shift
            self._moves.append((span.start, span.end, start, start + len(new)))
            shift += len(new) - (span.end - span.start)

    def _offset(self, at: int, end: bool) -> int:
        shift = 0
        for before, before_end, start, stop in self._moves:
            if at <= start:
                break
            if at < stop or (at == stop and end):  # inside what was changed
                return before_end if end else before
            shift = stop - before_end
        return at - shift

    def span(self, span: Span) -> Span:
        if span.source.name != self._source.name:
            return span
        start, end = self._offset(span.start, False), self._offset(span.end, True)
        return Span(self._source, start, max(start, end))

    def untouched(self, span: Span) -> bool:
        """Does the span hold nothing that was changed?"""
        return span.source.name != self._source.name or not any(
            span.start < stop and start < span.end for _, _, start, stop in self._moves
        )

    def edit(self, edit: Edit) -> Edit | None:
        """The edit in the text before; None where it changes what was changed already."""
        if not all(self.untouched(span) for span, _ in edit.changes):
            return None
        moved = tuple((self.span(span), new) for span, new in edit.changes)
        return replace(edit, changes=moved)

    def diagnostic(self, shown: Diagnostic) -> Diagnostic:
        fix = tuple((self.span(span), new) for span, new in shown.fix)
        if not all(self.untouched(span) for span, _ in shown.fix):
            fix = ()
        return replace(
            shown,
            span=None if shown.span is None else self.span(shown.span),
            others=tuple((self.span(span), label) for span, label in shown.others),
            fix=fix,
        )
