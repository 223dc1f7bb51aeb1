"""`check` and `compare`: run the checker, show what it says, choose the exit status."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from flowdsl import pipeline, sources
from flowdsl.checks import Report
from flowdsl.checks.certificate import with_certificate
from flowdsl.diagnostics import DiagnosticError, fail, render

_COLOURS = {
    "proved": "green",
    "order": "yellow",
    "note": "yellow",
    "not applicable": "dim",
    "certified": "green",
}


def check_specs(
    specs: list[str], *, as_json: bool, only: list[str] | None, limit: float, certify: bool
) -> int:
    """Check each spec and show its report; the highest exit status of all."""
    if not specs:
        raise fail(
            "command", "no spec is named", hint="for example: flowdsl check meanflow my.flow"
        )
    status = 0
    output: list[dict[str, object]] = []
    for spec in specs:
        try:
            tree = pipeline.parse(sources.find_source(spec))
            objective = pipeline.typed(tree)
            report = pipeline.checked(objective, only=only, time_limit=limit)
            if not report.ok:
                report = pipeline.explained(report, tree)
            if certify:
                report = with_certificate(report, pipeline.certified(objective))
        except DiagnosticError as error:
            status = 2
            if as_json:
                messages = [d.as_dict() for d in error.diagnostics]
                output.append({"spec": spec, "ok": False, "errors": messages})
            else:
                typer.echo("\n\n".join(render(d) for d in error.diagnostics) + "\n", err=True)
            continue
        status = max(status, 0 if report.ok else 1)
        if as_json:
            output.append({"spec": spec, **report.as_dict()})
        else:
            show_report(report, objective.source.name)
    if as_json:
        json.dump(output, sys.stdout, indent=2, ensure_ascii=False)
        typer.echo()
    return status


def show_report(report: Report, source: str) -> None:
    """The verdicts as a table, then the messages of what failed."""
    console = Console(highlight=False, soft_wrap=False)
    if console.is_terminal:
        console.print(_report_table(report, source), markup=True)
    else:  # a file or a pipe has no width to fit
        typer.echo(f"{report.objective}  {report.title}  {Path(source).name}\n{report.render()}")
    for diagnostic in report.diagnostics:
        if diagnostic.severity == "error":
            typer.echo("\n" + render(diagnostic))
    word = "[green]all checks pass[/green]" if report.ok else "[bold red]not proved[/bold red]"
    console.print(f"{word} [dim]({report.seconds:.2f} s)[/dim]\n")


def _report_table(report: Report, source: str) -> Table:
    table = Table(
        title=f"[bold]{report.objective}[/bold]  {report.title}  [dim]{Path(source).name}[/dim]",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for column in ("check", "term", "rows", "verdict"):
        table.add_column(column, no_wrap=column != "rows", overflow="fold")
    table.add_column("reason", overflow="fold")
    before = ""
    for verdict in report.verdicts:
        colour = _COLOURS.get(verdict.status, "bold red")
        table.add_row(
            verdict.check if verdict.check != before else "",
            verdict.term,
            verdict.case,
            f"[{colour}]{verdict.shown}[/{colour}]",
            verdict.reason,
        )
        before = verdict.check
    return table


def _told_once(report: Report) -> Report:
    """What gradients differ by is told with the gradients, not with the values too."""
    told = {v.left_over for v in report.verdicts if v.message.startswith("same gradient")}
    verdicts = (
        replace(v, left_over="")
        if v.message.startswith("same value") and v.left_over in told
        else v
        for v in report.verdicts
    )
    return replace(report, verdicts=tuple(verdicts))


def compare_specs(
    first: str, second: str, at: str | None, near: str | None, upto: str | None = None
) -> int:
    """Show in what two objectives are the same; 0 when value or gradient are."""
    if at is not None and near is not None:
        raise fail("command", "`--at` and `--near` are two questions", hint="ask one at a time")
    one, other = pipeline.load(first), pipeline.load(second)
    report = pipeline.compared(one, other, at=at, near=near, upto=upto)
    files = [Path(side.source.name).name for side in (one, other)]
    if files[0] == files[1]:
        files = [first, second]
    typer.echo(f"{one.name} ({files[0]}) beside {other.name} ({files[1]})")
    typer.echo(_told_once(report).render())
    relations = [v for v in report.verdicts if v.message.startswith("same ")]
    same = {
        what: all(v.ok for v in relations if v.message.startswith(f"same {what}"))
        for what in ("value", "gradient")
    }
    return 0 if any(same.values()) else 1
