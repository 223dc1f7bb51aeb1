"""A benchmark as a table that fits a terminal of 80 columns."""

from __future__ import annotations

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from flowdsl.runtime.agreement import SINGLE
from flowdsl.runtime.bench.result import BenchResult, Group, Row

NONE = "–"


def table(result: BenchResult) -> RenderableType:
    """A table per network, a block per objective and phase, a line per step."""
    parts: list[RenderableType] = []
    for setting in dict.fromkeys((g.network, g.shape, g.batch) for g in result.groups):
        groups = [g for g in result.groups if (g.network, g.shape, g.batch) == setting]
        shape = " x ".join(map(str, groups[0].shape))
        parts.append(Text(f"{groups[0].network}; {groups[0].batch} rows of {shape}"))
        parts += [_rows(groups), Text()]
    parts += [Text(line, style="dim") for line in _legend(result)]
    for group, row in result.refused:
        parts.append(Text(f"refused: {group.objective}, {row.name}: {row.refused}", "bold red"))
    return Stack(*parts)


def _rows(groups: list[Group]) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    first = groups[0].rows[0].name
    shown.add_column("step", no_wrap=True)
    ratio = f"of\n{first}"
    for column in (
        "ms", "± IQR", ratio, "of\nFM", "FLOPs\n/ F", "net\ncalls", "peak\nMiB", ratio,
        "grad.\nerror",
    ):  # fmt: skip
        shown.add_column(column, justify="right", no_wrap=True)
    for at, group in enumerate(groups):
        if at:
            shown.add_row()
        phase = f", {group.phase}" if group.phase else ""
        shown.add_row(Text(f"{group.objective}{phase}", style="bold"))
        for row in group.rows:
            shown.add_row(f"  {row.name}", *_cells(row), style="red" if row.refused else "")
    return shown


def _cells(row: Row) -> list[str]:
    error = "" if row.agreement is None else f"{row.agreement.gradient:.0e}"
    if row.refused:
        return ["refused", *[NONE] * 7, error]
    ms = row.ms
    return [
        NONE if ms is None else _short(ms.median),
        NONE if ms is None else _short(ms.range),
        _ratio(row.of_first),
        _ratio(row.of_unit),
        _ratio(row.flops),
        NONE if row.calls is None else str(sum(row.calls.values())),
        NONE if row.peak is None else _short(row.peak / 2**20),
        _ratio(row.peak_of_first),
        error,
    ]


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _legend(result: BenchResult) -> list[str]:
    first = result.groups[0].rows[0].name if result.groups else "first"
    clock = "wall clock" if result.clock == "wall" else "processor time"
    lines = [
        result.machine.text,
        f"{result.dtype}, {clock}. Medians of {result.repeats} rounds, ratios within rounds; a "
        "round runs every step once, in random order.",
        f"{first}: what authors write: the phase's evaluations, on every row, by PyTorch's "
        "own derivatives; unoptimised: the same with the rules of the bundled layers. FM: a flow "
        "matching step on the same network and rows; compiled steps against the compiled one. F: a "
        "forward pass.",
        "FLOPs of matrix products, and peak memory above the level at entry, are counted.",
    ]
    found = next((r.agreement for g in result.groups for r in g.rows if r.agreement), None)
    if found is not None:
        lines.append(
            f"Value and every gradient were compared with the {first} step's (compiled: with the "
            f"same step's, uncompiled); allowed {found.tolerance:.0e}, one parameter "
            f"{SINGLE * found.tolerance:.0e}."
        )
    return lines
