"""One search through a text: for each failure the edits that may mend it, in their order."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from flowdsl.checks.report import Report, Verdict
from flowdsl.diagnostics import Source, Span
from flowdsl.repair import told
from flowdsl.repair.candidates import anchors, edits, of_loss, of_map, pieces
from flowdsl.repair.edit import Edit, apart, together
from flowdsl.repair.headings import of_claims, of_curriculum, of_path
from flowdsl.repair.times import of_times
from flowdsl.repair.verify import NOTHING, Judged, Revise, Trial
from flowdsl.spec.objective import Objective
from flowdsl.syntax.tree import Expression, Tree

#: Checks whose failures a change of a term's text may mend.
MENDED = ("identity", "unbiased", "gradient")
#: After an edit that helps, so much of the time left goes into one that mends all.
PATIENCE = 0.25
#: So many of the first edits are also tried two at a time.
PAIRED = 40


class Again(Protocol):
    """Reads and checks the spec again, with one of its texts replaced; `only` names the checks."""

    def __call__(
        self, source: Source, only: tuple[str, ...] | None = None
    ) -> tuple[Report, Search]: ...


@dataclass(frozen=True)
class Search:
    """What the search for hints needs to know of a spec.

    `tree` is the spec with all that it inherits; `revise` reads it again with one of its texts
    replaced, and `again` checks that too; `read` parses one expression. `seconds` bounds the
    search, in processor time.
    """

    objective: Objective
    tree: Tree
    revise: Revise
    again: Again
    read: Callable[[str], Expression]
    seconds: float = 1.0


@dataclass(frozen=True)
class Found:
    """A report with its hints, and the edits behind them; `partial` when one of them mends its
    failure and uncovers another."""

    report: Report
    edits: tuple[Edit, ...] = ()
    partial: bool = False

    def told(self, edit: Edit, report: Report, partial: bool = False) -> Found:
        return Found(report, (*self.edits, edit), self.partial or partial)


def searched(report: Report, search: Search, deadline: float) -> Found:
    """The report with the first edits that mend its failures, as far as there is time."""
    found = _map(report, search, deadline) or _loss(report, search, deadline)
    if found is not None:
        return found
    paths = tuple(search.objective.paths)
    found = _heading(
        Found(report), search, lambda v: v.check == "boundary" and v.term in paths,
        of_path(search), deadline,
    )  # fmt: skip
    if _follows_training(report):
        found = _curriculum(found, search, deadline)
    for name in failing(found.report, MENDED):
        found = _term(found, search, name, deadline)
    found = _curriculum(found, search, deadline)
    found = _claims(_times(found, search, deadline), search, deadline)
    return _anchors(found, search, deadline)


def failing(report: Report, checks: tuple[str, ...]) -> tuple[str, ...]:
    """The terms about which these checks complain; "" for all of them at once."""
    names = (v.term for v in report.verdicts
             if _open(v) and v.check in checks and v.cause != "times")  # fmt: skip
    return tuple(dict.fromkeys(names))


def _open(verdict: Verdict) -> bool:
    """Does this fail, and no edit is known that mends it?"""
    return not verdict.ok and verdict.diagnostic is not None and not verdict.diagnostic.fix


def _map(report: Report, search: Search, deadline: float) -> Found | None:
    """An edit of the map that mends all terms."""
    wrong = failing(report, ("identity",))
    bounded = all(v.ok for v in report.of("boundary") if v.term in search.objective.maps)
    pole = any(v.status == "undecided" for v in report.of("identity"))
    if len(wrong) < 2 and bounded and not pole:
        return None
    edit, judged = first_of(_trial(report, search, wrong).judged, of_map(search), deadline)
    if edit is None or judged.outcome != "mends":
        return None
    return Found(told.of_map(report, edit), (edit,))


def _loss(report: Report, search: Search, deadline: float) -> Found | None:
    """An edit of the loss after which no weight is negative."""
    negative = any(not v.ok and "weight" in v.message for v in report.of("gradient"))
    if not negative or failing(report, ("identity",)):
        return None
    names = failing(report, ("gradient",))
    edit, judged = first_of(_trial(report, search, names).judged, of_loss(search), deadline)
    if edit is None:
        return None
    mended = told.told(report, edit, lambda v: v.check == "gradient", judged)
    return Found(mended, (edit,), judged.outcome == "helps")


def _term(found: Found, search: Search, name: str, deadline: float) -> Found:
    """An edit that mends a term."""
    report = found.report
    term = next((t for t in search.objective.terms if t.name == name), None)
    if term is None or term.target is None or term.span is None:
        return found
    wrong = any(not v.ok and v.term == name for v in report.of("identity"))
    candidates = list(edits(pieces(search.tree, term.span), search, wrong))
    trial = _trial(report, search, (name,))
    edit, judged = first_of(trial.judged, candidates, deadline)
    if edit is None and wrong:
        edit, judged = first_of(trial.judged, _pairs(candidates[:PAIRED]), deadline)
    if edit is None:
        return found
    mended = told.told(report, edit, lambda v: v.term == name and v.check in MENDED, judged)
    return found.told(edit, mended, judged.outcome == "helps")


def _pairs(singles: list[Edit]) -> Iterator[Edit]:
    """Two slips at once, the likelier first."""
    places = [(i, k) for k in range(len(singles)) for i in range(k)]
    for i, k in sorted(places, key=sum):
        if apart(singles[i], singles[k]):
            yield together([singles[i], singles[k]])


def _times(found: Found, search: Search, deadline: float) -> Found:
    """An edit of the lines that draw times."""

    def mine(verdict: Verdict) -> bool:
        return verdict.cause == "times"

    if not any(mine(v) for v in found.report.verdicts if _open(v)):
        return found
    trial = _trial(found.report, search, ())
    edit, judged = first_of(
        lambda e: trial.cures(e, mine, ("times",)), of_times(search, trial.own), deadline
    )
    if edit is None:
        return found
    own = any(mine(v) and v.check == "times" for v in found.report.verdicts if _open(v))
    mended = told.told(
        found.report, edit, lambda v: mine(v) and (v.check == "times" or not own), judged
    )
    return found.told(edit, mended)


def _anchors(found: Found, search: Search, deadline: float) -> Found:
    """A term that ties the map to the data."""
    report = found.report
    if not any(v.status == "unanchored" for v in report.verdicts if _open(v)):
        return found
    edit, judged = first_of(_trial(report, search, ()).anchors, anchors(search), deadline)
    if edit is None:
        return found
    hint = replace(edit, place=None)
    mended = told.told(report, hint, lambda v: v.status == "unanchored", judged)
    return found.told(edit, mended)


def _follows_training(report: Report) -> bool:
    """Do the identities fail by as much as a curriculum says?"""
    names = {"progress", "step", "steps", *(v.term for v in report.of("curriculum"))}
    wrong = [v for v in report.of("identity") if not v.ok]
    return bool(wrong) and all(names & set(re.findall(r"[^\W\d]\w*", v.left_over)) for v in wrong)


def _curriculum(found: Found, search: Search, deadline: float) -> Found:
    edits_ = of_curriculum(search)
    return _heading(found, search, lambda v: v.check == "curriculum", edits_, deadline)


def _claims(found: Found, search: Search, deadline: float) -> Found:
    """For each claim that is refuted one that holds."""
    for verdict in found.report.of("claims"):
        if not verdict.ok and verdict.diagnostic is not None:
            place = verdict.diagnostic.span
            found = _heading(found, search, _at(place), of_claims(search, place), deadline)
    return found


def _at(place: Span | None) -> Callable[[Verdict], bool]:
    return lambda verdict: verdict.diagnostic is not None and verdict.diagnostic.span == place


def _heading(
    found: Found,
    search: Search,
    mine: Callable[[Verdict], bool],
    candidates: Iterable[Edit],
    deadline: float,
) -> Found:
    """An edit of a line after which its own check has nothing to say, and no other more."""
    failed = [v for v in found.report.verdicts if _open(v) and mine(v)]
    if not failed:
        return found
    trial = _trial(found.report, search, ())
    checks = tuple({v.check for v in failed})

    def judged_of(edit: Edit) -> Judged:
        return trial.cures(edit, mine, checks, lambda s, only: search.again(s, only)[0])

    edit, judged = first_of(judged_of, candidates, deadline)
    if edit is None:
        return found
    return found.told(edit, told.told(found.report, edit, mine, judged))


def _trial(report: Report, search: Search, names: tuple[str, ...]) -> Trial:
    return Trial(search.objective, report, names, search.revise)


def first_of(
    judge: Callable[[Edit], Judged], candidates: Iterable[Edit], deadline: float
) -> tuple[Edit | None, Judged]:
    """The first edit after which all is well; else the first that helps, of those that can be tried
    in time."""
    seen: set[str] = set()
    best: tuple[Edit | None, Judged] = None, NOTHING
    for edit in candidates:
        text = edit.applied().text
        if text in seen or text == edit.source.text:
            continue
        seen.add(text)
        if time.process_time() > deadline:
            break
        judged = judge(edit)
        if judged.outcome == "mends":
            return edit, judged
        if judged.outcome == "helps" and best[0] is None:
            best = edit, judged
            now = time.process_time()
            deadline = now + PATIENCE * max(0.0, deadline - now)
    return best
