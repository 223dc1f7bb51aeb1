"""Checkpoints that are either complete or not there.

A checkpoint is a folder `step-00000500` of safetensors (networks, averages), the optimisers' state
and a JSON state. It is written under a temporary name, flushed to the disk and then renamed:
whatever interrupts the writing, the previous checkpoint stays as it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from flowdsl.diagnostics import DiagnosticError, fail

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that changes while training.

    `tensors`: by file name, "networks" (the bound loss: learned networks and the objective's own
    averages) and one "ema-..." per evaluation average. `optimizers`: state dicts by player.
    `state`: plain data.
    """

    step: int
    tensors: Mapping[str, Tensors]
    optimizers: Mapping[str, Any]
    state: Mapping[str, Any]


def checkpoint_steps(folder: Path) -> tuple[int, ...]:
    """The steps of the complete checkpoints, in order."""
    names = [path.name for path in folder.glob("step-*")] if folder.is_dir() else []
    return tuple(sorted(int(name[5:]) for name in names if name[5:].isdigit()))


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes the checkpoint, then removes all but the last `keep`. Returns its folder.

    Raises `DiagnosticError` when it cannot be written; older checkpoints are untouched then.
    """
    final = checkpoint_path(folder, checkpoint.step)
    if final.exists():  # a resumed run that was stopped at once: the same step has the same content
        return final
    partial = folder / f".{final.name}.partial"
    for left_over in folder.glob(".step-*.partial"):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, tensors in checkpoint.tensors.items():
            _write(partial / f"{name}.safetensors", save(_plain(tensors)))
        with (partial / "optimizers.pt").open("wb") as file:
            torch.save(dict(checkpoint.optimizers), file)
            file.flush()
            os.fsync(file.fileno())
        state = {"step": checkpoint.step, **checkpoint.state}
        _write(partial / "state.json", json.dumps(state, indent=2).encode())
        partial.rename(final)
        _flush_folder(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _not_written(folder, checkpoint.step, error) from error
    for step in checkpoint_steps(folder)[:-keep]:
        shutil.rmtree(checkpoint_path(folder, step), ignore_errors=True)
    return final


def load_checkpoint(folder: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint of a step, or the last one; nothing in it can run code.

    Raises `DiagnosticError` when there is none, or when it is damaged (naming the one before it).
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise fail("checkpoint", f"{folder} holds no checkpoint", hint="train again from the start")
    wanted = steps[-1] if step is None else step
    if wanted not in steps:
        known = ", ".join(str(s) for s in steps)
        raise fail("checkpoint", f"there is no checkpoint of step {wanted}", hint=f"there: {known}")
    path = checkpoint_path(folder, wanted)
    try:
        state = json.loads((path / "state.json").read_text())
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
        optimizers = torch.load(path / "optimizers.pt", map_location="cpu", weights_only=True)
        return Checkpoint(int(state.pop("step")), tensors, optimizers, state)
    except Exception as error:  # each reader has its own errors; all mean a damaged checkpoint
        before = [s for s in steps if s < wanted]
        hint = f"the one before it is step {before[-1]}: remove {path.name}" if before else ""
        raise fail("checkpoint", f"{path} cannot be read: {error}", hint=hint) from error


def save_tensors(path: Path, tensors: Tensors) -> None:
    """One safetensors file, complete or not there."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        _write(partial, save(_plain(tensors)))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise fail("run", f"{path} cannot be written: {error}") from error


def _plain(tensors: Tensors) -> dict[str, Tensor]:
    """On the CPU and apart from each other: safetensors refuses tensors that share memory (tied
    weights).
    """
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system can do that for a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(folder: Path, step: int, error: Exception) -> DiagnosticError:
    steps = checkpoint_steps(folder)
    last = f"the last usable one is step {steps[-1]}" if steps else "there is none before it"
    return fail(
        "checkpoint",
        f"the checkpoint of step {step} could not be written: {error}",
        facts=(("kept", last),),
        hint="make room, then resume the run",
    )
