"""`sample`: how samples are drawn, where the sampler derived from the map is not the method's.

A condition of networks gets a value; the path's time gets the times through which a sampler leads,
as a function of `progress` (0 at the noise, 1 at the data).
"""

from __future__ import annotations

from collections.abc import Sequence

from flowdsl.clauses._binding import only_plain
from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.spec.scope import Clause, Scope
from flowdsl.syntax.grammar import SectionSyntax
from flowdsl.syntax.lines import Binding
from flowdsl.syntax.tree import Line


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    known = {c for n in scope.tree.lines("network") for c in getattr(n, "conditions", ())}
    paths = [p for p in scope.tree.lines("path") if isinstance(p, Binding)]
    times = {time for path in paths for time in path.parameters or ()}
    for line in lines:
        assert isinstance(line, Binding)
        only_plain(line, "how to sample")
        if line.name not in known and line.name not in times:
            raise fail(
                "resolve",
                f"no network sees `{line.name}`, and it is no path's time",
                line.span,
                hint=did_you_mean(line.name, {*known, *times})
                or "under `sample` stand the values of conditions, and the times of the sampler",
            )
        scope.sampler_lines.append(line)


CLAUSES = (
    Clause(
        SectionSyntax("sample", "binding", "CONDITION = number, or TIME = E of progress"),
        "names",
        _enter,
        "The values that conditions take when sampling, and the times of the sampler.",
        "omega = 4; t = 80 * (1 - progress)^7",
        18,
    ),
)
