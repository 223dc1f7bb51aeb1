"""The fates of many mutants as tables: per spec, per kind of change, and as a page."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.mutation_fates import ACCEPTED, AGREEMENTS, Fate

KINDS = ("unreadable", "killed", *ACCEPTED, "undecided", "crashed")

OPENING = """\
# Mutants

Every line of every shipped spec, changed in one place the way a person would get it wrong: a sign,
two times exchanged, another tangent, a `stop` forgotten or added, an interval, a factor, a
condition, a law, a line left out. Each mutant is read, checked, compared with the spec it was made
from, compiled, and its mean gradient is measured at the exact flow of a Gaussian mixture.

    python -m tests.mutation_table --certify --keep FOLDER --page docs/mutations.md

makes this page. Judged at {commits}.

| column | the mutant |
|---|---|
| unreadable | is refused before any check: a message with its place |
| killed | is refuted, biased or unanchored by a check |
| same | draws and computes what the spec does |
| equal | has the spec's gradient for every network, row by row, up to a positive weight |
| another | is another objective, and proved: its truth is the data's flow as well |
| as biased | is no worse than its spec, which is biased by its nature or does not pass itself |
| undecided | is neither proved nor refuted, and so does not pass |
| crashed | ends in an exception: a bug in flowdsl |

| column | the measurement |
|---|---|
| agrees | says what the proof says |
| too small to see | cannot tell the mean gradient from zero, or not from its own error |
| measured alone | stands where the proof is undecided |
| not measured | there is no exact answer to measure against; the reasons are below |
| disagrees | contradicts the proof: a bug in flowdsl |
"""


def cells_of(own: Sequence[Fate]) -> list[int]:
    """How many mutants there are, and how many of each kind and agreement."""
    kinds, said = Counter(f.kind for f in own), Counter(f.measured for f in own)
    return [len(own), *(kinds[k] for k in KINDS), *(said[a] for a in reversed(AGREEMENTS))]


def _rows(fates: Sequence[Fate]) -> list[list[str]]:
    by_spec: dict[str, list[Fate]] = {}
    for fate in fates:
        by_spec.setdefault(fate.mutant.spec, []).append(fate)
    found = [(spec, by_spec[spec]) for spec in sorted(by_spec)]
    rows = [["spec", "mutants", *KINDS, *reversed(AGREEMENTS), "killed by"]]
    for name, own in [*found, ("together", list(fates))]:
        checks = Counter(f.by for f in own if f.kind == "killed")
        by = ", ".join(f"{check} {number}" for check, number in checks.most_common())
        rows.append([name, *map(str, cells_of(own)), by])
    return rows


def summary(fates: Sequence[Fate]) -> str:
    """An aligned table, one line per spec and one for all."""
    rows = _rows(fates)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def by_operator(fates: Iterable[Fate]) -> str:
    """Per kind of change: how many were made, read, killed, and accepted."""
    groups: dict[str, list[Fate]] = {}
    for fate in fates:
        groups.setdefault(fate.mutant.operator, []).append(fate)
    lines = [f"{'change':12} mutants  unreadable  killed  undecided  accepted"]
    for name, own in sorted(groups.items()):
        kinds = Counter("accepted" if f.accepted else f.kind for f in own)
        lines.append(f"{name:12} {len(own):7}  {kinds['unreadable']:10}  {kinds['killed']:6}  "
                     f"{kinds['undecided']:9}  {kinds['accepted']:8}")  # fmt: skip
    return "\n".join(lines)


def page(fates: Sequence[Fate], left: int) -> str:
    """The page of the documentation; `left` mutants were not judged."""
    counts = Counter(fate.commit for fate in fates)
    told = [f"commit {made}" for made in counts]
    if len(counts) > 1:
        told = [f"commit {made} ({number} mutants)" for made, number in counts.most_common()]
    parts = [OPENING.format(commits=", ".join(told))]
    if left:
        parts.append(f"{left} mutants were not judged: the time for their specs was over.\n")
    alone = sum(fate.proof_alone for fate in fates)
    if alone:
        parts.append(f"{alone} mutants were judged by proof alone, without a measurement.\n")
    parts.append("## By spec\n\n" + _markdown(_rows(fates)))
    parts.append("## By change\n\n```\n" + by_operator(fates) + "\n```\n")
    for heading, measured in (
        ("Not measured", "not measured"),
        ("Too small to see", "too small to see"),
    ):
        counts = Counter(f.detail for f in fates if f.measured == measured)
        rows = [["mutants", "reason"], *([str(n), why] for why, n in counts.most_common())]
        parts.append(f"## {heading}\n\n" + (_markdown(rows) if counts else "None.\n"))
    for heading, chosen in (
        ("Undecided", [f for f in fates if f.kind == "undecided"]),
        ("Crashes", [f for f in fates if f.kind == "crashed"]),
        ("Disagreements", [f for f in fates if f.measured == "disagrees"]),
    ):
        lines = [f"- `{f.mutant.name}`: {f.detail or f.reason}" for f in chosen]
        parts.append(f"## {heading}\n\n" + ("\n".join(lines) if lines else "None.") + "\n")
    return "\n".join(parts)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def commit() -> str:
    """The commit of the tree that this file stands in, and whether it was changed since."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True)
        return found.stdout.strip()

    name = git("rev-parse", "--short=10", "HEAD") or "an unknown commit"
    return f"{name}, with changes" if git("status", "--porcelain", "--", "../flowdsl") else name
