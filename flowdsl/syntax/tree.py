"""The syntax tree: what was written, with the place of every piece.

Spans are no part of a node's identity, so `parse(format(tree)) == tree` can be asked. The lines
that belong to one section keyword only (a network, a map, a claim) are defined beside that keyword,
in `flowdsl/clauses`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flowdsl.diagnostics import Source, Span


@dataclass(frozen=True)
class Node:
    """Anything that has a place in the text."""

    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True)
class Expression(Node):
    """An expression, a condition, or a probability law: they share one grammar."""


@dataclass(frozen=True)
class NumberLiteral(Expression):
    text: str


@dataclass(frozen=True)
class Name(Expression):
    id: str


@dataclass(frozen=True)
class Unary(Expression):
    op: str  # "-" or "not"
    operand: Expression


@dataclass(frozen=True)
class Binary(Expression):
    op: str  # + - * / ^ and or
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Comparison(Expression):
    """`a < b <= c`: operands one longer than operators."""

    operands: tuple[Expression, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Replacement(Node):
    """`name = value`, as a keyword argument or after the bar of a call."""

    name: str
    value: Expression


@dataclass(frozen=True)
class Call(Expression):
    """`function(arguments, name = value | name = value)`."""

    function: str
    arguments: tuple[Expression, ...]
    keywords: tuple[Replacement, ...] = ()
    replaced: tuple[Replacement, ...] = ()


@dataclass(frozen=True)
class Derivative(Expression):
    """`d/dX[body]`, `d/dX[body along direction]`, `d/dX[body along none]`."""

    variable: str
    body: Expression
    along: Expression | None = None


@dataclass(frozen=True)
class Choice(Expression):
    """`(yes on condition, else no)`: what `on` lines make of a name. Printed, never parsed."""

    condition: Expression
    yes: Expression
    no: Expression


@dataclass(frozen=True)
class Tangents(Expression):
    """`J body[w, 1, 0]`: the derivative of a call along tangents of its arguments, in their order;
    `D2 body[(…), (…)]` along two. Printed where no `d/dX[…]` says the same; never parsed."""

    body: Expression
    directions: tuple[tuple[Expression, ...], ...]


@dataclass(frozen=True)
class Line(Node):
    """One line of a section."""

    def parts(self) -> tuple[str, ...]:
        """The text in pieces; the printer may begin a new line before each but the first."""
        raise TypeError(f"{type(self).__name__} needs parts()")

    def names(self) -> tuple[str, ...]:
        """The names this line binds; lines of one name merge together under `extends`."""
        return ()


@dataclass(frozen=True)
class Section:
    """A heading and its lines."""

    keyword: str
    lines: tuple[Line, ...]
    span: Span = field(compare=False, repr=False)  # the heading word


@dataclass(frozen=True)
class Tree:
    """A whole spec."""

    name: str
    extends: str | None
    title: str
    arxiv: str
    sections: tuple[Section, ...]
    source: Source = field(compare=False, repr=False)
    name_span: Span = field(compare=False, repr=False)
    extends_span: Span | None = field(default=None, compare=False, repr=False)

    def lines(self, keyword: str) -> tuple[Line, ...]:
        """All lines under this heading, in order, wherever the heading stands."""
        return tuple(x for s in self.sections if s.keyword == keyword for x in s.lines)
