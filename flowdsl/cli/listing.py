"""`list`: the shipped objectives on one page, a family below its ancestor."""

from __future__ import annotations

from rich.console import Console
from rich.progress import track
from rich.table import Table

from flowdsl.cli.common import wide_console
from flowdsl.cli.family import Row, family, row


def rows() -> list[Row]:
    """Each objective after the one it extends; progress is shown on a terminal."""
    members = list(family())
    errors = Console(stderr=True)
    shown = track(
        members,
        description="checking",
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    return [row(name, depth) for name, depth in shown]


def table(found: list[Row]) -> None:
    """Print the rows."""
    shown = Table(box=None, pad_edge=False)
    columns = ("objective", "paper", "lines", "networks", "d/d", "step", "unoptimised",
               "identity", "verdict", "title")  # fmt: skip
    for column in columns:
        right = "right" if column in ("lines", "unoptimised") else "left"
        folded = column in ("title", "networks", "identity")
        shown.add_column(column, justify=right, no_wrap=not folded, overflow="fold")  # type: ignore[arg-type]
    for one in found:
        branch = "  " * (one.depth - 1) + "└ " if one.depth else ""
        costs = list(dict.fromkeys(f"{cost:.2f}" for cost in one.cost))
        shown.add_row(
            f"[bold]{branch}{one.name}[/bold]",
            one.arxiv,
            str(one.lines),
            ", ".join(one.networks),
            one.differentiates,
            f"{' / '.join(costs)} F" if costs else "stages",
            f"{one.plain_cost:.2f} F" if costs else "",
            one.identity,
            one.verdict,
            one.title,
        )
    console = wide_console()
    console.print(shown)
    console.print("[dim]F: one forward pass of the network over the batch; a plain flow matching "
                  "step is 3 F[/dim]")  # fmt: skip
