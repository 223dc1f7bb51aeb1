"""What there is to say about the shipped objectives: the rows of `list`, the sections of `methods`.

Checking and compiling all of them takes longer than one wants to wait for a list, so that each row
is kept in a file of the user's cache, under a name that changes with the spec and with flowdsl.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import flowdsl
from flowdsl import pipeline, sources
from flowdsl.checks import Report
from flowdsl.passes.program import Program

#: From the verdict that an author must not overlook to the one that is merely told.
_WORST = ("disagreement", "refuted", "unanchored", "biased", "undecided", "order", "note")


@dataclass(frozen=True)
class Row:
    """One shipped objective. Costs are those of a training step, in forward passes of a network."""

    name: str
    extends: str
    title: str
    arxiv: str
    lines: int  # of the spec, without comments
    networks: tuple[str, ...]
    differentiates: str
    cost: tuple[float, ...]  # for each phase of training
    plain_cost: float  # before any optimisation
    identity: str
    verdict: str
    depth: int = 0

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def family() -> Iterator[tuple[str, int]]:
    """The shipped names, each after the one it extends, with its depth in that tree."""
    trees = {n: pipeline.parse(sources.find_source(n)) for n in flowdsl.shipped()}
    below: dict[str | None, list[str]] = {}
    for name, tree in trees.items():
        below.setdefault(tree.extends if tree.extends in trees else None, []).append(name)

    def visit(name: str, depth: int) -> Iterator[tuple[str, int]]:
        yield name, depth
        for child in below.get(name, []):
            yield from visit(child, depth + 1)

    for name in below.get(None, []):
        yield from visit(name, 0)


def row(name: str, depth: int) -> Row:
    """The row of a shipped objective, from the cache if it is there."""
    objective = flowdsl.load(name)
    file = _place(objective)
    with suppress(OSError, ValueError, TypeError):
        kept: dict[str, Any] = json.loads(file.read_text())
        values = {f.name: _frozen(kept[f.name]) for f in fields(Row)}
        return Row(**{**values, "depth": depth})
    found = describe(objective, objective.check(), depth)
    with suppress(OSError):  # a cache that cannot be written is none
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(found.as_dict()))
        partial.replace(file)
    return found


def describe(objective: flowdsl.Objective, report: Report, depth: int = 0) -> Row:
    """The row of an objective with its report."""
    typed = objective.typed
    source = objective.tree.source.text.splitlines()
    written = [line for line in source if line.split("#")[0].strip()]
    return Row(
        name=typed.name,
        extends=typed.extends or "",
        title=typed.title,
        arxiv=typed.arxiv,
        lines=len(written),
        networks=tuple(typed.networks),
        differentiates=typed.moving.time if typed.moving else "",
        cost=costs(objective.graph()) if typed.terms else (),
        plain_cost=max(costs(objective.graph(optimize=False))) if typed.terms else 0.0,
        identity=_identity(report),
        verdict=_verdict(report),
        depth=depth,
    )


def costs(program: Program) -> tuple[float, ...]:
    """The cost of each phase, after the last pass."""
    if len(program.phases) == 1:
        return (program.steps[-1].cost,)
    last = {step.phase: step.cost for step in program.steps}
    return tuple(last[phase.name] for phase in program.phases)


def _identity(report: Report) -> str:
    """What carries the proof: of each term and kind of row the first set that suffices."""
    found: dict[str, None] = {}
    for verdict in report.verdicts:
        if verdict.check == "identity" and verdict.identities:
            found[" + ".join(verdict.identities[0])] = None
    return ", ".join(name for name in found if name)


def _verdict(report: Report) -> str:
    told = [v for v in report.verdicts if v.check != "curriculum" or not v.ok]
    for status in _WORST:
        for verdict in told:
            if verdict.status == status and (status != "note" or verdict.check == "unbiased"):
                return "proved, robust loss" if status == "note" else verdict.shown
    return "proved"


def _frozen(value: Any) -> Any:
    """Tuples are lists in JSON."""
    return tuple(value) if isinstance(value, list) else value


def _place(objective: flowdsl.Objective) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    text = pipeline.standalone(objective.tree) + objective.tree.source.text
    digest = hashlib.sha256((text + _fingerprint()).encode()).hexdigest()[:24]
    return Path(home) / "flowdsl" / f"{objective.name}-{digest}.json"


@cache
def _fingerprint() -> str:
    """Of flowdsl itself: what its files are called, how large they are and when they changed."""
    package = Path(flowdsl.__file__).parent
    files = sorted(p for p in package.rglob("*") if p.suffix in (".py", ".flow"))
    facts = [(str(p.relative_to(package)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()
