"""A run's folder: everything that sampling, evaluating and resuming need, and nothing outside it.

run.json        config, objective, data, networks, versions
spec.flow       the spec as it was trained
loss.py         the emitted loss
frozen.safetensors   networks that do not learn, when there are any
metrics.jsonl   one line per log interval
tensorboard/    the same for TensorBoard
samples/        pictures
checkpoints/    step-00000500/ ...
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch
from pydantic import ValidationError

from flowdsl.diagnostics import fail
from flowdsl.runtime.dataset import DataCard, Pixels
from flowdsl.runtime.training.config import TrainConfig

FORMAT = 1

#: What a run in stages holds beside a run per stage.
STAGES = "stages.json"


@dataclass(frozen=True)
class SavedSpec:
    """What it takes to compile a run's objective again: its text, its constants, the compiler's
    options.
    """

    text: str = ""
    constants: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """run.json as data. `networks`: each role's `.config`, None for a module of your own."""

    objective: str
    title: str
    config: TrainConfig
    data: DataCard
    spec: SavedSpec
    networks: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


class RunDirectory:
    """The paths of a run, and its record."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.frozen = self.path / "frozen.safetensors"

    def create(self, record: RunRecord, source: str) -> None:
        """Makes the folder and writes the record, the spec and the emitted loss into it.

        Raises `DiagnosticError` when a run is there already or the folder cannot be written.
        """
        if (self.path / "run.json").exists():
            raise fail(
                "run",
                f"{self.path} already holds a run",
                hint=f"continue it: flowdsl train --resume {self.path}\nor name another folder",
            )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.samples.mkdir(exist_ok=True)
            write_text(self.path / "spec.flow", record.spec.text)
            write_text(self.path / "loss.py", source)
            write_text(self.path / "run.json", json.dumps(_as_json(record), indent=2) + "\n")
        except OSError as error:
            raise fail("run", f"{self.path} cannot be written: {error}") from error

    def record(self) -> RunRecord:
        """What `create` wrote; a `DiagnosticError` when the folder is no run or is damaged."""
        file = self.path / "run.json"
        if not file.is_file():
            raise fail("run", f"{self.path} is not a run: it has no run.json")
        try:
            return _from_json(json.loads(file.read_text()), self.path / "spec.flow")
        except (ValueError, KeyError, TypeError, OSError, ValidationError) as error:
            raise fail("run", f"{file} cannot be read: {error}") from error

    def source(self) -> str:
        """The emitted loss that the run was started with."""
        file = self.path / "loss.py"
        return file.read_text() if file.is_file() else ""


def last_run(path: Path | str) -> Path:
    """The run that a folder stands for: itself, or the last stage that has a checkpoint.

    A staged run is sampled, evaluated and carried over from by its last stage.
    """
    folder = Path(path)
    if not (folder / STAGES).is_file():
        return folder
    begun = [file.parent for file in folder.glob("*/run.json") if file.parent.name[0].isdigit()]
    begun = [run for run in begun if any((run / "checkpoints").glob("step-*"))]
    if not begun:
        raise fail("run", f"no stage of {folder} has a checkpoint yet", hint="train it further")
    return max(begun, key=lambda run: int(run.name.partition("-")[0]))


def fresh_directory(root: Path, objective: str, data: str) -> Path:
    """The first of root/objective-data, root/objective-data-2, ... that is free."""
    name = f"{objective}-{data}"
    number = 1
    while (path := root / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path


def versions() -> dict[str, str]:
    """What ran: for telling two results apart later."""
    try:
        own = metadata.version("flowdsl")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {
        "flowdsl": own,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


def write_text(path: Path, text: str) -> None:
    """Writes by way of a temporary file: the old content stays until the new is complete."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _as_json(record: RunRecord) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "objective": record.objective,
        "title": record.title,
        "config": record.config.model_dump(mode="json"),
        "data": asdict(record.data),
        "constants": dict(record.spec.constants),
        "options": dict(record.spec.options),
        "networks": dict(record.networks),
        "versions": dict(record.versions),
    }


def _from_json(content: Mapping[str, Any], spec: Path) -> RunRecord:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, this flowdsl reads format {FORMAT}")
    data = content["data"]
    channels, height, width = data["shape"]
    return RunRecord(
        objective=content["objective"],
        title=content["title"],
        config=TrainConfig.model_validate(content["config"]),
        data=DataCard(
            name=data["name"],
            spec=data["spec"],
            shape=(channels, height, width),
            classes=data["classes"],
            class_names=tuple(data["class_names"]),
            patch=data["patch"],
            pixels=Pixels(**data["pixels"]),
            conditions=data.get("conditions", ""),
        ),
        spec=SavedSpec(spec.read_text(encoding="utf-8"), content["constants"], content["options"]),
        networks=content["networks"],
        versions=content["versions"],
    )
