"""Whole runs in one call each: train, resume, sample, evaluate. What the command line calls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from flowdsl.diagnostics import fail
from flowdsl.runtime.data import load_dataset
from flowdsl.runtime.dataset import DataCard
from flowdsl.runtime.evaluation import Evaluation, EvaluationOptions, evaluate
from flowdsl.runtime.features import features_of
from flowdsl.runtime.grid import Block, save_picture
from flowdsl.runtime.loading import (
    BuildNetworks,
    CompileSpec,
    LoadedRun,
    bundled_networks,
    load_run,
    start_from,
)
from flowdsl.runtime.pictures import Layout, layout, sample_blocks, sample_picture, shows_labels
from flowdsl.runtime.posterior import posterior_blocks
from flowdsl.runtime.protocols import CompiledLoss, takes_labels
from flowdsl.runtime.samplers import SampleOptions
from flowdsl.runtime.sampling import possible_steps, resolved_sampler
from flowdsl.runtime.training.config import TrainConfig
from flowdsl.runtime.training.directory import (
    RunDirectory,
    SavedSpec,
    fresh_directory,
    write_text,
)
from flowdsl.runtime.training.trainer import RunResult, resume, train
from flowdsl.runtime.truth import exact_flow


def train_run(
    loss: CompiledLoss,
    config: TrainConfig,
    spec: SavedSpec,
    *,
    run_dir: Path | None = None,
    root: Path = Path("runs"),
    sources: Mapping[str, Path] | None = None,
    build: BuildNetworks = bundled_networks,
    progress: bool = True,
) -> RunResult:
    """Trains bundled networks (or what `build` makes) on the config's data.

    Without `run_dir` the run goes into `root`/objective-data, with a number when that is taken.
    `sources` are runs whose weights roles start with (needed for frozen ones).
    """
    dataset = load_dataset(config.data, config.resolution, config.conditions)
    if config.conditions is not None and not takes_labels(loss.signature):
        raise fail(
            "conditions",
            f"no network of {loss.signature.name} sees a condition",
            hint="declare it so: `network u(z, t, r | text)`",
        )
    networks = build(loss, dataset.card, config)
    start_from(networks, loss, sources or {})
    path = run_dir or fresh_directory(root, loss.signature.name, dataset.card.name)
    return train(loss, networks, dataset, config, run_dir=path, spec=spec, progress=progress)


def resume_run(
    run_dir: Path,
    compile_spec: CompileSpec,
    *,
    build: BuildNetworks = bundled_networks,
    progress: bool = True,
) -> RunResult:
    """Goes on with a run from its last checkpoint, exactly."""
    record = RunDirectory(run_dir).record()
    loss = compile_spec(record.spec)
    config = record.config
    dataset = load_dataset(config.data, config.resolution, config.conditions)
    networks = build(loss, record.data, record.config)
    return resume(run_dir, loss, networks, dataset, progress=progress)


@dataclass(frozen=True)
class SampleRequest:
    """What to draw: numbers of steps (None: those of the run's pictures), classes (names or
    numbers; None: the first ten), the seed, and a file of other embeddings than those of training.
    With `given`, times of the path: draws of the data given held-out ones that are noised to each
    of them, by objectives that learn an inner flow.
    """

    steps: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    seed: int = 0
    given: tuple[float, ...] = ()
    weights: str = "ema"
    checkpoint: int | None = None
    options: SampleOptions = field(default_factory=SampleOptions)
    device: str = "auto"
    conditions: str | None = None


@dataclass(frozen=True, eq=False)
class SampleResult:
    """Where the picture is, the states (rows, columns, *shape) by number of steps, and the sampler
    that "auto" stood for."""

    path: Path
    states: Mapping[int, Tensor]
    sampler: str = ""


def sample_run(
    run_dir: Path,
    compile_spec: CompileSpec,
    request: SampleRequest | None = None,
    *,
    out: Path | None = None,
    build: BuildNetworks = bundled_networks,
) -> SampleResult:
    """A picture of samples from a run's checkpoint; by default into the run's own folder."""
    request = request or SampleRequest()
    run = load_run(
        run_dir,
        compile_spec,
        weights=request.weights,
        step=request.checkpoint,
        device=request.device,
        build=build,
        conditions=request.conditions,
    )
    card = run.record.data
    labels = _class_numbers(card, request.classes)
    labelled = shows_labels(run.loss, card)
    if labels is not None and not labelled:
        raise fail("sample", f"{run.record.objective} on {card.name} knows no classes")
    plan = layout(card, labelled=labelled, labels=labels)
    if request.given:
        return _given(run, plan, request, out)
    steps = request.steps or possible_steps(run.loss.signature, run.record.config.sample_steps)
    blocks = sample_blocks(
        run.loss,
        run.networks,
        card,
        plan,
        steps,
        seed=request.seed,
        device=run.device,
        options=request.options,
    )
    path = _saved(run, blocks, plan, request, out or run.directory.samples / _file(run, request))
    states = {n: block.states for n, block in zip(steps, blocks, strict=True)}
    return SampleResult(path, states, resolved_sampler(run.loss.signature, request.options.sampler))


def _given(run: LoadedRun, plan: Layout, request: SampleRequest, out: Path | None) -> SampleResult:
    """Draws given held-out data noised to each time; their states by the number of the time."""
    config = run.record.config
    dataset = load_dataset(config.data, config.resolution, config.conditions)
    blocks = posterior_blocks(
        run.loss,
        run.networks,
        dataset,
        plan,
        request.given,
        seed=request.seed,
        device=run.device,
        options=request.options,
    )
    file = out or run.directory.samples / _file(run, request).replace("sample-", "given-")
    path = _saved(run, blocks, plan, request, file)
    states = {k: block.states for k, block in enumerate(blocks[2::2])}
    return SampleResult(path, states, "transition")


def _file(run: LoadedRun, request: SampleRequest) -> str:
    """A name that tells what was asked for, so that another request replaces no picture."""
    asked = [f"steps{'-'.join(map(str, request.steps))}"] if request.steps else []
    asked += [re.sub(r"\W+", "_", name)[:20] for name in (request.classes or ())[:8]]
    return "-".join(["sample", f"{run.step:08d}", *asked, f"seed{request.seed}"]) + ".png"


def _saved(
    run: LoadedRun, blocks: Sequence[Block], plan: Layout, request: SampleRequest, path: Path
) -> Path:
    """The blocks as a picture with the run's name, written."""
    card = run.record.data
    title = f"{run.record.objective} on {card.name}, step {run.step:,}"
    note = f"weights: {run.weights}, seed {request.seed}"
    image = sample_picture(blocks, card, plan, title=title, note=note)
    try:
        save_picture(image, path)
    except (OSError, ValueError) as error:
        raise fail("sample", f"{path} cannot be written: {error}") from error
    return path


