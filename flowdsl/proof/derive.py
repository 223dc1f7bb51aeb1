"""The target, derived from map and moving time."""

from __future__ import annotations

from flowdsl.proof.analysis import Analysis
from flowdsl.proof.cases import Case


def derived_text(analysis: Analysis, case: Case) -> str:
    """The derived target of a case as text."""
    return ""
