"""Commands that measure: bench and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowdsl.cli.common import constants


def bench(
    specs: Annotated[list[str], typer.Argument(help="Shipped names or paths.")],
    size: Annotated[str, typer.Option(help="Size of the bundled network.")] = "nano",
    resolution: Annotated[int, typer.Option(help="Pixels of the random images.")] = 8,
    channels: Annotated[int, typer.Option(help="Channels of the random images.")] = 1,
    patch: Annotated[int | None, typer.Option(help="Patch of the network in pixels.")] = None,
    batch: Annotated[int, typer.Option(help="Rows per step.")] = 64,
    repeats: Annotated[int, typer.Option(help="Rounds; each runs every variant once.")] = 7,
    progress: Annotated[float, typer.Option(help="Where in training, from 0 to 1.")] = 0.5,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Replace a constant of the specs."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the table as JSON.")
    ] = None,
) -> None:
    """Time a training step: optimised against unoptimised, interleaved in one process.

    A plain flow matching step on the same network is the unit. Values and gradients of the two are
    compared in the same run.

    Example: flowdsl bench meanflow tvm --size nano
    """
    from flowdsl.cli.benching import run_bench

    run_bench(
        specs,
        size=size,
        shape=(channels, resolution, resolution),
        patch=patch,
        batch=batch,
        repeats=repeats,
        progress=progress,
        constants=constants(set_),
        out=out,
    )


def doctor(
    network: Annotated[
        str, typer.Argument(help='"bundled", or your own: path/to/file.py:NAME or module:NAME.')
    ] = "bundled",
    spec: Annotated[str, typer.Option(help="The objective it is to be trained with.")] = "meanflow",
    shape: Annotated[str, typer.Option(help="Shape of one sample, as in `3,32,32`.")] = "1,8,8",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Examine whether a network can be differentiated forward, and how well.

    NAME is a class or function that makes the network when called without arguments. Exit status: 1
    when the network cannot be used with the spec as it is.

    Example: flowdsl doctor my_model.py:make_network --spec meanflow --shape 3,32,32
    """
    from flowdsl.cli.doctoring import examine

    raise typer.Exit(examine(network, spec, shape, as_json=as_json))


def add_to(app: typer.Typer) -> None:
    app.command("bench")(bench)
    app.command("doctor")(doctor)
