"""What the headings that bind names share: lines `name = E` and `name ~ LAW`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowdsl.diagnostics import fail
from flowdsl.spec.core import Kind
from flowdsl.spec.scope import Clause, Scope
from flowdsl.syntax.grammar import SectionSyntax
from flowdsl.syntax.lines import Binding, DrawLine
from flowdsl.syntax.tree import Line


def binding_clause(
    keyword: str,
    *,
    place: int,
    summary: str,
    example: str,
    draws: Kind | None = None,
    transparent: bool = False,
) -> Clause:
    """A heading whose lines bind names; with `draws`, also by drawing them."""
    form = "name = E [on CONDITION]"
    if draws is not None:
        form += ", or name ~ LAW [on CONDITION]"

    def enter(scope: Scope, lines: Sequence[Line]) -> None:
        for line in lines:
            assert isinstance(line, Binding | DrawLine)
            scope.bind(line, clause)

    clause = Clause(
        SectionSyntax(keyword, "binding" if draws is None else "binding | draw", form),
        "names",
        enter,
        summary,
        example,
        place,
        draws or Kind.SCALAR,
        transparent,
    )
    return clause


def only_plain(line: Binding, what: str) -> None:
    """Refuse parameters and conditions where a line can have neither."""
    if line.parameters is not None or line.rows is not None:
        raise fail("resolve", f"{what} is written `name = value`", line.span)


EnterLines = Callable[[Scope, Sequence[Line]], None]
