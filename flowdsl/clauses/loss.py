"""`loss`: the row's scalar, as an expression of `error` or `mse`."""

from __future__ import annotations

from collections.abc import Sequence

from flowdsl.spec.scope import Clause, Scope
from flowdsl.syntax.grammar import SectionSyntax
from flowdsl.syntax.lines import Labelled
from flowdsl.syntax.tree import Line


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    for line in lines:
        assert isinstance(line, Labelled)
        scope.loss_lines.append(line)


CLAUSES = (
    Clause(
        SectionSyntax("loss", "labelled", "[TERM:] E of error or mse [on CONDITION]"),
        "whole",
        _enter,
        "The row's scalar: `error` is the sum of squares of prediction - target, `mse` their mean.",
        "adaptive(error, power = 1, offset = 1e-2)",
        15,
    ),
)
