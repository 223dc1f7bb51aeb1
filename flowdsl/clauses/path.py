"""`path`: the interpolant between data and noise."""

from __future__ import annotations

from collections.abc import Sequence

from flowdsl.diagnostics import fail
from flowdsl.spec.scope import Clause, Scope
from flowdsl.syntax.grammar import SectionSyntax
from flowdsl.syntax.lines import Binding
from flowdsl.syntax.tree import Line


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    for line in lines:
        assert isinstance(line, Binding)
        if line.parameters is None or len(line.parameters) != 1:
            raise fail(
                "resolve",
                "a path is a state at a time",
                line.span,
                hint="write `z(t) = …`, with one time",
            )
        if line.rows is not None:
            raise fail("resolve", "a path is the same on all rows", line.rows.span)
        scope.path_lines[line.name] = line


CLAUSES = (
    Clause(
        SectionSyntax("path", "binding", "z(t) = E of data, noise and t"),
        "names",
        _enter,
        "The interpolant: where a sample stands at each time between data and noise.",
        "z(t) = (1 - t) * data + t * noise",
        1,
    ),
)
