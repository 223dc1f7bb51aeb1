"""The results of this folder as one table: `python benchmarks/summary.py`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

HEAD = (
    "| network | objective | step | times as fast as plain | time of FM | FLOPs / F | "
    "peak of plain | gradient error |"
)
COMPILED = ", compiled"


def main() -> None:
    for file in sorted(Path(__file__).parent.glob("*.json")):
        result = json.loads(file.read_text())
        machine = result["machine"]
        print(f"\n{file.name}: {machine['cpu']}, {machine['cores']} cores, "
              f"{machine['threads']} thread, torch {machine['torch']}, {result['dtype']}, "
              f"{result['repeats']} rounds, {result['clock']} clock\n")  # fmt: skip
        print(HEAD)
        print("|---" * HEAD.count(" | ") + "|---|")
        for group in result["groups"]:
            rows = {row["name"]: row for row in group["rows"]}
            for row in group["rows"]:
                print(line(group, row, rows, result["clock"]))


def line(
    group: dict[str, Any], row: dict[str, Any], rows: dict[str, dict[str, Any]], clock: str
) -> str:
    phase = f", {group['phase']}" if group["phase"] else ""
    error = None if row["agreement"] is None else f"{row['agreement']['gradient']:.0e}"
    unit = rows.get("FM step" + (COMPILED if row["name"].endswith(COMPILED) else ""))
    cells = [
        f"{group['size'] if 'DiT nano' in group['network'] else group['network'].split(':')[0]}",
        group["objective"] + phase,
        row["name"],
        ratio(rows["plain"], row, clock),
        "" if unit is None else ratio(row, unit, clock),
        number(row["flops"]),
        number(row["peak_of_first"]),
        error or "",
    ]
    return f"| {' | '.join(cells)} |"


def ratio(above: dict[str, Any], below: dict[str, Any], clock: str) -> str:
    """The median of the ratios within rounds, and the least and the most of them."""
    if above is below or above["ms"] is None or below["ms"] is None:
        return "1" if above is below else ""
    times = zip(above["samples"][clock], below["samples"][clock], strict=True)
    found = sorted(a / b for a, b in times)
    return f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
