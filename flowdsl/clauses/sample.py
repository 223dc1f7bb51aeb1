"""`sample`: how samples are drawn, where the sampler derived from the map is not the method's."""

from __future__ import annotations

from collections.abc import Sequence

from flowdsl.clauses._binding import only_plain
from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.spec.clause import Clause
from flowdsl.spec.scope import Scope
from flowdsl.syntax.grammar import SectionSyntax
from flowdsl.syntax.lines import Binding
from flowdsl.syntax.tree import Line


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    known = {c for n in scope.tree.lines("network") for c in getattr(n, "conditions", ())}
    for line in lines:
        assert isinstance(line, Binding)
        only_plain(line, "how to sample")
        if line.name not in known:
            raise fail(
                "resolve",
                f"no network sees `{line.name}`",
                line.span,
                hint=did_you_mean(line.name, known)
                or "under `sample` stand the values of conditions when sampling",
            )
        scope.sampler_lines.append(line)


CLAUSES = (
    Clause(
        SectionSyntax("sample", "binding", "CONDITION = number"),
        "names",
        _enter,
        "The values that conditions take when sampling.",
        "omega = 4",
        18,
    ),
)
