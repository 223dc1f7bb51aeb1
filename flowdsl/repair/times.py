"""Edits of the lines that draw times: where a time leaves its path, or jumps lead the wrong way."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from flowdsl.calculus.inequalities import Affine, Bound, implies
from flowdsl.checks.times import domain
from flowdsl.diagnostics import Span
from flowdsl.proof.analysis import Analysis
from flowdsl.repair import search as slips
from flowdsl.repair.candidates import Known
from flowdsl.repair.edit import Edit, apart, change, together
from flowdsl.spec.core import Expr
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.lines import Binding, DrawLine
from flowdsl.syntax.tree import Binary, Call, Expression, Name, NumberLiteral


def of_times(known: Known, analysis: Analysis) -> Iterator[Edit]:
    """Single slips first: a sign, an end of a law, two names exchanged; then two of them."""
    lines = known.tree.lines("times")
    draws = [x for x in reversed(lines) if isinstance(x, DrawLine)]
    signs = [e for x in lines if isinstance(x, Binding) for e in slips.signs(x.value)]
    ends = [e for x in draws for e in _laws(known, analysis, x, both=False)]
    exchanged = [e for x in draws for e in _exchanged(x)]
    yield from (*signs, *ends, *exchanged)
    for first in signs:
        yield from (together([first, e]) for e in ends if apart(first, e))
    for k, law in enumerate(ends):
        yield from (together([law, e]) for e in ends[k + 1 :] if apart(law, e))
    yield from (e for x in draws for e in _laws(known, analysis, x, both=True))


def _exchanged(line: DrawLine) -> Iterator[Edit]:
    """The two names of a pair."""
    if len(line.drawn) != 2:
        return
    one, other = line.drawn
    text = line.span.text
    end = text.index("~")
    shown = f"{other}, {one} "
    head = Span(line.span.source, line.span.start, line.span.start + end)
    yield Edit(
        ((head, shown),), head, f"the larger is called {one}", f"write `{shown.strip()} ~ …`"
    )


def _laws(known: Known, analysis: Analysis, line: DrawLine, both: bool) -> Iterator[Edit]:
    """The law of one name, so that every time that is computed from it stays on the path: with one
    of its ends moved, or `both`."""
    if len(line.drawn) != 1 or not isinstance(line.law, Call):
        return
    (name,) = line.drawn
    objective = known.objective
    low, high = domain(objective, next(iter(objective.paths.values())))
    seen: set[str] = set()
    for form in _times(analysis, objective.definitions, name):
        factor = form.coefficient(name)
        rest = form - Affine.of({name: factor})
        lower = (Affine.number(low) - rest).scaled(1 / factor)
        upper = None if high is None else (Affine.number(high) - rest).scaled(1 / factor)
        if factor < 0:
            lower, upper = (lower if upper is None else upper), (None if upper is None else lower)
        if not implies(analysis.domain.bounds({}), Bound(lower, False)):
            lower = Affine.number(low)  # steps stay steps forward
        for law in _within(line.law, lower, upper, both):
            text = format_expression(law)
            if text not in seen:
                seen.add(text)
                yield change(line.law, law, line.law.span, "", f"write `{name} ~ {text}`")


def _times(analysis: Analysis, definitions: dict[str, Expr], name: str) -> list[Affine]:
    """A draw itself, and the times that are affine in it, also with the other sign before it."""
    own = Affine.variable(name)
    forms = [analysis.domain.affine(expr, {}) for expr in definitions.values()]
    used = [f for f in forms if f is not None and abs(f.coefficient(name)) == 1]
    turned = [f - own.scaled(2 * f.coefficient(name)) for f in used if f != own]
    return list(dict.fromkeys([*used, own, *turned]))


def _within(law: Call, lower: Affine, upper: Affine | None, both: bool) -> Iterator[Expression]:
    """The law with one end, or both, moved to where the path allows."""
    first = {"uniform": 0, "power_law": 0, "truncated": 1}.get(law.function)
    below = _text(lower, law)
    above = None if upper is None else _text(upper, law)
    if first is None:
        if above is not None:
            start = below if both else NumberLiteral(law.span, "0")
            yield Call(law.span, "truncated", (law, start, above))
        return
    if len(law.arguments) < first + 2:
        return
    old, last = law.arguments[first : first + 2]
    single = [(old, above), (below, last), (below, old), (last, above)]  # or beyond a name
    ends = [(below, above)] if both else single
    for start, end in ends:
        if end is not None and format_expression(start) != format_expression(end):
            arguments = (*law.arguments[:first], start, end, *law.arguments[first + 2 :])
            yield Call(law.span, law.function, arguments, law.keywords)


def _text(form: Affine, law: Call) -> Expression:
    """An affine function as an expression."""
    span = law.span
    parts: list[tuple[bool, Expression]] = []
    for name, c in form.terms:
        shown: Expression = Name(span, name)
        if abs(c) != 1:
            shown = Binary(span, "*", _number(abs(c), law), shown)
        parts.append((c < 0, shown))
    if form.constant or not parts:
        parts.append((form.constant < 0, _number(abs(form.constant), law)))
    parts.sort(key=lambda part: part[0])
    negative, whole = parts[0]
    if negative:
        whole = Binary(span, "-", NumberLiteral(span, "0"), whole)
    for minus, shown in parts[1:]:
        whole = Binary(span, "-" if minus else "+", whole, shown)
    return whole


def _number(value: Fraction, law: Call) -> Expression:
    if value.denominator == 1:
        return NumberLiteral(law.span, str(value))
    return NumberLiteral(law.span, f"{float(value):.10g}")
