"""Hints that are true: what to write instead, found by trying it and proving what comes of it.

A term that fails is compared with the derived one, and then varied by single slips of the hand. The
first edit of the text after which the proof goes through gives the message its place, the smallest
piece that explains the failure, and its hint. Where none is found in time the message keeps the
derived target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from flowdsl.checks.report import Report, Verdict
from flowdsl.repair.candidates import anchors, edits, of_loss, of_map, pieces
from flowdsl.repair.edit import Edit
from flowdsl.repair.verify import Revise, Trial
from flowdsl.spec.objective import Objective
from flowdsl.syntax.tree import Expression, Tree

#: Checks whose failures a change of a term's text may mend.
MENDED = ("identity", "unbiased", "gradient")


@dataclass(frozen=True)
class Search:
    """What the search for hints needs to know of a spec.

    `tree` is the spec with all that it inherits; `revise` reads it again with one of its texts
    replaced; `read` parses one expression. `seconds` bounds the search, in processor time.
    """

    objective: Objective
    tree: Tree
    revise: Revise
    read: Callable[[str], Expression]
    seconds: float = 1.0


def explained(report: Report, search: Search) -> Report:
    """The report with places and hints that were tried, where its terms fail."""
    deadline = time.process_time() + search.seconds
    wrong = _failing(report, ("identity",))
    bounded = all(v.ok for v in report.of("boundary"))
    pole = any(v.status == "undecided" for v in report.of("identity"))
    if len(wrong) > 1 or not bounded or pole:
        edit = _first(_trial(report, search, wrong).mends, of_map(search), deadline)
        if edit is not None:
            return _of_map(report, edit)
    if not wrong and any(not v.ok and "weight" in v.message for v in report.of("gradient")):
        names = _failing(report, ("gradient",))
        edit = _first(_trial(report, search, names).mends, of_loss(search), deadline)
        if edit is not None:
            return _told(report, edit, lambda v: v.check == "gradient")
    for name in _failing(report, MENDED):
        edit = _mend(report, search, name, deadline)
        if edit is not None:
            report = _told(report, edit, _about(name))
    if any(v.status == "unanchored" for v in report.verdicts):
        edit = _first(_trial(report, search, ()).anchors, anchors(search), deadline)
        if edit is not None:
            hint = replace(edit, place=None)
            report = _told(report, hint, lambda v: v.status == "unanchored")
    return report


def _about(name: str) -> Callable[[Verdict], bool]:
    return lambda verdict: verdict.term == name and verdict.check in MENDED


def _failing(report: Report, checks: tuple[str, ...]) -> tuple[str, ...]:
    """The terms about which these checks complain."""
    names = (v.term for v in report.verdicts if not v.ok and v.check in checks)
    return tuple(dict.fromkeys(names))


def _mend(report: Report, search: Search, name: str, deadline: float) -> Edit | None:
    """An edit that mends a term; `name` is empty for what concerns all terms."""
    term = next((t for t in search.objective.terms if t.name == name), None)
    if term is None or term.target is None or term.span is None:
        return None
    wrong = any(not v.ok and v.term == name for v in report.of("identity"))
    candidates = edits(pieces(search.tree, term.span), search, wrong)
    return _first(_trial(report, search, (name,)).mends, candidates, deadline)


def _trial(report: Report, search: Search, names: tuple[str, ...]) -> Trial:
    return Trial(search.objective, report, names, search.revise)


def _first(
    passes: Callable[[Edit], bool], candidates: Iterable[Edit], deadline: float
) -> Edit | None:
    """The first edit that passes, among those that can be tried in time."""
    seen: set[str] = set()
    for edit in candidates:
        text = edit.applied().text
        if text in seen or text == edit.source.text:
            continue
        seen.add(text)
        if time.process_time() > deadline:
            return None
        if passes(edit):
            return edit
    return None


def _told(report: Report, edit: Edit, concerned: Callable[[Verdict], bool]) -> Report:
    """The report with the edit as the place and hint of the failures that it mends."""

    def told(verdict: Verdict) -> Verdict:
        shown = verdict.diagnostic
        if verdict.ok or shown is None or not concerned(verdict):
            return verdict
        if edit.place is not None:
            shown = replace(shown, span=edit.place, label=edit.label)
        return replace(verdict, diagnostic=replace(shown, hint=edit.hint, fix=edit.changes))

    return replace(report, verdicts=tuple(map(told, report.verdicts)))


def _of_map(report: Report, edit: Edit) -> Report:
    """One message for all that the map spoils."""
    failing = [v for v in report.verdicts if not v.ok and v.diagnostic is not None]
    first = failing[0]
    message = first.diagnostic.message if first.diagnostic is not None else first.message
    if first.check != "boundary":
        message = "the map is not the one that its terms are about"
    told = _told(report, edit, lambda v: v is first)

    def only(verdict: Verdict) -> Verdict:
        if verdict.ok or verdict.diagnostic is None:
            return verdict
        mine = verdict.diagnostic.span == edit.place
        kept = replace(verdict.diagnostic, message=message) if mine else None
        return replace(verdict, diagnostic=kept)

    return replace(told, verdicts=tuple(map(only, told.verdicts)))


__all__ = ["Edit", "Search", "explained"]
