"""An edit of a spec's text that may mend it, and how it is told to a person."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowdsl.diagnostics import Source, Span
from flowdsl.syntax.format import binding_strength, format_expression
from flowdsl.syntax.tree import Binary, Call, Comparison, Derivative, Expression, Unary


@dataclass(frozen=True)
class Edit:
    """Replacements in one text. `place` is where the caret stands, `label` what is wrong there.

    Without a place the message keeps its own. `others` are further places, with their labels,
    where it takes more than one slip to explain what is wrong.
    """

    changes: tuple[tuple[Span, str], ...]
    place: Span | None
    label: str
    hint: str
    others: tuple[tuple[Span, str], ...] = ()

    @property
    def source(self) -> Source:
        return self.changes[0][0].source

    def applied(self) -> Source:
        """The text with the replacements made."""
        text = self.source.text
        for span, new in sorted(self.changes, key=lambda change: -change[0].start):
            text = text[: span.start] + new + text[span.end :]
        return Source(self.source.name, text)


def together(edits: Sequence[Edit]) -> Edit:
    """Several edits as one, shown at the place of each."""
    if len(edits) == 1:
        return edits[0]
    changes = tuple(c for edit in edits for c in edit.changes)
    hints = "; ".join(dict.fromkeys(edit.hint for edit in edits))
    first, *rest = edits
    others = [*first.others]
    for edit in rest:
        if edit.place is not None:
            others += [(edit.place, edit.label), *edit.others]
    return Edit(changes, first.place, first.label, hints, tuple(others))


def apart(one: Edit, other: Edit) -> bool:
    """Do two edits change different pieces of one text?"""
    if one.source.name != other.source.name or one.source.text != other.source.text:
        return False
    pairs = [(a, b) for a, _ in one.changes for b, _ in other.changes]
    return all((a.end <= b.start or b.end <= a.start) and a.start != b.start for a, b in pairs)


def change(old: Expression, new: Expression | str, place: Span, label: str, hint: str) -> Edit:
    """The edit that writes `new` where `old` stands, in brackets where it binds less tightly."""
    text = new if isinstance(new, str) else format_expression(new)
    if not isinstance(new, str) and binding_strength(new) < binding_strength(old):
        text = f"({text})"
    return Edit(((old.span, text),), place, label, hint)


def operator_span(node: Binary) -> Span:
    """Where the sign of a sum, product or quotient stands."""
    source, start, end = node.span.source, node.left.span.end, node.right.span.start
    between = re.sub(r"#[^\n]*", lambda m: " " * len(m.group()), source.text[start:end])
    at = start + max(between.find(node.op), 0)
    return Span(source, at, at + len(node.op))


def parts(node: Expression) -> tuple[Expression, ...]:
    """The expressions directly inside another."""
    match node:
        case Unary(_, _, operand):
            return (operand,)
        case Binary(_, _, left, right):
            return (left, right)
        case Comparison(_, operands, _):
            return operands
        case Call(_, _, arguments, keywords, replaced):
            return (*arguments, *(k.value for k in keywords), *(r.value for r in replaced))
        case Derivative(_, _, body, along):
            return (body,) if along is None else (body, along)
    return ()


def nodes(expression: Expression) -> Iterator[Expression]:
    """An expression and everything inside it, from the outside in, in the order of the text."""
    yield expression
    for part in parts(expression):
        yield from nodes(part)


@dataclass(frozen=True)
class Signed:
    """One term of a sum: its sign, and where that sign is written, if it is."""

    negative: bool
    node: Expression
    sign: Span | None


def terms(node: Expression, negative: bool = False, sign: Span | None = None) -> list[Signed]:
    """A sum taken apart."""
    match node:
        case Binary(_, "+" | "-", left, right):
            turned = negative != (node.op == "-")
            return terms(left, negative, sign) + terms(right, turned, operator_span(node))
        case Unary(span, "-", operand):
            return terms(operand, not negative, Span(span.source, span.start, span.start + 1))
    return [Signed(negative, node, sign)]


@dataclass(frozen=True)
class Factor:
    """One factor of a product; `below` the fraction bar or not."""

    node: Expression
    below: bool


def factors(node: Expression, below: bool = False) -> list[Factor]:
    """A product taken apart."""
    match node:
        case Binary(_, "*" | "/", left, right):
            return factors(left, below) + factors(right, below != (node.op == "/"))
    return [Factor(node, below)]


def unstopped(node: Expression) -> Expression:
    """What stands inside `stop( )`."""
    match node:
        case Call(_, "stop", (body,), (), ()):
            return body
    return node
