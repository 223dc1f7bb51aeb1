"""All terms of a row together: their summed loss and its gradient, beside another objective's.

MeanFlow's loss has the gradient of trajectory flow matching plus trajectory consistency: one term
on one side, two on the other, and a difference of the losses that moves no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.expand import Series
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Reader
from flowdsl.calculus.lossform import Form, LossReader, product, sum_of
from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.state import Atom
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.show import Printer, times
from flowdsl.spec.core import Expr
from flowdsl.truth.cases import Case
from flowdsl.truth.sample import Row

HIGHEST = 3

Product = tuple[Atom, Atom] | tuple[str, Expr]


@dataclass(frozen=True)
class Pair:
    """One kind of row of one objective beside the same kind of the other.

    `same` says that the gradients are positive multiples of each other, `weights` that they are
    equal, `values` that the losses are. `left` is what gradients or residuals differ by, `apart`
    what the losses differ by, `one` and `other` are the rows' weights; all in text.
    """

    case: Case
    same: bool
    weights: bool
    values: bool
    left: str = ""
    one: str = ""
    other: str = ""
    apart: str = ""


@dataclass(frozen=True)
class Total:
    """The summed loss of a row: its value, its gradient, and its value taken apart where that can
    be done."""

    analysis: Analysis
    row: Row | None
    value: Element
    gradient: Form
    apart: Form | None
    series: Series | None
    sizes: frozenset[int]


def total(analysis: Analysis, cases: Sequence[Case], bindings: Mapping[Expr, Element]) -> Total:
    """The terms of a row, summed, for networks about which nothing is known."""
    none: frozenset[str] = frozenset()
    value, gradient, row = analysis.scalars.zero, Form(), None
    sizes: dict[int, Form] = {}
    losses: LossReader | None = None
    for case in cases:
        context = replace(analysis.context(none, bindings), notes=set())
        networks = analysis.networks(case, context, "free")
        own = analysis.row_with_marginal(case, context, networks)
        if row is not None and not own.same_state(row):
            raise Undecided("the terms are computed at different states")
        row = own
        losses = LossReader(Reader(context, networks, own), sizes)
        value = value + losses.value(case.loss)
        gradient = gradient.plus(losses.gradient(case.loss))
    apart = Form() if losses is None else losses.expanded(value)
    series = None if losses is None else losses.context.series
    return Total(analysis, row, value, gradient, apart, series, frozenset(sizes))


def compared(printer: Printer, case: Case, one: Total, other: Total, near: bool) -> Pair:
    """Two sums side by side."""
    if one.row is not None and other.row is not None and not one.row.same_state(other.row):
        return Pair(case, False, False, False, "the networks see states of different paths")
    first, second = one.gradient, other.gradient
    if near:
        first, second = (_leading(t) for t in (one, other))
    same_value = not near and one.value == other.value
    apart = "" if same_value or near else _apart(printer, one, other)
    if not first.minus(second):
        exact = not near
        return Pair(case, True, exact, same_value, "", apart=apart)
    factor = first.ratio(second)
    if factor is not None and positive(one.analysis.scalars, factor):
        return Pair(case, True, False, same_value, "", one.analysis.scalars.text(factor), "1",
                    apart)  # fmt: skip
    left = f"gradients differ by {form_text(printer, first.minus(second))}"
    return Pair(case, False, False, same_value, left, apart=apart)


def _apart(printer: Printer, one: Total, other: Total) -> str:
    """What two losses differ by, where both are sums of products."""
    if one.apart is None or other.apart is None:
        return ""
    return form_text(printer, one.apart.minus(other.apart))


def _leading(side: Total) -> Form:
    """The first coefficient of the gradient's series that is not zero; what weights contain of the
    row's sizes counts as a number."""
    if side.series is None:
        return side.gradient
    e = side.analysis.small
    low = min(
        (side.analysis.scalars.valuation(c, e) for c in side.gradient.terms.values()), default=0
    )
    for order in range(low, HIGHEST + 1):
        found = sum_of(
            _coefficient(side, pair, c, order) for pair, c in side.gradient.terms.items()
        )
        if found:
            return found
    raise Undecided(f"both sides vanish to order {HIGHEST}")


def _coefficient(side: Total, pair: object, c: Element, order: int) -> Form:
    series, e, scalars = side.series, side.analysis.small, side.analysis.scalars
    assert series is not None
    match pair:
        case (Atom() as a, Atom() as b):
            moving = series.calculus.single(a).scaled(c)
            still = series.calculus.single(b)
            low = scalars.valuation(c, e)
            return sum_of(
                product(series.coefficient(moving, e, i), series.coefficient(still, e, order - i))
                for i in range(low, order + 1)
            )
    raise Undecided("a scalar network near a value")


def positive(scalars: Scalars, x: Element) -> bool:
    """Is a factor positive? Known for numbers; for others, at a few values of the symbols in (0,
    1)."""
    exact = scalars.rational(x)
    if exact is not None:
        return exact > 0
    count = len(scalars.field.gens)
    samples = [{i: 0.1 + 0.8 * ((k * 37 + i * 61) % 100) / 100 for i in range(count)}
               for k in range(8)]  # fmt: skip
    try:
        return all(scalars.numeric(x, values) > 0 for values in samples)
    except (ArithmeticError, ValueError, Pole):
        return False


def form_text(printer: Printer, form: Form) -> str:
    """A sum of products as text; 0 for none. What all coefficients share stands before it, where
    that is shorter."""
    scalars = printer.analysis.scalars
    plain = _form_text(printer, form.terms)
    first = next(iter(form.terms.values()), None)
    if first is None or len(form.terms) < 2 or scalars.rational(first) is not None:
        return plain
    with suppress(Pole):
        rest = {pair: scalars.divide(c, first) for pair, c in form.terms.items()}
        factored = times(printer.scalar(first), f"({_form_text(printer, rest)})")
        return factored if len(factored) < 0.7 * len(plain) else plain
    return plain


def _form_text(printer: Printer, terms: Mapping[Product, Element]) -> str:
    text = ""
    for (one, other), c in terms.items():
        if isinstance(one, Atom) and isinstance(other, Atom):
            name = f"<{printer.atom(one)}, {printer.atom(other)}>"
        else:
            name = f"change of {printer.expression(other)}" if isinstance(other, Expr) else "…"
        term = times(printer.scalar(c), name)
        if not text:
            text = term
        elif term.startswith("-"):
            text += f" - {term[1:]}"
        else:
            text += f" + {term}"
    return text or "0"


__all__ = ["Pair", "Total", "compared", "form_text", "positive", "total"]
