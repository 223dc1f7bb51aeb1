"""`differentiate`: which time moves, and along what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowdsl.diagnostics import Span, fail
from flowdsl.spec.scope import Clause, Scope
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.grammar import END, SectionSyntax, Wanted
from flowdsl.syntax.tree import Expression, Line


@dataclass(frozen=True)
class DifferentiateLine(Line):
    """`time along direction`."""

    time: str
    along: Expression | None

    def parts(self) -> tuple[str, ...]:
        if self.along is None:
            return (self.time,)
        return (f"{self.time} along {format_expression(self.along)}",)


def _line(span: Span, children: list[object]) -> Line:
    time, along = children
    assert along is None or isinstance(along, Expression)
    return DifferentiateLine(span, str(time), along)


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    for line in lines:
        assert isinstance(line, DifferentiateLine)
        if scope.moving_line is not None:
            raise fail("resolve", "one time is differentiated", line.span)
        scope.moving_line = (line.time, line.along, line.span)


CLAUSES = (
    Clause(
        SectionSyntax(
            "differentiate",
            "NAME [_ALONG expression] -> differentiate",
            "t, or t along E",
            {"differentiate": _line},
            wanted={
                "NAME": Wanted("`along` and a direction, or " + END),
                "_ALONG": Wanted("the direction in which the state moves, such as `guided`", END),
            },
        ),
        "whole",
        _enter,
        "The time that is differentiated; states move along the path's velocity, or along E.",
        "t along guided",
        10,
    ),
)
