"""`map`: how networks give the flow map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowdsl.diagnostics import Span, fail
from flowdsl.spec.scope import Clause, Scope
from flowdsl.spec.scope import MapLine as Entered
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.grammar import END, SectionSyntax, Wanted
from flowdsl.syntax.tree import Expression, Line


@dataclass(frozen=True)
class MapLine(Line):
    """`LABEL: z(start) -> z(end) = body`."""

    label: str | None
    state: str
    start: Expression
    end_state: str
    end: Expression
    body: Expression

    def parts(self) -> tuple[str, ...]:
        head = f"{self.label}: " if self.label else ""
        start, end = format_expression(self.start), format_expression(self.end)
        body = format_expression(self.body)
        return (f"{head}{self.state}({start}) -> {self.end_state}({end}) = {body}",)


def _map(span: Span, children: list[object]) -> Line:
    label, state, start, end_state, end, body = children
    assert isinstance(start, Expression)
    assert isinstance(end, Expression)
    assert isinstance(body, Expression)
    name = None if label is None else str(label)
    return MapLine(span, name, str(state), start, str(end_state), end, body)


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    for line in lines:
        assert isinstance(line, MapLine)
        name = line.label or "map"
        if name in scope.map_lines:
            raise fail(
                "resolve", "there are two maps of one name", line.span, hint="label one: `inner: …`"
            )
        if line.state != line.end_state:
            raise fail("resolve", "a map leads along one path", line.span)
        if line.state not in scope.path_lines and not scope.tree.lines("path"):
            raise fail("resolve", f"there is no path `{line.state}`", line.span)
        scope.map_lines[name] = Entered(
            name, line.state, line.start, line.end, line.body, line.span
        )


CLAUSES = (
    Clause(
        SectionSyntax(
            "map",
            "[NAME _COLON] NAME _LPAR expression _RPAR "
            "_ARROW NAME _LPAR expression _RPAR _EQUAL expression -> map",
            "[NAME:] z(t) -> z(r) = E",
            {"map": _map},
            wanted={
                "NAME": Wanted("`(` and the map's start time, or `:` after the map's own name"),
                "_COLON": Wanted("the state and its start time, as in `z(t)`"),
                "_COLON NAME": Wanted("`(` and the map's start time"),
                "_LPAR": Wanted("the map's start time, such as `t` or `1`", "`)`"),
                "expression _RPAR": Wanted("`->` and the state at the end, as in `-> z(r)`"),
                "_ARROW": Wanted("the state at the map's end, as in `z(r)`"),
                "_ARROW NAME": Wanted("`(` and the map's end time"),
                "_ARROW NAME _LPAR": Wanted("the map's end time, such as `r` or `0`", "`)`"),
                "_ARROW NAME _LPAR expression _RPAR": Wanted("`=` and the map's formula"),
                "_EQUAL": Wanted(
                    "the map's formula: a state made of `z`, the times and a network", END
                ),
            },
        ),
        "whole",
        _enter,
        "How the networks give the flow map; called `map(x, t, r)`.",
        "z(t) -> z(r) = z - (t - r) * u(z, t, r)",
        6,
    ),
)
