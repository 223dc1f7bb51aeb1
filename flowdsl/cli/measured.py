"""What `benchmarks/measure.py` measured: read and written here, shown by `methods`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flowdsl.diagnostics import fail

#: The metric of overviews: of the states themselves, lower is better.
METRIC = "sliced-W2"
MARKS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True)
class Figures:
    """Metrics by name, of samples in this number of steps."""

    steps: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """One objective, trained once.

    `digest` is that of its stages: specs, constants and settings. `steps` are those of each stage,
    of `batch` rows each; `minutes` processor time of all stages on one core. `before` and `after`
    are figures at the start and at the end of the last stage, `floor` those of held-out data;
    `better` says which way each metric improves, "lower" or "higher". `constants` are those of the
    last stage that were set to other values than the spec's. `certificate` is what exact flows say
    of the compiled loss, `reference` the largest relative difference of its value and gradients
    from an independent loss in float64; both are empty where nobody asked.
    """

    digest: str
    versions: Mapping[str, str]
    data: str
    batch: int
    seed: int
    steps: tuple[int, ...]
    minutes: float
    sampler: str
    better: Mapping[str, str]
    before: tuple[Figures, ...]
    after: tuple[Figures, ...]
    floor: Mapping[str, float]
    constants: Mapping[str, float] = field(default_factory=dict)
    certificate: str = ""
    reference: float | None = None

    def overview(self) -> str:
        """One metric before and after, for all numbers of steps: `0.82 → 0.11, 0.08`."""
        return f"{_shown(self._all(self.before))} → {_shown(self._all(self.after))}"

    def sampled(self) -> str:
        """The numbers of steps of the sampler: `1, 2, 4`."""
        return ", ".join(str(one.steps) for one in self.after)

    def trained(self) -> str:
        """How long, in words."""
        steps = " + ".join(str(count) for count in self.steps)
        told = f"{steps} steps of {self.batch} rows, {self.minutes:.1f} minutes of one core"
        changed = ", ".join(f"{name} = {value:.3g}" for name, value in self.constants.items())
        return f"{told}, with {changed}" if changed else told

    def budget(self) -> str:
        """How long, in a cell of a table: `400 + 400, 0.7 min`."""
        return f"{' + '.join(str(count) for count in self.steps)}, {self.minutes:.1f} min"

    def table(self) -> Iterator[tuple[str, ...]]:
        """A head, and a row for each number of steps: every metric before and after."""
        yield ("steps", *(f"{name} {MARKS[way]}" for name, way in self.better.items()))
        for start, end in zip(self.before, self.after, strict=True):
            cells = (f"{start.values[n]:.3g} → {end.values[n]:.3g}" for n in self.better)
            yield (str(end.steps), *cells)
        yield ("held-out data", *(f"{self.floor[name]:.3g}" for name in self.better))

    def improved(self) -> bool:
        """Whether the metric of overviews is better after than before in the fewest steps."""
        return self._all(self.after)[0] < self._all(self.before)[0]

    def _all(self, figures: Sequence[Figures]) -> list[float]:
        return [one.values[METRIC] for one in figures]


def fingerprint(parts: Sequence[object]) -> str:
    """Of the repr of some plain values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def read(path: Path) -> dict[str, Measured]:
    """By objective; nothing where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return {name: _measured(entry) for name, entry in json.loads(path.read_text()).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise fail("file", f"{path} cannot be read: {error}") from None


def write(path: Path, measured: Mapping[str, Measured]) -> None:
    """Ordered by name."""
    plain = {name: asdict(measured[name]) for name in sorted(measured)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
    partial.replace(path)


def _measured(entry: Mapping[str, Any]) -> Measured:
    plain = dict(entry)
    for when in ("before", "after"):
        plain[when] = tuple(Figures(one["steps"], one["values"]) for one in plain[when])
    return Measured(**{**plain, "steps": tuple(plain["steps"])})


def _shown(numbers: Sequence[float]) -> str:
    """Two significant digits; a number that is the same for all only once."""
    texts = [f"{number:.2g}" for number in numbers]
    return ", ".join(texts[:1] if len(set(texts)) == 1 else texts)
