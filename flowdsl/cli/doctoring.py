"""`doctor`: load the network, compile the spec, hand both to the runtime, show what it found."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import typer
from rich.console import Console

import flowdsl
from flowdsl.cli.benching import progress_line
from flowdsl.cli.phases import phase_points
from flowdsl.diagnostics import fail
from flowdsl.emit.module import DIFFERENCE_STEP
from flowdsl.runtime.doctor import DoctorOptions, load_network
from flowdsl.runtime.doctor import examine as examine_network
from flowdsl.runtime.doctor.patient import role_of
from flowdsl.runtime.nets import build_network

BUNDLED = "bundled"


def examine(
    network: str,
    spec: str,
    shape: str,
    options: DoctorOptions | None = None,
    *,
    role: str | None = None,
    constants: Mapping[str, float] | None = None,
    as_json: bool = False,
) -> int:
    """Examines a network and shows the report; 1 when something fails, else 0."""
    options = options or DoctorOptions()
    sample = read_shape(shape)
    loss = flowdsl.load(spec).compile(constants=dict(constants or {}), check=False)
    if network == BUNDLED:
        if len(sample) != 3:
            raise fail(
                "command",
                f"the bundled network takes channels, height and width, not `--shape {shape}`",
                hint="for example: --shape 3,32,32",
            )
        channels, height, width = sample
        module: torch.nn.Module = build_network(
            role_of(loss, role),
            shape=(channels, height, width),
            classes=options.classes,
            generator=torch.Generator().manual_seed(options.seed),
        )
    else:
        module = load_network(network)
    with progress_line() as told:
        report = examine_network(
            module, loss, sample, options,
            role=role, progresses=tuple(phase_points(loss).values()), told=told,
        )  # fmt: skip
    if as_json:
        typer.echo(report.json(), nl=False)
    else:
        Console(highlight=False).print(report.table())
    return 0 if report.ok else 1


def read_shape(text: str) -> tuple[int, ...]:
    """`3,32,32` as numbers."""
    parts = [part.strip() for part in text.replace("x", ",").split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise fail(
            "command",
            f"`--shape {text}` is no shape of one sample",
            hint="write its axes without the batch: --shape 3,32,32",
        )
    sizes = tuple(int(part) for part in parts)
    if math.prod(sizes) > 2**24:
        raise fail("command", f"`--shape {text}` has {math.prod(sizes):,} numbers, too many to try")
    return sizes


def difference_step() -> float:
    """The step of the finite differences in a loss that is compiled without derivatives."""
    return float(DIFFERENCE_STEP)
