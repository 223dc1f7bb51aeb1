"""Edits of paths, curricula and claims."""

from __future__ import annotations

from collections.abc import Iterator

from flowdsl.clauses.claims import ClaimLine
from flowdsl.diagnostics import Span
from flowdsl.repair import search as slips
from flowdsl.repair.candidates import Known
from flowdsl.repair.edit import Edit
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.lines import Binding
from flowdsl.syntax.tree import Comparison, Name


def of_path(known: Known) -> Iterator[Edit]:
    """A sign, a number, a weight exchanged with its complement."""
    for line in known.tree.lines("path"):
        if isinstance(line, Binding):
            yield from slips.signs(line.value)
            yield from slips.complements(line.value)
            yield from slips.numbers(line.value)


def of_curriculum(known: Known) -> Iterator[Edit]:
    """The same, and a factor or divisor too many."""
    for line in known.tree.lines("curriculum"):
        if isinstance(line, Binding):
            yield from slips.whole_complement(line.value)
            yield from slips.complements(line.value)
            yield from slips.fewer_factors(line.value)
            yield from slips.signs(line.value)
            yield from slips.numbers(line.value)


def of_claims(known: Known, place: Span | None) -> Iterator[Edit]:
    """A weaker claim, or the same at another value of its parameter."""
    for line in known.tree.lines("claims"):
        if not isinstance(line, ClaimLine) or line.span != place:
            continue
        text = line.parts()[0]
        for relation in ("gradient", "value"):
            if relation != line.relation:
                yield _claim(line, text.replace(f"same {line.relation}", f"same {relation}", 1))
        condition = line.condition
        if not isinstance(condition, Comparison):
            continue
        shown = format_expression(condition)
        for mode in ("at", "near"):
            for name in (n for n in condition.operands if isinstance(n, Name)):
                for value in ("0", "1"):
                    other = f"{name.id} == {value}"
                    if (mode, other) != (line.mode, shown):
                        yield _claim(line, text.replace(f"{line.mode} {shown}", f"{mode} {other}"))


def _claim(line: ClaimLine, text: str) -> Edit:
    return Edit(((line.span, text),), line.span, "", f"what holds is `{text}`")