def evaluate_run(
    run_dir: Path,
    compile_spec: CompileSpec,
    options: EvaluationOptions | None = None,
    *,
    weights: str = "ema",
    checkpoint: int | None = None,
    device: str = "auto",
    build: BuildNetworks = bundled_networks,
) -> Evaluation:
    """The metrics of a run's checkpoint; also written to evaluation.json in its folder."""
    run = _loaded(run_dir, compile_spec, weights, checkpoint, device, build)
    config = run.record.config
    plain = load_dataset(config.data, config.resolution)
    dataset, features = plain, features_of(plain)
    if config.conditions is not None:
        dataset = load_dataset(config.data, config.resolution, config.conditions)
        features = replace(features, classes=None)  # what it knows are classes, not captions
    options = options or EvaluationOptions()
    steps = options.steps or possible_steps(run.loss.signature, config.sample_steps)
    evaluation = evaluate(
        run.loss,
        run.networks,
        dataset,
        features,
        replace(options, steps=steps),
        device=run.device,
        exact=exact_flow(run.loss, dataset.card),
        weights=run.weights,
        step=run.step,
    )
    write_text(run.directory.path / "evaluation.json", evaluation.json())
    return evaluation


def _loaded(
    run_dir: Path,
    compile_spec: CompileSpec,
    weights: str,
    step: int | None,
    device: str,
    build: BuildNetworks,
) -> LoadedRun:
    return load_run(run_dir, compile_spec, weights=weights, step=step, device=device, build=build)


def _class_numbers(card: DataCard, classes: Sequence[str] | None) -> tuple[int, ...] | None:
    """Classes by name or by number."""
    if classes is None:
        return None
    return tuple(_class_number(card, name) for name in classes)


def _class_number(card: DataCard, name: str) -> int:
    if name in card.class_names:
        return card.class_names.index(name)
    if name.isdigit() and card.classes is not None and int(name) < card.classes:
        return int(name)
    known = card.class_names or tuple(str(k) for k in range(card.classes or 0))
    raise fail(
        "sample",
        f'{card.name} has no class "{name}"',
        facts=(("classes", ", ".join(known) or "none"),),
    )
