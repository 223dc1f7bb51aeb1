"""Commands about runs: train, sample, evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from flowdsl.cli.common import (
    SetOption,
    constants,
    numbers,
    times,
    warn_unless_proved,
    wide_console,
)
from flowdsl.cli.staging import saved_options, stage_plans
from flowdsl.diagnostics import fail

if TYPE_CHECKING:
    from flowdsl.runtime.loss import Loss
    from flowdsl.runtime.samplers import Sampler
    from flowdsl.runtime.training.directory import SavedSpec
    from flowdsl.runtime.training.trainer import RunResult

RunArgument = Annotated[Path, typer.Argument(help="A run's folder, as `train` names it.")]
WeightsOption = Annotated[
    str, typer.Option(help='"ema" for the averaged weights, "raw" for the last ones.')
]
CheckpointOption = Annotated[
    int | None, typer.Option(help="The step of a checkpoint; the last one by default.")
]
SamplerOption = Annotated[
    str,
    typer.Option(help="jump, renoise, euler, heun, ddim, transition; auto is what suits best."),
]
InnerOption = Annotated[
    int, typer.Option(help="Steps of an inner flow, for objectives that learn one.")
]
GivenOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIMES",
        help="Draw data given noisy states at these times, `0.3,0.7`: by objectives that learn an "
        "inner flow.",
    ),
]
ConditionOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A condition that networks see."),
]


def train(
    spec: Annotated[
        str | None, typer.Argument(help="A shipped name or a path to a .flow file.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings; `--settings` lists them."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder; by default under runs/.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with this run, exactly.")
    ] = None,
    set_: SetOption = None,
    start: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=RUN", help="Start a network with the weights of a run."),
    ] = None,
    compile_: Annotated[
        bool,
        typer.Option("--compile", help="Under torch.compile, checked: the setting compile=true."),
    ] = False,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Compute a batch in so many parts: the setting accumulate=N."),
    ] = None,
    conditions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Embeddings of captions: the setting conditions=FILE."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List every setting with its default, and stop.")
    ] = False,
) -> None:
    """Train an objective on real images: the embedded digits, or data of your own.

    An objective with `stages` is trained stage by stage, teachers first. Ctrl-C saves and says how
    to resume; `--resume` goes on exactly.

    Examples: flowdsl train meanflow steps=2000 batch=128;
    flowdsl train my.flow data=folder:photos resolution=32 size=micro;
    flowdsl train --resume runs/meanflow-digits
    """
    if list_settings:
        _print_settings()
        return
    from flowdsl.runtime.runs import train_run
    from flowdsl.runtime.stages import train_stages
    from flowdsl.runtime.training.overrides import make_config

    if resume is not None:
        if spec or settings or set_ or start or out or compile_ or accumulate or conditions:
            raise fail(
                "command",
                "a resumed run keeps its spec and settings",
                hint=f"flowdsl train --resume {resume}",
            )
        raise typer.Exit(_go_on(resume, quiet).exit_code)
    if spec is None or "=" in spec:
        raise fail("command", "no spec is named", hint="for example: flowdsl train meanflow")
    import flowdsl
    from flowdsl import plan

    objective = flowdsl.load(spec)
    sources = {role: Path(run) for role, run in _pairs(start)}
    words = [*(settings or []), *(["compile=true"] if compile_ else [])]
    words += [] if conditions is None else [f"conditions={conditions}"]
    words += [] if accumulate is None else [f"accumulate={accumulate}"]
    parts = objective.stages()
    for one in {one.name: one for one in (p.objective for p in parts)}.values() or [objective]:
        warn_unless_proved(one)
    if parts:
        plans = stage_plans(objective, parts, words, constants(set_))
        result = train_stages(
            plans,
            compile_saved,
            objective.name,
            run_dir=out,
            sources=sources,
            progress=not quiet,
        )
        raise typer.Exit(result.exit_code)
    config = make_config(words, plan.recipe(objective.tree))
    saved = _saved(objective, constants(set_), saved_options(config.compile))
    result = train_run(
        compile_saved(saved),
        config,
        saved,
        run_dir=out,
        sources=sources,
        progress=not quiet,
    )
    raise typer.Exit(result.exit_code)


def _go_on(run: Path, quiet: bool) -> RunResult:
    """Resumes a run; a stage of a staged run goes on with the stages after it."""
    from flowdsl.runtime.runs import resume_run
    from flowdsl.runtime.stages import is_staged, resume_stages, whole_run

    whole = whole_run(run)
    resumed = resume_stages if is_staged(whole) else resume_run
    return resumed(whole, compile_saved, progress=not quiet)


def sample(
    run: RunArgument,
    steps: Annotated[
        str | None, typer.Option(help="Numbers of steps, one block each; those of the run.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The picture's file.")] = None,
    classes: Annotated[str | None, typer.Option(help="Classes by name or number: `0,3,7`.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance, for velocities only.")
    ] = 1.0,
    sampler: SamplerOption = "auto",
    inner: InnerOption = 1,
    given: GivenOption = None,
    weights: WeightsOption = "ema",
    checkpoint: CheckpointOption = None,
    conditions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Other embeddings than those of training."),
    ] = None,
    set_: ConditionOption = None,
) -> None:
    """Draw samples from a run's checkpoint and write them as one labelled picture.

    Example: flowdsl sample runs/meanflow-digits --steps 1,2,4
    """
    from flowdsl.runtime.runs import SampleRequest, sample_run
    from flowdsl.runtime.samplers import SampleOptions

    names = tuple(part.strip() for part in classes.split(",")) if classes else None
    request = SampleRequest(
        steps=None if steps is None else numbers(steps, "--steps"),
        classes=names,
        seed=seed,
        given=() if given is None else times(given, "--given"),
        weights=weights,
        checkpoint=checkpoint,
        conditions=conditions,
        options=SampleOptions(_sampler(sampler), guidance, constants(set_), inner=inner),
    )
    done = sample_run(run, compile_saved, request, out=out)
    typer.echo(f"wrote {done.path}")
    if done.sampler == "transition":
        typer.echo(
            f"each step drew what lies ahead of a state; inner steps: {inner} (`--inner N`)",
            err=True,
        )


def evaluate(
    run: RunArgument,
    steps: Annotated[
        str | None, typer.Option(help="Numbers of steps, one row each; those of the run.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many samples.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance, for velocities only.")
    ] = 1.0,
    sampler: SamplerOption = "auto",
    inner: InnerOption = 1,
    weights: WeightsOption = "ema",
    checkpoint: CheckpointOption = None,
    set_: ConditionOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Measure a run's samples against held-out data, for each number of steps.

    Example: flowdsl evaluate runs/meanflow-digits --steps 1,2,4
    """

    from flowdsl.runtime.dataset import FEW, too_few
    from flowdsl.runtime.evaluation import EvaluationOptions
    from flowdsl.runtime.runs import evaluate_run
    from flowdsl.runtime.samplers import SampleOptions

    options = EvaluationOptions(
        steps=None if steps is None else numbers(steps, "--steps"),
        count=count,
        seed=seed,
        sampling=SampleOptions(_sampler(sampler), guidance, constants(set_), inner=inner),
    )
    typer.echo("sampling and measuring (first trains a small classifier of the data)", err=True)
    evaluation = evaluate_run(run, compile_saved, options, weights=weights, checkpoint=checkpoint)
    if as_json:
        typer.echo(evaluation.json())
    else:
        wide_console().print(evaluation.table())
        typer.echo(evaluation.references)
    if evaluation.held_out < FEW:
        typer.echo(f"note: {too_few(evaluation.held_out)}", err=True)


