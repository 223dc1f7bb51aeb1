"""The records of a benchmark, and their JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from flowdsl.runtime.agreement import Agreement
from flowdsl.runtime.bench.machine import Machine
from flowdsl.runtime.bench.timing import Samples, Spread

#: Raised when a field of the JSON changes its meaning or goes away.
SCHEMA = 1

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Row:
    """One way to take a step. What could not be measured is None.

    `ms`: milliseconds. `of_first`, `of_unit`: the time as a ratio to that of the group's first row
    and to that of a plain flow matching step, compiled rows to the compiled step. `flops`: counted,
    in units of one forward pass of the whole batch. `calls`: of each network. `peak`: bytes above
    the level at entry, `peak_of_first` as a ratio. `agreement` is with the row named
    `compared_with`. `refused` says why a row was not timed.
    """

    name: str
    ms: Spread | None = None
    samples: Samples | None = None
    of_first: float | None = None
    of_unit: float | None = None
    flops: float | None = None
    calls: Mapping[str, int] | None = None
    peak: int | None = None
    peak_of_first: float | None = None
    compared_with: str = ""
    agreement: Agreement | None = None
    refused: str = ""


@dataclass(frozen=True)
class Group:
    """One objective in one phase of training on one network: its rows were measured side by side.

    `forward` is the floating-point operations of one forward pass of the whole batch.
    """

    objective: str
    phase: str
    progress: float
    network: str
    size: str
    shape: tuple[int, ...]
    batch: int
    forward: int
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True)
class BenchResult:
    """Everything that was measured, and with what."""

    machine: Machine
    dtype: str
    clock: Clock
    repeats: int
    seed: int
    groups: tuple[Group, ...] = field(default=())

    @property
    def refused(self) -> tuple[tuple[Group, Row], ...]:
        """The rows that were refused."""
        return tuple((g, row) for g in self.groups for row in g.rows if row.refused)

    @property
    def ok(self) -> bool:
        """Whether nothing was refused."""
        return not self.refused

    def as_dict(self) -> dict[str, Any]:
        """Plain data: strings, numbers, lists and dictionaries."""
        return {"schema": SCHEMA, "ok": self.ok, **asdict(self)}

    def json(self) -> str:
        """The same as text; numbers that are not finite become null."""
        return json.dumps(_finite(self.as_dict()), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
