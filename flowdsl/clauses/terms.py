"""`target`, `anchor`, `correction`, `critic`: groups of terms. The form is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowdsl.diagnostics import Span, fail
from flowdsl.spec.scope import Clause, Scope, TermLine
from flowdsl.syntax.format import format_expression, with_rows
from flowdsl.syntax.grammar import END, END_ON, SectionSyntax, Wanted
from flowdsl.syntax.lines import Binding
from flowdsl.syntax.tree import Expression, Line


@dataclass(frozen=True)
class MatchLine(Line):
    """`LABEL: match prediction to target on rows`."""

    label: str | None
    prediction: Expression
    target: Expression
    rows: Expression | None

    def parts(self) -> tuple[str, ...]:
        head = f"{self.label}: " if self.label else ""
        return (
            f"{head}match {format_expression(self.prediction)}",
            *with_rows(f"to {format_expression(self.target)}", self.rows),
        )


@dataclass(frozen=True)
class MinimiseLine(Line):
    """`LABEL: minimise value on rows`."""

    label: str | None
    value: Expression
    rows: Expression | None

    def parts(self) -> tuple[str, ...]:
        head = f"{self.label}: " if self.label else ""
        return with_rows(f"{head}minimise {format_expression(self.value)}", self.rows)


@dataclass(frozen=True)
class DerivedLine(Line):
    """`LABEL: derived`: the target that map and moving time imply."""

    label: str | None
    rows: Expression | None

    def parts(self) -> tuple[str, ...]:
        return with_rows(f"{self.label}: derived" if self.label else "derived", self.rows)


def _optional(node: object) -> Expression | None:
    assert node is None or isinstance(node, Expression)
    return node


def _needed(node: object) -> Expression:
    assert isinstance(node, Expression)
    return node


def _label(node: object) -> str | None:
    return None if node is None else str(node)


def _match(span: Span, children: list[object]) -> Line:
    label, prediction, target, rows = children
    return MatchLine(span, _label(label), _needed(prediction), _needed(target), _optional(rows))


def _minimise(span: Span, children: list[object]) -> Line:
    label, value, rows = children
    return MinimiseLine(span, _label(label), _needed(value), _optional(rows))


def _derived(span: Span, children: list[object]) -> Line:
    label, rows = children
    return DerivedLine(span, _label(label), _optional(rows))


def _group(keyword: str, place: int, summary: str) -> Clause:
    def enter(scope: Scope, lines: Sequence[Line]) -> None:
        for line in lines:
            if isinstance(line, Binding):
                scope.bind(line, clause)
            else:
                scope.term_lines.append(_term(scope, keyword, line))

    clause = Clause(
        SectionSyntax(
            keyword,
            """binding
    | [NAME _COLON] _MATCH expression _TO expression [_ON expression]  -> match
    | [NAME _COLON] _MINIMISE expression [_ON expression]              -> minimise
    | [NAME _COLON] _DERIVED [_ON expression]                          -> derived""",
            "[NAME:] match E to E [on CONDITION], or [NAME:] minimise E, or name = E",
            {"match": _match, "minimise": _minimise, "derived": _derived},
            _WORDS if keyword == "target" else "",
            _WANTED,
        ),
        "whole",
        enter,
        summary,
        "match u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])",
        place,
        transparent=True,
        group=True,
    )
    return clause


_WANTED = {
    "NAME": Wanted("`=` and a value, `(` and parameters, or `:` after a term's own name"),
    "_COLON": Wanted("`match A to B`, `minimise E` or `derived`"),
    "_MATCH": Wanted("what is predicted: a state, such as `u(z, t, r)`", "`to` and the target"),
    "_TO": Wanted("the target: a state, such as `velocity`", END_ON),
    "_MINIMISE": Wanted("what is made small: one number per row", END_ON),
    "_DERIVED": Wanted(END_ON),
    "_ON": Wanted("a condition, such as `t > r` or a name drawn under `rows`", END),
}

_WORDS = """
_MATCH: "match"
_MINIMISE: "minimise"
_DERIVED: "derived"
"""


def _term(scope: Scope, group: str, line: Line) -> TermLine:
    assert isinstance(line, MatchLine | MinimiseLine | DerivedLine)
    taken = {term.name for term in scope.term_lines}
    name = line.label or group
    if name in taken and line.label is None:
        name = next(f"{group}_{i}" for i in range(2, 1000) if f"{group}_{i}" not in taken)
    if name in taken:
        raise fail("resolve", f"two terms are called `{name}`", line.span, hint="rename one")
    match line:
        case MatchLine():
            return TermLine(name, group, line.prediction, line.target, line.rows, line.span)
        case MinimiseLine():
            return TermLine(name, group, line.value, None, line.rows, line.span)
    return TermLine(name, group, None, None, line.rows, line.span)


CLAUSES = (
    _group("target", 11, "What the map is taught: an identity it must satisfy."),
    _group("anchor", 12, "What ties the solution to the data: the velocity on the diagonal."),
    _group("correction", 13, "Terms that correct what the target alone leaves."),
    _group("critic", 14, "Terms by which auxiliary networks learn."),
)
