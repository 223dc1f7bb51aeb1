"""`list`: the shipped objectives on one page."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.table import Table

import flowdsl
from flowdsl.cli.common import wide_console
from flowdsl.passes.program import Program


@dataclass(frozen=True)
class Row:
    """One shipped objective."""

    name: str
    extends: str
    title: str
    arxiv: str
    networks: tuple[str, ...]
    differentiates: str
    cost: tuple[float, ...]  # of a training step, in forward passes, for each phase of training
    plain_cost: float  # the same before any optimisation
    depth: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def rows() -> list[Row]:
    """Each objective after the one it extends."""
    found = {name: flowdsl.load(name) for name in flowdsl.shipped()}
    below: dict[str | None, list[str]] = {}
    for name, objective in found.items():
        base = objective.tree.extends
        below.setdefault(base if base in found else None, []).append(name)
    out: list[Row] = []

    def visit(name: str, depth: int) -> None:
        out.append(_row(found[name], depth))
        for child in below.get(name, []):
            visit(child, depth + 1)

    for name in below.get(None, []):
        visit(name, 0)
    return out


def _row(objective: flowdsl.Objective, depth: int) -> Row:
    typed = objective.typed
    return Row(
        name=typed.name,
        extends=typed.extends or "",
        title=typed.title,
        arxiv=typed.arxiv,
        networks=tuple(typed.networks),
        differentiates=typed.moving.time if typed.moving else "",
        cost=_costs(objective.graph()),
        plain_cost=max(_costs(objective.graph(optimize=False))),
        depth=depth,
    )


def _costs(program: Program) -> tuple[float, ...]:
    """The cost of each phase, after the last pass."""
    if len(program.phases) == 1:
        return (program.steps[-1].cost,)
    last = {step.phase: step.cost for step in program.steps}
    return tuple(last[phase.name] for phase in program.phases)


def table(found: list[Row]) -> None:
    """Print the rows, a family below its ancestor."""
    shown = Table(box=None, pad_edge=False)
    for column in ("objective", "paper", "networks", "d/d", "step", "unoptimised", "title"):
        shown.add_column(column, no_wrap=column not in ("title", "networks"), overflow="fold")
    for row in found:
        branch = "  " * (row.depth - 1) + "└ " if row.depth else ""
        shown.add_row(
            f"[bold]{branch}{row.name}[/bold]",
            row.arxiv,
            ", ".join(row.networks),
            row.differentiates,
            f"{' / '.join(f'{cost:.2f}' for cost in row.cost)} F",
            f"{row.plain_cost:.2f} F",
            row.title,
        )
    console = wide_console()
    console.print(shown)
    console.print("[dim]F: one forward pass of the network over the batch; a plain flow matching "
                  "step is 3 F[/dim]")  # fmt: skip
