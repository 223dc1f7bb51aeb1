"""What a run writes down: metrics.jsonl always, TensorBoard when asked.

Values are means over the steps since the last line. The sums travel in the checkpoint, and a
resumed run first drops the lines after its checkpoint: the file is the same as that of a run that
was never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flowdsl.diagnostics import fail
from flowdsl.runtime.training.directory import write_text


class Window:
    """Sums of scalars since the last line, in float64 so that they survive a round trip through
    JSON exactly.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {}
        self._sums: dict[str, Tensor] = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in saved.get("sums", {}).items()
        }
        self._counts: dict[str, int] = dict(saved.get("counts", {}))
        self.skipped = int(saved.get("skipped", 0))

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """One step's values; tensors stay where they are, so nothing waits for a device."""
        for name, value in values.items():
            number = torch.as_tensor(value, dtype=torch.float64).detach()
            old = self._sums.get(name)
            self._sums[name] = number if old is None else old.to(number.device) + number
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}

    def state(self) -> dict[str, Any]:
        sums = {name: float(total) for name, total in self._sums.items()}
        return {"sums": sums, "counts": dict(self._counts), "skipped": self.skipped}


class MetricsFile:
    """metrics.jsonl: one JSON object per line, each flushed when it is written."""

    def __init__(self, path: Path, last_step: int) -> None:
        """Opens the file for lines after `last_step`; later, broken and partial lines are
        dropped."""
        self.path = path
        if path.exists():
            kept = [x for x in _lines(path) if _step(x) <= last_step and not _partial(x)]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def write(self, record: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise fail(
                "run",
                f"{self.path} cannot be written: {error}",
                hint="make room, then resume the run from its last checkpoint",
            ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl as records; a last line that was cut short is left out."""
    return [json.loads(line) for line in _lines(path)]


class ScalarWriter(Protocol):
    """The two methods that are used of TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def close(self) -> None: ...


def tensorboard_writer(folder: Path, last_step: int) -> ScalarWriter | None:
    """TensorBoard's writer, hiding what an interrupted run wrote after `last_step`; None if not
    installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: ScalarWriter = SummaryWriter(str(folder), purge_step=last_step + 1)
    return writer


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if _step(line) >= 0]


def _partial(line: str) -> bool:
    """Is this the line of a run that was stopped between two lines?"""
    return bool(json.loads(line).get("partial"))


def _step(line: str) -> int:
    """The step of a line, -1 when it is not a whole record."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
