"""What several commands share: options, constants from the command line, output files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flowdsl.diagnostics import fail

if TYPE_CHECKING:
    from flowdsl.api import Objective

SpecArgument = Annotated[
    str, typer.Argument(help="A shipped name (see `flowdsl list`) or a path to a .flow file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Replace a constant of the spec."),
]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file.")]


def constants(words: list[str] | None) -> dict[str, float]:
    """`NAME=VALUE` words as numbers."""
    found = {}
    for word in words or []:
        name, equals, text = word.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not equals or not math.isfinite(value):
            raise fail(
                "command",
                f"`--set {word}` sets nothing",
                hint="write a constant's name and a number: `--set omega=2`",
            )
        found[name.strip()] = value
    return found


def numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,2,4` as numbers."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise fail("command", f"`{option} {text}` is no list of numbers", hint="write `1,2,4`")
    return tuple(int(part) for part in parts)


def times(text: str, option: str) -> tuple[float, ...]:
    """`0.3,0.7` as times."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        found = tuple(float(part) for part in parts)
    except ValueError:
        found = ()
    if not found or not all(math.isfinite(time) for time in found):
        raise fail("command", f"`{option} {text}` is no list of times", hint="write `0.3,0.7`")
    return found


def warn_unless_proved(objective: Objective) -> None:
    """One line on the error stream when a check fails: the loss runs, and learns another thing."""
    from flowdsl.api import unproved_text

    if objective.unproved:
        typer.echo(f"warning: {unproved_text(objective)}", err=True)


def wide_console() -> Console:
    """The terminal; a file or a pipe has no width, so nothing is folded there."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=240)


def write(text: str, out: Path | None) -> None:
    """To the file, or to the terminal."""
    if out is None:
        typer.echo(text, nl=not text.endswith("\n"))
        return
    try:
        out.write_text(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise fail("command", f"{out} cannot be written: {reason}") from None
    typer.echo(f"wrote {out}")
