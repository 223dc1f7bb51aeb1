"""The metrics: one file each, found by its name.

A file here defines `SUMMARY`, one line; `BETTER`, "lower" or "higher"; and `measure(evidence)`,
which returns its numbers by name, or none where it does not apply (no labels, no exact flow).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from flowdsl.runtime.dataset import Batch
from flowdsl.runtime.discovery import member, members
from flowdsl.runtime.features import Features

Better = Literal["lower", "higher"]

#: The exact flow map: states (n, *shape), start times (n,), end times (n,) -> states.
ExactFlow = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a metric may look at.

    `generated`: samples, with the classes that were asked for. `real`: training rows. `noise`:
    where each sample started, None for real data in place of samples. `carried`: where the exact
    flow carries that noise, when known.
    """

    generated: Batch
    real: Batch
    features: Features
    noise: Tensor | None = None
    carried: Tensor | None = None


@dataclass(frozen=True)
class Metric:
    """One metric: its name in lists, the direction that is better, and how it is measured."""

    name: str
    summary: str
    better: Better
    measure: Callable[[Evidence], Mapping[str, float]]


def metric_names() -> tuple[str, ...]:
    """Every metric that can be named."""
    return members(sys.modules[__name__])


def load_metric(name: str) -> Metric:
    """The metric of this name; a `DiagnosticError` when there is none."""
    module = member(sys.modules[__name__], name, "metric")
    return Metric(name, module.SUMMARY, module.BETTER, module.measure)
