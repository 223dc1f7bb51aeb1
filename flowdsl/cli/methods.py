"""`methods`: one page about every shipped objective, written from the specs themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import flowdsl
from flowdsl import pipeline
from flowdsl.checks import Report
from flowdsl.cli.family import Row, describe, family
from flowdsl.cli.measured import METRIC, Measured
from flowdsl.diagnostics import DiagnosticError

_HEAD = """# Methods

Every shipped objective: what is derived from its map, the spec, what a training step costs, and
what the checker says. Written by `flowdsl methods -o docs/methods.md`; a test holds it current.
F is one forward pass of the network over the batch; a step of plain flow matching costs 3 F.

Samples and metrics are those of one short training each, on the embedded digits with the smallest
network, by `python benchmarks/measure.py`: evidence that each objective trains and samples, no
contest of methods. Distances are to the training data, before the first step of the last stage and
after its last, for each number of steps of the sampler. What guides itself aims at clearer samples
than the data are, which distances do not reward, but accuracy and precision do.

The certificate is the compiled loss on exact flows of random mixtures: whether its mean gradient
vanishes there (see `flowdsl check --certify`). The reference is a plain loss written from the
paper, apart from this project's code, in float64 on the same draws: the largest difference of the
value or of a parameter's gradient, relative to the largest gradient.

"""
_LONGEST = 160  #: characters of a reason; `flowdsl check` prints all of it


def page(
    measured: Mapping[str, Measured],
    check: Callable[[flowdsl.Objective], Report] = flowdsl.Objective.check,
) -> str:
    """The page, in Markdown; `check` gives an objective's report, `measured` is by objective."""
    overview, sections = [], []
    for name, depth in family():
        objective = flowdsl.load(name)
        report = check(objective)
        told = describe(objective, report, depth)
        found = measured.get(name)
        overview.append(_line(told, found))
        sections.append(section(objective, report, told) + evidence(name, found))
    head = ("objective", "paper", "lines", "networks", "d/d", "step", "identity", "verdict",
            "certificate", "reference", f"{METRIC} ↓", "trained", "in steps")  # fmt: skip
    return _HEAD + _row(head) + _row(["---"] * len(head)) + "".join(overview) + "".join(sections)


def _line(told: Row, found: Measured | None) -> str:
    branch = "· " * told.depth
    cells = (
        f"{branch}[{told.name}](#{told.name})",
        _paper(told),
        str(told.lines),
        ", ".join(told.networks),
        told.differentiates,
        _cost(told),
        told.identity,
        told.verdict,
        *_figures(found),
    )
    return _row(cells)


def _figures(found: Measured | None) -> tuple[str, ...]:
    if found is None:
        return ("", "", "not measured", "", "")
    error = "" if found.reference is None else f"{found.reference:.0e}" if found.reference else "0"
    return found.certificate, error, found.overview(), found.budget(), found.sampled()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def evidence(name: str, found: Measured | None) -> str:
    """Samples and metrics of one objective."""
    if found is None:
        return "\nNot measured yet.\n"
    head, *rows = found.table()
    return (
        f"\nTrained for {found.trained()}; samples in {found.sampled()} steps ({found.sampler}), "
        f"a row each:\n\n![Digits from {name}](samples/{name}.png)\n\n"
        + "".join(map(_row, (head, ["---"] * len(head), *rows)))
    )


def _paper(told: Row) -> str:
    return f"[{told.arxiv}](https://arxiv.org/abs/{told.arxiv})" if told.arxiv else ""


def _cost(told: Row) -> str:
    return (
        " / ".join(dict.fromkeys(f"{cost:.2f}" for cost in told.cost)) + " F" if told.cost else ""
    )


def section(objective: flowdsl.Objective, report: Report, told: Row) -> str:
    """Title, spec, derivation, cost and verdicts of one objective."""
    base = f", extends [{told.extends}](#{told.extends})" if told.extends else ""
    parts = [f"\n## {told.name}\n\n{told.title} ({_paper(told)}){base}.\n"]
    parts.append(f"\n```\n{objective.tree.source.text.strip()}\n```\n")
    derivation = _derivation(objective)
    if derivation:
        parts.append(f"\nDerived from the map:\n\n```\n{derivation}\n```\n")
    if told.cost:
        parts.append(f"\nA step costs {_cost(told)}, as written {told.plain_cost:.2f} F.\n")
    parts.append("\n| check | term | rows | verdict | reason |\n|---|---|---|---|---|\n")
    for verdict in report.verdicts:
        if verdict.status != "not applicable":
            reason = verdict.reason
            if len(reason) > _LONGEST:
                reason = reason[:_LONGEST].rsplit(" ", 1)[0] + " …"
            cells = (verdict.check, verdict.term, verdict.case, verdict.shown, reason)
            parts.append(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |\n")
    return "".join(parts)


def _derivation(objective: flowdsl.Objective) -> str:
    """The steps by which the target follows; empty where nothing is derived."""
    if objective.typed.moving is None or not objective.typed.maps:
        return ""
    try:
        return pipeline.derived(objective.typed).strip()
    except DiagnosticError:
        return ""
