"""`bench`: compile both ways, hand them to the runtime, show what it measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.console import Console

import flowdsl
from flowdsl import pipeline
from flowdsl.cli.common import write
from flowdsl.cli.phases import phase_points
from flowdsl.diagnostics import fail
from flowdsl.passes.options import OPTIONAL, Options
from flowdsl.runtime.bench import BenchOptions, BenchResult, Setting, bench, resized, table
from flowdsl.runtime.bench.contest import CHUNKED, DIFFERENCE, MERGED, UNOPTIMISED, WITHOUT
from flowdsl.runtime.bench.options import own_network
from flowdsl.runtime.loss import Loss
from flowdsl.runtime.nets.sizes import find_size


@dataclass(frozen=True)
class NetworkOptions:
    """The networks to measure on: every size at every resolution."""

    sizes: tuple[str, ...]
    resolutions: tuple[int, ...]
    channels: int = 1
    patch: int | None = None
    depth: int | None = None
    width: int | None = None
    heads: int | None = None
    own_blocks: int = 0

    def settings(self) -> list[Setting]:
        return [
            Setting(
                resized(find_size(size), depth=self.depth, width=self.width, heads=self.heads),
                (self.channels, resolution, resolution),
                self.patch,
                self.own_blocks,
            )
            for size in self.sizes
            for resolution in self.resolutions
        ]


@dataclass(frozen=True)
class Variants:
    """Further ways to measure: the optimised loss without each pass that makes a difference, with
    derivatives of `chunk_rows` rows at a time, with calls made in one up to `merge` batches, and
    with central differences.
    """

    ablation: bool = False
    chunk_rows: int | None = None
    merge: float | None = None
    difference: bool = False


def run_bench(
    specs: list[str],
    networks: NetworkOptions,
    options: BenchOptions,
    *,
    progress: float | None,
    constants: Mapping[str, float],
    own: str | None = None,
    variants: Variants = Variants(),
    as_json: bool,
    out: Path | None,
) -> int:
    """Measures the specs and shows a table; 1 when a compiled step was refused, else 0.

    `progress` None measures each phase of training once. A constant is replaced in the specs that
    have it, and must be known to one. `own` names a network of the user's.
    """
    losses, phases = {}, {}
    objectives = {spec: flowdsl.load(spec) for spec in dict.fromkeys(specs)}
    for spec, objective in objectives.items():
        known = {k: v for k, v in constants.items() if k in objective.typed.constants}
        name = objective.name if objective.name not in losses else spec
        losses[name] = ways_of(objective, known, options.compile is not None, variants)
        found = phase_points(losses[name]["optimised"])
        phases[name] = found if progress is None else {"": progress}
    _all_known(constants, objectives)
    settings = networks.settings()
    make = None if own is None else own_network(own)
    if make is not None:
        settings = [replace(settings[0], shape=shape) for shape in {s.shape for s in settings}]
    with progress_line() as told:
        result = bench(losses, settings, options, phases=phases, make=make, told=told)
    show(result, as_json=as_json, out=out)
    return 0 if result.ok else 1


def ways_of(
    objective: flowdsl.Objective,
    constants: Mapping[str, float],
    compiled: bool,
    variants: Variants,
) -> dict[str, Loss]:
    """The ways to compute an objective's loss, by name. The plain one is what authors write, not
    what their formula says to the letter: it evaluates what each phase of training needs.
    """
    by_hand = Options(optimize=False, transcribed=True)
    written = pipeline.compiled(objective.typed, by_hand, constants)
    best = objective.compile(constants=constants, fixed_shapes=compiled, check=False)
    ways = {"plain": written, UNOPTIMISED: written, "optimised": best}
    if variants.chunk_rows is not None:
        ways[CHUNKED] = objective.compile(
            constants=constants,
            fixed_shapes=compiled,
            chunk_rows=variants.chunk_rows,
            check=False,
        )
    if variants.merge is not None:
        ways[MERGED] = objective.compile(
            constants=constants, fixed_shapes=compiled, merge=variants.merge, check=False
        )
    if variants.difference:
        ways[DIFFERENCE] = objective.compile(
            constants=constants,
            fixed_shapes=compiled,
            derivative="finite_difference",
            check=False,
        )
    for name in OPTIONAL if variants.ablation else ():
        loss = objective.compile(
            constants=constants, fixed_shapes=compiled, without=(name,), check=False
        )
        if loss.source != best.source:
            ways[f"{WITHOUT}{name}"] = loss
    return ways


def show(result: BenchResult, *, as_json: bool, out: Path | None) -> None:
    """The table, or the JSON; and the JSON in a file."""
    if as_json:
        typer.echo(result.json(), nl=False)
    else:
        Console(highlight=False).print(table(result))
    if out is not None:
        write(result.json(), out)


def _all_known(constants: Mapping[str, float], objectives: Mapping[str, flowdsl.Objective]) -> None:
    known = {name for objective in objectives.values() for name in objective.typed.constants}
    for name in constants:
        if name not in known:
            raise fail(
                "command",
                f'no spec has a constant "{name}"',
                facts=[("constants", ", ".join(sorted(known)) or "none")],
            )


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what goes on; nothing where there is no terminal."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(text)
