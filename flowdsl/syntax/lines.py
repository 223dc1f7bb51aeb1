"""The forms of line that several headings share."""

from __future__ import annotations

from dataclasses import dataclass

from flowdsl.syntax.format import format_expression, with_rows
from flowdsl.syntax.tree import Expression, Line


@dataclass(frozen=True)
class Binding(Line):
    """`name = value`, `name(parameters) = value`, each also `on rows`."""

    name: str
    parameters: tuple[str, ...] | None
    value: Expression
    rows: Expression | None = None

    def parts(self) -> tuple[str, ...]:
        left = (
            self.name if self.parameters is None else f"{self.name}({', '.join(self.parameters)})"
        )
        return with_rows(f"{left} = {format_expression(self.value)}", self.rows)

    def names(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True)
class DrawLine(Line):
    """`names ~ law on rows`."""

    drawn: tuple[str, ...]
    law: Expression
    rows: Expression | None = None

    def parts(self) -> tuple[str, ...]:
        return with_rows(f"{', '.join(self.drawn)} ~ {format_expression(self.law)}", self.rows)

    def names(self) -> tuple[str, ...]:
        return self.drawn


@dataclass(frozen=True)
class Labelled(Line):
    """`expression`, `LABEL: expression`, each also `on rows`."""

    label: str | None
    value: Expression
    rows: Expression | None = None

    def parts(self) -> tuple[str, ...]:
        head = f"{self.label}: " if self.label else ""
        return with_rows(f"{head}{format_expression(self.value)}", self.rows)
