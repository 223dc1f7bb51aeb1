"""Text to tree. One LALR(1) parser for all sections; errors are sentences, not token names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import lark
from lark import Lark, TextSlice, Token, Transformer
from lark.exceptions import UnexpectedInput, UnexpectedToken, VisitError
from lark.tree import Meta
from lark.visitors import v_args

from flowdsl.diagnostics import Diagnostic, DiagnosticError, Source, Span, fail
from flowdsl.syntax.grammar import SectionSyntax, assemble
from flowdsl.syntax.layout import Chunk, lay_out, stop_on
from flowdsl.syntax.lines import Binding, DrawLine, Labelled
from flowdsl.syntax.sentences import HEADER_FORM, Fault, Sentences, explained
from flowdsl.syntax.states import States
from flowdsl.syntax.tree import (
    Binary,
    Call,
    Comparison,
    Derivative,
    Expression,
    Line,
    Name,
    NumberLiteral,
    Replacement,
    Section,
    Tree,
    Unary,
)

ParseTree = lark.Tree[Token]

MAX_DEPTH = 100
MAX_DIGITS = 30
MAX_EXPONENT = 30


class Parser:
    """The parser for a set of section keywords. Building one takes about a tenth of a second."""

    def __init__(self, sections: Sequence[SectionSyntax]) -> None:
        self.sections = {section.keyword: section for section in sections}
        self._lark = Lark(
            assemble(sections),
            parser="lalr",
            lexer="contextual",
            start=["header", *(f"section_{keyword}" for keyword in self.sections)],
            propagate_positions=True,
            maybe_placeholders=True,
        )

    @property
    def keywords(self) -> tuple[str, ...]:
        return ("objective", *self.sections)

    def parse(self, source: Source) -> Tree:
        """The tree of a spec; raises a `DiagnosticError` with one message per broken section."""
        layout = lay_out(source, self.keywords)
        problems = list(layout.problems)
        headers: list[list[object]] = []
        sections: list[Section] = []
        broken = [d.span for d in problems if d.span is not None]
        for chunk in layout.chunks:
            if any(chunk.start <= span.start < chunk.end for span in broken):
                continue  # its layout is already reported
            start = "header" if chunk.keyword == "objective" else f"section_{chunk.keyword}"
            text = TextSlice(layout.masked, chunk.start, chunk.end)
            try:
                parsed = self._lark.parse(text, start=start)
            except UnexpectedInput as error:
                problems.append(self._explain(error, source, chunk))
                continue
            deep = _too_deep(parsed)
            if deep is not None:
                problems.append(_deep(source, deep, chunk.heading))
                continue
            try:
                built = _Builder(source, self.sections).transform(parsed)
            except VisitError as error:
                if not isinstance(error.orig_exc, DiagnosticError):
                    raise
                problems.extend(error.orig_exc.diagnostics)
                continue
            if chunk.keyword == "objective":
                headers.append([chunk.heading, *built])
            else:
                sections.append(Section(chunk.keyword, tuple(built), chunk.heading))
        objectives = [chunk.heading for chunk in layout.chunks if chunk.keyword == "objective"]
        if not objectives:
            problems.append(_no_header(source))
        for extra in objectives[1:]:
            problems.append(Diagnostic("syntax", "a file holds one objective", extra))
        stop_on(problems)
        _, name, base, title, arxiv = headers[0]
        assert isinstance(name, Token)
        return Tree(
            str(name),
            str(base) if isinstance(base, Token) else None,
            str(title)[1:-1] if title else "",
            str(arxiv).removeprefix("arXiv:") if arxiv else "",
            tuple(sections),
            source,
            _token_span(source, name),
            _token_span(source, base) if isinstance(base, Token) else None,
        )

    @cached_property
    def states(self) -> States:
        """What the states of the parser have read."""
        return States(self._lark)

    @cached_property
    def sentences(self) -> Sentences:
        """What belongs at each state of the parser, in words."""
        return Sentences(self.states, self.sections)

    def _explain(self, error: UnexpectedInput, source: Source, chunk: Chunk) -> Diagnostic:
        stack = tuple(getattr(error.state, "state_stack", ()))
        begin = chunk.start
        if isinstance(error, UnexpectedToken):
            token = error.token
            if token.type == "$END":
                at = begin + len(source.text[begin : chunk.end].rstrip())
                end, found = at, "$END"
            else:
                at = token.start_pos if token.start_pos is not None else begin
                end = token.end_pos if token.end_pos is not None else at + 1
                found = str(token.type)
        else:
            at = error.pos_in_stream or begin
            end, found = at + 1, ""
        fault = Fault(source, chunk.keyword, begin, at, end, found, stack)
        return explained(fault, self.sentences)


def _no_header(source: Source) -> Diagnostic:
    return Diagnostic(
        "syntax",
        f"{source.name} has no heading `objective`",
        facts=(("a spec begins", HEADER_FORM),),
        hint="headings stand at the beginning of a line, without blanks before them",
    )


def _too_deep(parsed: ParseTree) -> ParseTree | None:
    """The first subtree below MAX_DEPTH levels, found without recursion."""
    stack: list[tuple[ParseTree, int]] = [(parsed, 0)]
    while stack:
        tree, depth = stack.pop()
        if depth > MAX_DEPTH:
            return tree
        stack.extend((c, depth + 1) for c in tree.children if isinstance(c, lark.Tree))
    return None


def _deep(source: Source, tree: ParseTree, heading: Span) -> Diagnostic:
    span = heading
    if not tree.meta.empty:
        span = Span(source, tree.meta.start_pos, tree.meta.start_pos + 1)
    return Diagnostic(
        "syntax",
        f"this expression is nested more than {MAX_DEPTH} deep",
        span,
        hint="give parts of it names of their own",
    )


def _token_span(source: Source, token: Token) -> Span:
    assert token.start_pos is not None
    assert token.end_pos is not None
    return Span(source, token.start_pos, token.end_pos)


def parse_expression(text: str, parser: Parser) -> Expression:
    """One expression by itself; for tables that hold rules written in the language."""
    source = Source("<rule>", f"objective rule\nloss {text}\n")
    line = parser.parse(source).lines("loss")[0]
    assert isinstance(line, Labelled)
    return line.value


@v_args(meta=True)
class _Builder(Transformer[Token, Any]):
    """Rules to nodes. Depth is limited, so that no later walk can exhaust the stack."""

    def __init__(self, source: Source, sections: dict[str, SectionSyntax]) -> None:
        super().__init__()
        self._source = source
        self._lines = {
            alias: builder for s in sections.values() for alias, builder in s.builders.items()
        }

    def _span(self, meta: Meta) -> Span:
        if meta.empty:
            return Span(self._source, 0, 0)
        return Span(self._source, meta.start_pos, meta.end_pos)

    def __default__(self, data: Any, children: list[Any], meta: Meta) -> Any:
        name = str(data)
        if name in self._lines:
            return self._lines[name](self._span(meta), children)
        if name == "header" or name.startswith("section_"):
            return [child for child in children if name == "header" or child is not None]
        return children

    def number(self, meta: Meta, children: list[Token]) -> Expression:
        text = str(children[0])
        mantissa, _, exponent = text.lower().partition("e")
        if len(mantissa) > MAX_DIGITS or (exponent and abs(int(exponent[:6])) > MAX_EXPONENT):
            raise fail(
                "syntax",
                "this number is too long or too large to mean anything here",
                self._span(meta),
                facts=(("at most", f"{MAX_DIGITS} digits, exponents up to {MAX_EXPONENT}"),),
            )
        return NumberLiteral(self._span(meta), text)

    def name(self, meta: Meta, children: list[Token]) -> Expression:
        return Name(self._span(meta), str(children[0]))

    def group(self, meta: Meta, children: list[Expression]) -> Expression:
        return children[0]

    def unary(self, meta: Meta, children: list[Any]) -> Expression:
        op, operand = children
        return Unary(self._span(meta), str(op), operand)

    def binary(self, meta: Meta, children: list[Any]) -> Expression:
        left, op, right = children
        return Binary(self._span(meta), str(op), left, right)

    def comparison(self, meta: Meta, children: list[Any]) -> Expression:
        operands, operators = tuple(children[::2]), tuple(str(op) for op in children[1::2])
        return Comparison(self._span(meta), operands, operators)

    def replacement(self, meta: Meta, children: list[Any]) -> Replacement:
        name, value = children
        return Replacement(self._span(meta), str(name), value)

    def call(self, meta: Meta, children: list[Any]) -> Expression:
        function, given, replaced = children
        plain = [a for a in given or [] if not isinstance(a, Replacement)]
        keywords = [a for a in given or [] if isinstance(a, Replacement)]
        return Call(
            self._span(meta),
            str(function),
            tuple(plain),
            tuple(keywords),
            tuple(replaced or []),
        )

    def derivative(self, meta: Meta, children: list[Any]) -> Expression:
        head, body, direction = children
        variable = str(head)[3:-1].strip()
        return Derivative(self._span(meta), variable, body, direction)

    def binding(self, meta: Meta, children: list[Any]) -> Line:
        name, parameters, value, rows = children
        names = None if parameters is None else tuple(str(p) for p in parameters)
        return Binding(self._span(meta), str(name), names, value, rows)

    def draw(self, meta: Meta, children: list[Any]) -> Line:
        names, law, rows = children
        return DrawLine(self._span(meta), tuple(str(n) for n in names), law, rows)

    def labelled(self, meta: Meta, children: list[Any]) -> Line:
        label, value, rows = children
        return Labelled(self._span(meta), str(label) if label else None, value, rows)
