"""The results of this folder as one table: `python benchmarks/summary.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = (
    "| network | objective | step | time of plain | IQR | time of FM | FLOPs / F | peak of plain | "
    "gradient error |"
)


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
            for row in group["rows"]:
                print(line(group, row))


def line(group: dict[str, Any], row: dict[str, Any]) -> str:
    phase = f", {group['phase']}" if group["phase"] else ""
    time = row["ms"] or {"median": 0, "lower": 0, "upper": 0}
    spread = (time["upper"] - time["lower"]) / time["median"] if time["median"] else None
    error = None if row["agreement"] is None else f"{row['agreement']['gradient']:.0e}"
    cells = [
        f"{group['size'] if 'DiT nano' in group['network'] else group['network'].split(':')[0]}",
        group["objective"] + phase,
        row["name"],
        number(row["of_first"]),
        "" if spread is None else f"{spread:.0%}",
        number(row["of_unit"]),
        number(row["flops"]),
        number(row["peak_of_first"]),
        error or "",
    ]
    return f"| {' | '.join(cells)} |"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
