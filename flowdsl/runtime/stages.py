"""Runs in stages: objectives trained one after the other, each starting with what an earlier one
has learnt.

A staged run is a folder with one ordinary run per stage and a `stages.json` that holds all of them,
specs and settings included: what is needed to go on does not lie outside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.runtime.contract import ObjectiveSignature
from flowdsl.runtime.loading import BuildNetworks, CompileSpec, bundled_networks
from flowdsl.runtime.runs import resume_run, train_run
from flowdsl.runtime.training.checkpoints import checkpoint_steps
from flowdsl.runtime.training.config import TrainConfig
from flowdsl.runtime.training.directory import (
    STAGES,
    SavedSpec,
    fresh_directory,
    write_text,
)
from flowdsl.runtime.training.progress import reporter
from flowdsl.runtime.training.trainer import RunResult

FORMAT = 1


@dataclass(frozen=True)
class StagePlan:
    """One stage: its objective, its settings (`steps` are its own), and where networks come from.

    `carried` holds (network, earlier stage); `sources` networks that start with another run.
    """

    name: str
    spec: SavedSpec
    config: TrainConfig
    carried: tuple[tuple[str, str], ...] = ()
    sources: Mapping[str, Path] = field(default_factory=dict)


def train_stages(
    plans: Sequence[StagePlan],
    compile_spec: CompileSpec,
    name: str,
    *,
    run_dir: Path | None = None,
    root: Path = Path("runs"),
    sources: Mapping[str, Path] | None = None,
    build: BuildNetworks = bundled_networks,
    progress: bool = True,
) -> RunResult:
    """Trains the stages one after the other; without `run_dir` into `root`/`name`-data.

    `sources` are runs whose weights networks start with, in every stage that has such a network;
    stages that only served to train these are left out. Everything that can be refused is refused
    before the first step.
    """
    plans = _with_sources(plans, compile_spec, sources or {})
    data = plans[-1].config.data.partition(":")[0]
    path = run_dir or fresh_directory(root, name, data)
    if (path / STAGES).exists() or (path / "run.json").exists():
        raise fail(
            "run",
            f"{path} already holds a run",
            hint=f"continue it: flowdsl train --resume {path}\nor name another folder",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / STAGES, json.dumps(_as_json(plans), indent=2) + "\n")
    except OSError as error:
        raise fail("run", f"{path} cannot be written: {error}") from error
    return _run(plans, compile_spec, path, build, progress)


def resume_stages(
    run_dir: Path,
    compile_spec: CompileSpec,
    *,
    build: BuildNetworks = bundled_networks,
    progress: bool = True,
) -> RunResult:
    """Goes on with a staged run: the stage that was stopped, then those after it."""
    return _run(read_stages(run_dir), compile_spec, run_dir, build, progress)


def read_stages(run_dir: Path) -> tuple[StagePlan, ...]:
    """The stages of a staged run, as they were planned."""
    file = run_dir / STAGES
    try:
        content = json.loads(file.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this flowdsl reads format {FORMAT}")
        return tuple(_stage(stage) for stage in content["stages"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise fail("run", f"{file} cannot be read: {error}") from error


def stage_folder(run_dir: Path, plans: Sequence[StagePlan], name: str) -> Path:
    """The folder of a stage: its number and its name."""
    number = next(i for i, plan in enumerate(plans) if plan.name == name)
    return run_dir / f"{number + 1}-{name}"


def _run(
    plans: Sequence[StagePlan],
    compile_spec: CompileSpec,
    path: Path,
    build: BuildNetworks,
    progress: bool,
) -> RunResult:
    """All stages that are not finished; stops where one is stopped."""
    report = reporter(progress)
    results: list[RunResult] = []
    for number, plan in enumerate(plans):
        report.message(f"stage {number + 1} of {len(plans)}: {plan.name}")
        folder = stage_folder(path, plans, plan.name)
        if checkpoint_steps(folder / "checkpoints"):
            result = resume_run(folder, compile_spec, build=build, progress=progress)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # killed before there was anything to keep
            carried = {role: stage_folder(path, plans, stage) for role, stage in plan.carried}
            result = train_run(
                compile_spec(plan.spec),
                plan.config,
                plan.spec,
                run_dir=folder,
                sources={**carried, **plan.sources},
                build=build,
                progress=progress,
            )
        results.append(result)
        if not result.finished:
            report.message(f"the whole run goes on with: flowdsl train --resume {path}")
            break
    return replace(
        results[-1],
        path=path,
        step=sum(result.step for result in results),
        steps=sum(plan.config.steps for plan in plans),
        seconds=sum(result.seconds for result in results),
    )


def _with_sources(
    plans: Sequence[StagePlan], compile_spec: CompileSpec, sources: Mapping[str, Path]
) -> tuple[StagePlan, ...]:
    """The stages that are needed, with the networks that other runs supply; each is compiled."""
    signatures = {plan.name: compile_spec(plan.spec).signature for plan in plans}
    known = {network.name for s in signatures.values() for network in s.networks}
    for role in sources:
        if role not in known:
            raise fail(
                "train",
                f'no stage has a network "{role}"',
                facts=(("networks", ", ".join(sorted(known))),),
                hint=did_you_mean(role, known),
            )
    plans = [_supplied(plan, signatures[plan.name], sources) for plan in plans]
    if sources:
        needed = {plans[-1].name}
        for plan in reversed(plans):
            if plan.name in needed:
                needed |= {stage for _, stage in plan.carried}
        plans = [plan for plan in plans if plan.name in needed]
    for plan in plans:
        _check_start(plan, signatures[plan.name])
    return tuple(plans)


def _supplied(
    plan: StagePlan, signature: ObjectiveSignature, sources: Mapping[str, Path]
) -> StagePlan:
    mine = {n.name: sources[n.name] for n in signature.networks if n.name in sources}
    carried = tuple((role, stage) for role, stage in plan.carried if role not in mine)
    return replace(plan, carried=carried, sources=mine)


def _check_start(plan: StagePlan, signature: ObjectiveSignature) -> None:
    """Every network that is carried over exists, and every frozen one has weights to start with."""
    roles = [network.name for network in signature.networks]
    given = {*dict(plan.carried), *plan.sources}
    for role in given:
        if role not in roles:
            raise fail(
                "train",
                f'stage {plan.name}: {signature.name} has no network "{role}"',
                facts=(("networks", ", ".join(roles)),),
                hint=did_you_mean(role, roles),
            )
    for network in signature.networks:
        if network.frozen and network.name not in given:
            raise fail(
                "train",
                f"stage {plan.name}: {network.name} does not learn, so it needs weights to start "
                "with",
                facts=(("spec", network.line),),
                hint=f"carry it over from an earlier stage (`{network.name} from …`), or name the "
                f"run that trained it: --start {network.name}=runs/…",
            )


def _as_json(plans: Sequence[StagePlan]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "stages": [
            {
                "name": plan.name,
                "spec": plan.spec.text,
                "constants": dict(plan.spec.constants),
                "options": dict(plan.spec.options),
                "config": plan.config.model_dump(mode="json"),
                "carried": [list(pair) for pair in plan.carried],
                "sources": {role: str(path) for role, path in plan.sources.items()},
            }
            for plan in plans
        ],
    }


def _stage(content: Mapping[str, Any]) -> StagePlan:
    return StagePlan(
        content["name"],
        SavedSpec(content["spec"], content["constants"], content["options"]),
        TrainConfig.model_validate(content["config"]),
        tuple((role, stage) for role, stage in content["carried"]),
        {role: Path(path) for role, path in content["sources"].items()},
    )


def is_staged(run_dir: Path) -> bool:
    """Whether a folder holds a run in stages."""
    return (run_dir / STAGES).exists()


def whole_run(run_dir: Path) -> Path:
    """The staged run that a stage's folder belongs to, else the folder itself."""
    parent = run_dir.absolute().parent
    return parent if is_staged(parent) else run_dir
