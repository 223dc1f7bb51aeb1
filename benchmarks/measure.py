"""Every shipped objective trained for a minute or two on one core, and what that gained.

    python benchmarks/measure.py                  # all: about an hour of one core
    python benchmarks/measure.py meanflow tvm     # some
    python benchmarks/measure.py --list           # which figures are missing or out of date

One recipe for all, beside what `specs/recipes` asks for: `RECIPE`, and `STEPS` optimiser steps
for each stage of the spec; what counts steps is scaled to these (`CONSTANTS`): a warm-up ends
after a quarter of them, an objective's own average looks back over a quarter. Some objectives have
constants of their own here (`OWN`), for grids that refine over hundreds of thousands of steps, and
where guidance for images of a thousand classes drives digits out of their range. Measured are
samples of the averaged weights in the numbers of steps that a run shows (few of a map, many of a
velocity), before the first step of the last stage and after its last, with the metrics of
`flowdsl evaluate`. Results go, one objective after the other, into `docs/measured.json` and
`docs/samples/NAME.png` (digits, a row for each number of steps); what is there for the same spec
and settings is not done again. `flowdsl methods` shows both.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image

import flowdsl
from flowdsl.api import Stage
from flowdsl.cli.family import family
from flowdsl.cli.measured import Figures, Measured, fingerprint, read, write
from flowdsl.cli.runs import compile_saved
from flowdsl.cli.staging import stage_plans
from flowdsl.runtime.data import load_dataset
from flowdsl.runtime.dataset import DataCard, Dataset
from flowdsl.runtime.evaluation import Evaluation, EvaluationOptions, evaluate
from flowdsl.runtime.features import features_of
from flowdsl.runtime.loading import bundled_networks, load_run, start_from
from flowdsl.runtime.pictures import Layout, sample_blocks, shows_labels
from flowdsl.runtime.protocols import CompiledLoss, Networks, as_argument
from flowdsl.runtime.sampling import possible_steps, resolved_sampler
from flowdsl.runtime.stages import StagePlan, stage_folder, train_stages
from flowdsl.runtime.training.directory import versions

DOCS = Path(__file__).parent.parent / "docs"
STEPS = 400
RECIPE = ("data=digits", "size=nano", "batch=64", "seed=0", "device=cpu", "tensorboard=no",
          "sample_every=0", "checkpoint_every=0", "optimizer.warmup=50")  # fmt: skip
CONSTANTS = {"warmup": STEPS // 4, "decay": 0.99}
#: A grid of 150 levels, and an average that slows down with it, carry what is known at the lowest
#: level to the highest in more steps than there are. Guidance of scale 2.5 to 5 makes samples that
#: are brighter than white, and training then only moves away from the data. Of a trajectory's two
#: terms the authors make the gradients equal; here one factor does so throughout.
OWN: dict[str, dict[str, float]] = {
    "consistency_training": {"s1": 10},
    "consistency_trajectory": {"balance": 100},
    "decoupled_meanflow": {"k": 1 / 3},
    "decoupled_meanflow_released": {"k": 1 / 3},
    "tmd_meanflow": {"scale": 1.5},
    "tmd_distribution": {"scale": 1.5},
    "tmd_distribution_drawn": {"scale": 1.5},
    "rcm": {"scale": 1.5},
}
COLUMNS, ENLARGED, GAP = 10, 4, 2  # of a picture; pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="shipped objectives; all by default")
    parser.add_argument("--list", action="store_true", help="what is missing or out of date")
    parser.add_argument("--runs", type=Path, default=Path("runs/measure"), help="their folder")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the results go")
    given = parser.parse_args()
    torch.set_num_threads(1)
    file = given.docs / "measured.json"
    for name in given.names or [name for name, _ in family()]:
        plans = plans_of(name)
        digest = digest_of(plans)
        known = read(file)
        if name in known and known[name].digest == digest:
            continue
        if given.list:
            print(name)
            continue
        folder = given.runs / name
        minutes = trained(plans, digest, folder)
        found = measured(plans, digest, minutes, folder, given.docs / "samples" / f"{name}.png")
        write(file, {**read(file), name: found})
        print(f"{name}: {found.trained()}, {found.sampled()} steps: {found.overview()}", flush=True)


def plans_of(name: str) -> list[StagePlan]:
    """The stages of an objective as `flowdsl train` plans them; one where it names none."""
    objective = flowdsl.load(name)
    parts = objective.stages() or (Stage("all", objective, Fraction(1), ()),)
    words = [*RECIPE, f"steps={STEPS * len(parts)}"]
    return stage_plans(objective, parts, words, constants_of(name, parts))


def constants_of(name: str, parts: Sequence[Stage]) -> dict[str, float]:
    """What an objective is trained with in the place of its own constants."""
    known = {constant for part in parts for constant in part.objective.typed.constants}
    return {k: v for k, v in CONSTANTS.items() if k in known} | OWN.get(name, {})


def digest_of(plans: Sequence[StagePlan]) -> str:
    """Of all that a reader could change: specs, constants, settings."""
    settings = [plan.config.model_dump(exclude_defaults=True) for plan in plans]
    specs = [(plan.spec.text, sorted(plan.spec.constants.items())) for plan in plans]
    return fingerprint([specs, settings])


def trained(plans: Sequence[StagePlan], digest: str, folder: Path) -> float:
    """Trains, unless the folder holds just this run; the minutes of processor time that it took."""
    done = folder / "measured.txt"
    if done.is_file() and done.read_text().split()[0] == digest:
        return float(done.read_text().split()[1])
    shutil.rmtree(folder, ignore_errors=True)
    began = time.process_time()
    result = train_stages(plans, compile_saved, folder.name, run_dir=folder, progress=False)
    if not result.finished:  # stopped by a signal, after saving
        raise SystemExit(result.exit_code)
    minutes = round((time.process_time() - began) / 60, 2)
    done.write_text(f"{digest} {minutes}\n")
    return minutes


def measured(
    plans: Sequence[StagePlan], digest: str, minutes: float, folder: Path, image: Path
) -> Measured:
    """The figures at the last stage's start and at its end, and the picture."""
    config = plans[-1].config
    dataset = load_dataset(config.data, config.resolution)
    run = load_run(folder, compile_saved, device="cpu")
    steps = possible_steps(run.loss.signature, config.sample_steps)
    image.parent.mkdir(parents=True, exist_ok=True)
    picture(run.loss, run.networks, dataset.card, steps).save(image, optimize=True)
    start = started(run.loss, plans, folder, dataset.card)
    before = figures(run.loss, start, dataset, steps)
    after = figures(run.loss, run.networks, dataset, steps)
    return Measured(
        digest=digest,
        versions=versions(),
        data=config.data,
        batch=config.batch,
        seed=config.seed,
        steps=tuple(plan.config.steps for plan in plans),
        minutes=minutes,
        sampler=resolved_sampler(run.loss.signature, "auto"),
        constants=plans[-1].spec.constants,
        better=dict(after.better),
        before=tuple(Figures(row.steps, rounded(row.values)) for row in before.rows),
        after=tuple(Figures(row.steps, rounded(row.values)) for row in after.rows),
        floor=rounded(after.floor),
    )


