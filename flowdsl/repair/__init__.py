"""Hints that are true: what to write instead, found by trying it and proving what comes of it.

A term that fails is compared with the derived one, and then varied by single slips of the hand. The
first edit of the text after which the proof goes through gives the message its place, the smallest
piece that explains the failure, and its hint. What still fails in the mended text is searched in
turn, and shown beside. Where no edit is found in time the message keeps the derived target.
"""

from __future__ import annotations

import time

from flowdsl.checks.report import Report, Verdict
from flowdsl.repair.beyond import rest
from flowdsl.repair.edit import Edit
from flowdsl.repair.rounds import Found, Search, searched
from flowdsl.repair.told import one_cause

#: How often a mended text is searched again: more slips than these are another spec.
ROUNDS = 3


def explained(report: Report, search: Search) -> Report:
    """The report with places and hints that were tried, where its terms fail."""
    deadline = time.process_time() + search.seconds
    found = searched(report, search, deadline)
    told = found.report
    for _ in range(ROUNDS - 1):
        if not found.edits or (not found.partial and not any(map(_unmended, told.verdicts))):
            break
        later = time.process_time() + search.seconds / 2
        found, told = rest(found, told, search, later)
    return one_cause(told)


def _unmended(verdict: Verdict) -> bool:
    return not verdict.ok and verdict.diagnostic is not None and not verdict.diagnostic.fix


__all__ = ["Edit", "Found", "Search", "explained"]
