"""The checks of an objective, one file each, discovered from this folder.

`check(objective)` answers every question about an objective and ends in a `Report`. The checks read
the very trees that are compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

from flowdsl.calculus.errors import Clock, Pole, Undecided
from flowdsl.checks.check import Check
from flowdsl.checks.report import FAILURES, Report, Verdict
from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.identities import IDENTITIES
from flowdsl.proof.analysis import Analysis
from flowdsl.spec.objective import Objective


def _discover() -> dict[str, Check]:
    found = [
        module.CHECK
        for name in sorted(m.name for m in iter_modules(__path__))
        if isinstance(getattr(module := import_module(f"{__name__}.{name}"), "CHECK", None), Check)
    ]
    return {check.name: check for check in sorted(found, key=lambda c: c.place)}


CHECKS: dict[str, Check] = _discover()

#: How another objective is found by its name, for claims.
Find = Callable[[str], Objective]


def check(
    objective: Objective,
    *,
    only: Iterable[str] | None = None,
    time_limit: float = 20.0,
    find: Find | None = None,
) -> Report:
    """Judge an objective.

    `only` names the checks to run (all of them by default). `time_limit` is in seconds and holds
    for each check, which ends in *undecided* when it is over. `find` gives the objectives that
    claims refer to. Raises a DiagnosticError for a check that does not exist.
    """
    names = list(CHECKS) if only is None else list(only)
    for name in names:
        if name not in CHECKS:
            known = did_you_mean(name, CHECKS) or "checks: " + ", ".join(CHECKS)
            raise fail("check", f"there is no check `{name}`", hint=known)
    clock = Clock(time_limit)
    analysis = Analysis(objective, tuple(IDENTITIES.values()), clock, find=find)
    verdicts: list[Verdict] = []
    for name in (n for n in CHECKS if n in names):
        verdicts += _run(CHECKS[name], objective, analysis, clock)
    return Report(objective.name, objective.title, tuple(verdicts))


def _run(check: Check, objective: Objective, analysis: Analysis, clock: Clock) -> list[Verdict]:
    """One check within its time; the time that its verdicts do not account for goes to the
    first."""
    clock.start()
    begin = time.perf_counter()
    try:
        verdicts = check.run(objective, analysis)
    except Undecided as undecided:
        verdicts = [Verdict(check.name, "undecided", undecided.reason)]
    except Pole:
        verdicts = [Verdict(check.name, "undecided", "a division by zero")]
    spent = time.perf_counter() - begin
    told = sum(verdict.seconds for verdict in verdicts)
    if verdicts and spent > told:
        verdicts[0] = replace(verdicts[0], seconds=verdicts[0].seconds + spent - told)
    return verdicts


__all__ = ["CHECKS", "FAILURES", "Check", "Report", "Verdict", "check"]