def compile_saved(saved: SavedSpec) -> Loss:
    """The loss of a run's saved spec."""
    import flowdsl

    return flowdsl.loads(saved.text, "spec.flow").compile(
        constants=saved.constants, check=False, **_options(saved.options)
    )


_OPTIONS = ("optimize", "derivative", "fixed_shapes", "errors")


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The compile options that a run may have been saved with."""
    return {name: options[name] for name in _OPTIONS if name in options}


def _sampler(name: str) -> Sampler:
    """A sampler's name as it was typed; an unknown one is told when sampling begins."""
    return cast("Sampler", name)


def _saved(objective: Any, values: Mapping[str, float], options: Mapping[str, Any]) -> SavedSpec:
    from flowdsl.runtime.training.directory import SavedSpec

    return SavedSpec(text=objective.text(), constants=dict(values), options=options)


def _pairs(words: list[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for word in words or []:
        role, equals, run = word.partition("=")
        if not equals:
            raise fail("command", f"`--start {word}` names no run", hint="write `--start u=RUN`")
        pairs.append((role, run))
    return pairs


def _print_settings() -> None:

    from rich.table import Table

    from flowdsl.runtime.training.overrides import settings

    table = Table(box=None, pad_edge=False)
    for column in ("key", "default", "meaning"):
        table.add_column(column)
    for setting in settings():
        table.add_row(setting.key, str(setting.default), setting.meaning)
    wide_console().print(table)


def add_to(app: typer.Typer) -> None:
    app.command("train")(train)
    app.command("sample")(sample)
    app.command("evaluate")(evaluate)
