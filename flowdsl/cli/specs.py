"""Commands about a spec's text: check, derive, compare, compile, list."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flowdsl.cli.common import (
    OutOption,
    SetOption,
    SpecArgument,
    constants,
    warn_unless_proved,
    write,
)
from flowdsl.diagnostics import DiagnosticError, render


class Stage(StrEnum):
    """What `compile --emit` can show."""

    tree = "tree"
    spec = "spec"
    graph = "graph"
    picture = "picture"
    python = "python"


class Rule(StrEnum):
    """How derivatives are taken."""

    exact = "exact"
    finite_difference = "finite_difference"


def check(
    specs: Annotated[list[str] | None, typer.Argument(help="Shipped names or paths.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="Run this check only.")
    ] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for each check.")] = 20.0,
    certify: Annotated[
        bool,
        typer.Option("--certify", help="Also measure the compiled loss on an exact flow (torch)."),
    ] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="CHECK", help="Say what a check means, and stop.")
    ] = None,
) -> None:
    """Prove specs, or show what is left over.

    Exit status: 0 all pass, 1 a check fails, 2 a spec cannot be read.

    Example: flowdsl check meanflow my.flow
    """
    from flowdsl.cli.checking import check_specs
    from flowdsl.cli.explaining import explain_check

    if explain is not None:
        typer.echo(explain_check(explain))
        return
    raise typer.Exit(
        check_specs(specs or [], as_json=as_json, only=only, limit=time_limit, certify=certify)
    )


def derive(
    spec: SpecArgument,
    latex: Annotated[bool, typer.Option("--latex", help="As LaTeX.")] = False,
) -> None:
    """Derive the target from the map and the differentiated time, step by step.

    Example: flowdsl derive meanflow
    """
    import flowdsl
    from flowdsl import pipeline

    typer.echo(pipeline.derived(flowdsl.load(spec).typed, latex=latex))


def compare(
    first: SpecArgument,
    second: SpecArgument,
    at: Annotated[
        str | None, typer.Option(metavar="NAME=VALUE", help="At one value of a name.")
    ] = None,
    near: Annotated[
        str | None, typer.Option(metavar="NAME=VALUE", help="In the limit towards a value.")
    ] = None,
    up_to: Annotated[
        str | None, typer.Option(metavar="TERM", help="Leave this term out on either side.")
    ] = None,
) -> None:
    """Decide whether two objectives have the same value, or the same gradient.

    Exit status: 0 when value or gradient are the same for every network, else 1.

    Example: flowdsl compare alphaflow trajectory_flow_matching --at alpha=1
    """
    from flowdsl.cli.checking import compare_specs

    raise typer.Exit(compare_specs(first, second, at, near, up_to))


def compile_(
    spec: SpecArgument,
    emit: Annotated[Stage, typer.Option(help="Which stage to show.")] = Stage.python,
    out: OutOption = None,
    optimize: Annotated[
        bool, typer.Option("--optimize/--no-optimize", help="Run the passes.")
    ] = True,
    derivative: Annotated[Rule, typer.Option(help="How derivatives are taken.")] = Rule.exact,
    chunk_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Take derivatives of so many rows at a time, to save memory."),
    ] = None,
    merge: Annotated[
        float | None,
        typer.Option(
            min=1, help="Make evaluations of a network in one call, of so many batches at most."
        ),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Compile a spec to Python that imports torch only, or show a stage on the way.

    Example: flowdsl compile meanflow -o meanflow_loss.py
    """
    import flowdsl
    from flowdsl import pipeline
    from flowdsl.syntax.format import format_tree

    objective = flowdsl.load(spec)
    rule: pipeline.DerivativeRule = "exact" if derivative is Rule.exact else "finite_difference"
    match emit:
        case Stage.tree:
            text = format_tree(objective.tree)
        case Stage.spec:
            text = objective.text()
        case Stage.python:
            warn_unless_proved(objective)
            text = objective.emit(
                optimize=optimize,
                derivative=rule,
                constants=constants(set_),
                chunk_rows=chunk_rows,
                merge=merge,
            )
        case Stage.graph | Stage.picture:
            program = objective.graph(
                optimize=optimize, derivative=rule, constants=constants(set_), merge=merge
            )
            text = pipeline.drawn(program, as_picture=emit is Stage.picture)
    write(text, out)


def list_(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the shipped objectives: family, paper, lines, networks, differentiated time, cost of a
    step, identity, verdict.

    Example: flowdsl list
    """
    from flowdsl.cli.listing import rows, table

    found = rows()
    if as_json:
        json.dump([row.as_dict() for row in found], sys.stdout, indent=2, ensure_ascii=False)
        typer.echo()
    else:
        table(found)


def methods(
    out: OutOption = None,
    measured: Annotated[
        Path | None,
        typer.Option(help="What was measured; measured.json in the page's folder by default."),
    ] = None,
) -> None:
    """Write the page about every shipped objective: spec, derivation, cost, verdicts, samples.

    Example: flowdsl methods -o docs/methods.md
    """
    from flowdsl.cli.measured import read
    from flowdsl.cli.methods import page

    found = measured or (out or Path()).parent / "measured.json"
    write(page(read(found)), out)


def print_errors(error: DiagnosticError) -> None:
    """The messages, one after the other, on the error stream."""
    typer.echo("\n\n".join(render(d) for d in error.diagnostics), err=True)


def add_to(app: typer.Typer) -> None:
    app.command("check")(check)
    app.command("derive")(derive)
    app.command("compile")(compile_)
    app.command("compare")(compare)
    app.command("list")(list_)
    app.command("methods")(methods)