def started(
    loss: CompiledLoss, plans: Sequence[StagePlan], folder: Path, card: DataCard
) -> Networks:
    """The networks of the last stage as they were before its first step."""
    networks = bundled_networks(loss, card, plans[-1].config)
    start_from(networks, loss, {r: stage_folder(folder, plans, s) for r, s in plans[-1].carried})
    return as_argument(loss.signature, dict(loss.bind(networks).networks.items()))


def figures(
    loss: CompiledLoss, networks: Networks, dataset: Dataset, steps: Sequence[int]
) -> Evaluation:
    """The metrics for each number of steps."""
    options = EvaluationOptions(steps=tuple(steps))
    return evaluate(loss, networks, dataset, features_of(dataset), options)


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """To three significant digits."""
    return {name: float(f"{value:.3g}") for name, value in values.items()}


def picture(
    loss: CompiledLoss, networks: Networks, card: DataCard, steps: Sequence[int]
) -> Image.Image:
    """A row for each number of steps, a column for each class, or for each noise."""
    labels = tuple(range(COLUMNS)) if shows_labels(loss, card) else None
    plan = Layout(COLUMNS, 1, labels) if labels else Layout(1, COLUMNS, None)
    device = torch.device("cpu")
    blocks = sample_blocks(loss, networks, card, plan, steps, seed=0, device=device)
    side = card.shape[-1] * ENLARGED + GAP
    canvas = Image.new("L", (COLUMNS * side - GAP, len(blocks) * side - GAP), 255)
    for row, block in enumerate(blocks):
        for column, pixels in enumerate(card.pixels.picture(block.states.flatten(0, 1))):
            tile = Image.fromarray(pixels[0].numpy())
            tile = tile.resize((side - GAP, side - GAP), Image.Resampling.NEAREST)
            canvas.paste(tile, (column * side, row * side))
    return canvas


if __name__ == "__main__":
    main()
