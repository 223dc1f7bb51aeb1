"""Commands that measure: bench and doctor."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flowdsl.cli.common import SetOption, constants, numbers


class Clock(StrEnum):
    """What is a step's time."""

    wall = "wall"
    cpu = "cpu"


class Precision(StrEnum):
    """What a network computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def bench(
    specs: Annotated[list[str], typer.Argument(help="Shipped names or paths.")],
    size: Annotated[
        str, typer.Option(help="Sizes of the bundled network: `nano`, or `nano,micro`.")
    ] = "nano",
    resolution: Annotated[
        str, typer.Option(help="Pixels of the random images, one or several: `8,16`.")
    ] = "8",
    channels: Annotated[int, typer.Option(min=1, help="Channels of the random images.")] = 1,
    patch: Annotated[
        int | None, typer.Option(min=1, help="Patch of the network in pixels.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Blocks, in place of those of the size.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="Features of a token, in place of the size's.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Heads of attention, in place of the size's.")
    ] = None,
    own_blocks: Annotated[
        int,
        typer.Option(min=0, help="The last blocks that each of several outputs has for itself."),
    ] = 0,
    network: Annotated[
        str | None,
        typer.Option(help="Your own network: path/to/file.py:NAME or module:NAME, for every role."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows per step.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; each runs every step once.")] = 7,
    progress: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Where in training; by default, once in each phase."),
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Also under torch.compile, checked against eager.")
    ] = False,
    backend: Annotated[str, typer.Option(help="The compiler of torch.compile.")] = "inductor",
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Also without each pass of the compiler in turn.")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Also with blocks computed again, to save memory.")
    ] = False,
    chunk_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Also with derivatives of so many rows at a time."),
    ] = None,
    merge: Annotated[
        float | None,
        typer.Option(min=1, help="Also with evaluations in one call, of so many batches at most."),
    ] = None,
    difference: Annotated[
        bool,
        typer.Option("--difference", help="Also with finite differences, whose error is shown."),
    ] = False,
    float64: Annotated[bool, typer.Option("--float64", help="In double precision.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch; by default, torch's choice.")
    ] = None,
    clock: Annotated[
        Clock,
        typer.Option(help="cpu: this process's processor time, steadier on a busy machine."),
    ] = Clock.wall,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, data and draws.")] = 0,
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of the table.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the JSON to this file.")
    ] = None,
) -> None:
    """Measure a training step: optimised against plain, interleaved in one process.

    A plain flow matching step on the same network is the unit. Time, products of matrices, network
    calls, peak memory; value and every gradient of the two are compared in the same run.

    Exit status: 0; 1 when a step compiled by torch computes something else.

    Examples: flowdsl bench meanflow tvm --size nano,micro;
    flowdsl bench my.flow --resolution 16 --depth 6 --width 192 --compile
    """
    import torch

    from flowdsl.cli.benching import NetworkOptions, Variants, run_bench
    from flowdsl.runtime.bench import BenchOptions

    networks = NetworkOptions(
        sizes=tuple(part.strip() for part in size.split(",")),
        resolutions=numbers(resolution, "--resolution"),
        channels=channels,
        patch=patch,
        depth=depth,
        width=width,
        heads=heads,
        own_blocks=own_blocks,
    )
    options = BenchOptions(
        batch=batch,
        repeats=repeats,
        seed=seed,
        dtype=torch.float64 if float64 else torch.float32,
        clock="cpu" if clock is Clock.cpu else "wall",
        threads=threads,
        device=device,
        compile=backend if compile_ else None,
        recompute=recompute,
    )
    status = run_bench(
        specs, networks, options,
        progress=progress, constants=constants(set_), own=network,
        variants=Variants(ablation, chunk_rows, merge, difference), as_json=as_json, out=out,
    )  # fmt: skip
    raise typer.Exit(status)


def doctor(
    network: Annotated[
        str, typer.Argument(help='"bundled", or your own: path/to/file.py:NAME or module:NAME.')
    ] = "bundled",
    spec: Annotated[str, typer.Option(help="The objective it is to be trained with.")] = "meanflow",
    shape: Annotated[str, typer.Option(help="Shape of one sample, as in `3,32,32`.")] = "1,8,8",
    role: Annotated[
        str | None, typer.Option(help="Which network of the spec it is; by default the first.")
    ] = None,
    classes: Annotated[
        int, typer.Option(min=0, help="How many classes it knows; 0 for data without labels.")
    ] = 10,
    precision: Annotated[
        Precision, typer.Option(help="The arithmetic it is to be trained in.")
    ] = Precision.float32,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Also try torch.compile, which takes a while.")
    ] = False,
    backend: Annotated[str, typer.Option(help="The compiler of torch.compile.")] = "inductor",
    set_: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON in place of the table.")] = False,
) -> None:
    """Examine whether a network can be trained with an objective.

    Can it be called as the spec says, and differentiated forward, how exactly, in which precision,
    compiled, distributed? NAME is a class or function that makes the network when called without
    arguments; your file is imported, which runs it.

    Exit status: 1 when the network cannot be used with the spec as it is.

    Example: flowdsl doctor my_model.py:make_network --spec meanflow --shape 3,32,32
    """
    from flowdsl.cli.doctoring import difference_step, examine
    from flowdsl.runtime.doctor import DoctorOptions

    options = DoctorOptions(
        precision="bfloat16" if precision is Precision.bfloat16 else "float32",
        compile=backend if compile_ else None,
        classes=classes or None,
        difference_step=difference_step(),
    )
    status = examine(
        network, spec, shape, options, role=role, constants=constants(set_), as_json=as_json
    )
    raise typer.Exit(status)


def add_to(app: typer.Typer) -> None:
    app.command("bench")(bench)
    app.command("doctor")(doctor)
