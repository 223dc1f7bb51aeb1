"""Metrics of a network per number of steps, beside the floor: held-out real data measured the same
way.

Held-out rows stand in for samples in the floor, as many as there are samples, with the same
classes: a perfect model would score about the floor, not zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from flowdsl.diagnostics import fail
from flowdsl.runtime.dataset import Batch, Dataset
from flowdsl.runtime.features import Features
from flowdsl.runtime.metrics import Better, Evidence, ExactFlow, Metric, load_metric, metric_names
from flowdsl.runtime.pictures import shows_labels
from flowdsl.runtime.protocols import CompiledLoss, Networks, initial_state
from flowdsl.runtime.randomness import generator
from flowdsl.runtime.samplers import SampleOptions
from flowdsl.runtime.sampling import possible_steps, resolved_sampler, sample

#: Most samples, and most training rows, unless asked for.
MOST_SAMPLES, MOST_REAL = 2000, 10_000


@dataclass(frozen=True)
class Row:
    """Every number of one number of steps. Evaluations count calls of the network per sample."""

    steps: int
    evaluations: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """A table of metrics with the protocol that made it: two tables of one protocol can be
    compared. `reference` training rows are what samples are compared with; of the `held_out` rows
    there are, `count` are measured the same way.
    """

    objective: str
    data: str
    rows: tuple[Row, ...]
    floor: Mapping[str, float]
    better: Mapping[str, Better]
    count: int
    seed: int
    sampler: str
    features: str
    weights: str = ""
    step: int = 0
    reference: int = 0
    held_out: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def json(self) -> str:
        """The same as text; numbers that are not finite become null."""
        plain = self.as_dict()
        return json.dumps(_finite(plain), indent=2, allow_nan=False) + "\n"

    @property
    def references(self) -> str:
        """What samples are compared with, and how much of it there is."""
        return (
            f"compared with {self.reference:,} training rows; last line: {self.count:,} rows drawn "
            f"from {self.held_out:,} held out"
        )

    def table(self) -> Table:
        """The metrics as columns, a row per number of steps, the floor last."""
        marks = {"lower": "↓", "higher": "↑"}
        table = Table(
            title=f"{self.objective} on {self.data}: {self.count} samples each, "
            f"{self.sampler}, weights {self.weights or 'as given'}, step {self.step}",
            title_justify="left",
        )
        table.add_column("steps", justify="right")
        for name, better in self.better.items():
            table.add_column(f"{name} {marks[better]}", justify="right")
        for row in self.rows:
            cells = [_cell(row.values.get(name)) for name in self.better]
            table.add_row(str(row.steps), *cells)
        table.add_section()
        table.add_row("held-out data", *[_cell(self.floor.get(name)) for name in self.better])
        return table


@dataclass(frozen=True)
class EvaluationOptions:
    """`steps` None: those of a run, or what suits the objective. `count` None: as many samples as
    held-out rows, at most 2,000. `metrics` None: all.
    """

    steps: tuple[int, ...] | None = None
    count: int | None = None
    metrics: tuple[str, ...] | None = None
    seed: int = 0
    sampling: SampleOptions = field(default_factory=SampleOptions)


def evaluate(
    loss: CompiledLoss,
    networks: Networks,
    dataset: Dataset,
    features: Features,
    options: EvaluationOptions | None = None,
    *,
    device: torch.device | None = None,
    exact: ExactFlow | None = None,
    weights: str = "",
    step: int = 0,
) -> Evaluation:
    """Samples from the networks with each number of steps, measured against the training rows.

    The classes asked for are those of the held-out rows. `exact` is the exact flow map of the data,
    where it is known.
    """
    options = options or EvaluationOptions()
    count = options.count or min(dataset.held_out.count, MOST_SAMPLES)
    if count < 2:
        raise fail("evaluate", f"{count} samples", hint="at least two")
    metrics = [load_metric(name) for name in options.metrics or metric_names()]
    device = device or torch.device("cpu")
    held_out = _repeated(dataset.held_out.first(count), count)
    real = dataset.train.first(MOST_REAL)
    label = held_out.label if shows_labels(loss, dataset.card) else None
    noise = torch.randn(count, *dataset.card.shape, generator=generator(options.seed, "noise"))
    carried = None if exact is None else _carried(loss, exact, noise)
    sampler = resolved_sampler(loss.signature, options.sampling.sampler)
    rows: list[Row] = []
    better: dict[str, Better] = {}
    for steps in options.steps or possible_steps(loss.signature):
        states = sample(
            loss,
            networks,
            dataset.card.shape,
            count,
            steps,
            label=None if label is None else label.to(device),
            noise=noise.to(device),
            generator=generator(options.seed, "renoise", steps, device=device),
            options=options.sampling,
        ).cpu()
        # fresh noise on the way leads elsewhere than the flow
        drawn = sampler == "transition" or (sampler == "renoise" and steps > 1)
        kept = None if drawn else carried
        evidence = Evidence(Batch(states, label), real, features, noise, kept)
        values, named = _measured(metrics, evidence)
        rows.append(Row(steps, steps * (2 if sampler == "heun" else 1), values))
        better |= named
    floor, _ = _measured(metrics, Evidence(held_out, real, features))
    return Evaluation(
        objective=loss.signature.name,
        data=dataset.card.spec,
        rows=tuple(rows),
        floor=floor,
        better=better,
        count=count,
        seed=options.seed,
        sampler=sampler,
        features=f"{features.name} {features.digest}".strip(),
        weights=weights,
        step=step,
        reference=len(real.data),
        held_out=dataset.held_out.count,
    )


def _measured(
    metrics: Sequence[Metric], evidence: Evidence
) -> tuple[dict[str, float], dict[str, Better]]:
    values: dict[str, float] = {}
    better: dict[str, Better] = {}
    for metric in metrics:
        numbers = metric.measure(evidence)
        values |= numbers
        better |= dict.fromkeys(numbers, metric.better)
    return values, better


def _carried(loss: CompiledLoss, exact: ExactFlow, noise: Tensor) -> Tensor:
    """Where the exact flow carries the noise, in float64."""
    signature = loss.signature
    start = torch.full((len(noise),), signature.noise_time, dtype=torch.float64)
    end = torch.full((len(noise),), signature.data_time, dtype=torch.float64)
    return exact(initial_state(loss, noise.double()), start, end)


def _repeated(batch: Batch, count: int) -> Batch:
    """Exactly `count` rows: the held-out rows over again where there are too few."""
    rows = torch.arange(count) % len(batch.data)
    return Batch(batch.data[rows], None if batch.label is None else batch.label[rows])


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
