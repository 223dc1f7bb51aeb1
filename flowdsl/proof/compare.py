"""Two objectives side by side, for every network: are their rows' gradients the same?

The networks are functions about which nothing is known, so what is found holds from the first
training step to the last. Rows are compared as drawn: the same state, times and conditions; how
often each kind of row is drawn is not compared. The gradient of a row's loss is

    slope * 2 <variation, residual>,

and two are the same up to a positive weight when residuals and variations are multiples of each
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.cases import Case, make_case, relevant
from flowdsl.proof.errors import Pole, Undecided
from flowdsl.proof.field import Element
from flowdsl.proof.numbers import evaluate
from flowdsl.proof.show import Printer, ratio
from flowdsl.proof.state import State
from flowdsl.proof.weight import ERROR
from flowdsl.spec.core import Draw, Expr, Level, conditions_of, number, transform
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Claim, Objective, Term

NONE: frozenset[str] = frozenset()
HIGHEST = 3


@dataclass(frozen=True)
class Pair:
    """One kind of row of one objective beside the same kind of the other.

    `same` says that the gradients are positive multiples of each other, `weights` that they are
    equal, `values` that the losses are. `left` is what the residuals differ by, in text.
    """

    case: Case
    same: bool
    weights: bool
    values: bool
    left: str = ""
    one: str = ""
    other: str = ""


@dataclass(frozen=True)
class Parameter:
    """Where a claim is made: an expression, its value, and whether it is only approached."""

    expr: Expr
    value: Element
    near: bool
    number: Expr


def compare(analysis: Analysis, other: Objective, claim: Claim) -> list[Pair]:
    """Every kind of row of an objective beside the other's. Raises `Undecided`.

    For all values of the constants where that can be shown, else at the values of the specs.
    """
    same_values = all(
        analysis.objective.constants[n] == v
        for n, v in other.constants.items()
        if n in analysis.objective.constants
    )
    if same_values:
        pairs = _compare(analysis, other, claim, True)
        if pairs[-1].same:
            return pairs
    return _compare(analysis, other, claim, False)


def _compare(analysis: Analysis, other: Objective, claim: Claim, same_values: bool) -> list[Pair]:
    mine = replace(_fresh(analysis), symbolic=same_values)
    yours = Analysis(other, analysis.identities, analysis.clock, symbolic=same_values)
    mine.share_with(yours)
    yours.aliases = _aliases(analysis.objective, other)
    parameter = _parameter(mine, claim)
    terms = list(zip(mine.matched, yours.matched, strict=False))
    if len(mine.matched) != len(yours.matched) or not terms:
        raise Undecided("the two objectives have different numbers of terms")
    pairs = []
    for own, theirs in terms:
        for case in mine.cases(own):
            if not _holds_there(case, parameter):
                continue
            fitting = [c for c in yours.cases(theirs) if _compatible(case, c, parameter)]
            fitting = fitting or [_same_rows(yours, theirs, case)]
            for c in fitting:
                pairs.append(_pair(mine, yours, case, c, parameter))
                if same_values and not pairs[-1].same:
                    return pairs  # the values of the constants decide then
    if not pairs:
        raise Undecided("there are no rows to compare")
    return pairs


def _fresh(analysis: Analysis) -> Analysis:
    return Analysis(analysis.objective, analysis.identities, analysis.clock)


def _aliases(one: Objective, other: Objective) -> dict[str, str]:
    """Two objectives with one learning network each mean the same network by it."""
    learning = [
        [n.name for n in o.networks.values() if not n.frozen and n.average_of is None]
        for o in (one, other)
    ]
    return {learning[1][0]: learning[0][0]} if [len(n) for n in learning] == [1, 1] else {}


def _parameter(analysis: Analysis, claim: Claim) -> Parameter | None:
    if claim.mode == "always" or claim.parameter is None or claim.value is None:
        return None
    expr = analysis.objective.definitions.get(claim.parameter)
    if expr is None:
        raise Undecided(f"there is no `{claim.parameter}` here")
    constants = {n: float(v) for n, v in analysis.objective.constants.items()}
    value = number(evaluate(claim.value, constants))
    element = analysis.scalars.number(value.value)
    near = claim.mode == "near"
    if near:
        element = element + analysis.scalars.generator(analysis.small)
    return Parameter(expr, element, near, value)


def _holds_there(case: Case, parameter: Parameter | None) -> bool:
    """Do the step-level conditions of a case hold at (or near) the parameter's value?"""
    if parameter is None:
        return True
    value = float(evaluate(parameter.number, {})) + (1e-9 if parameter.near else 0.0)
    placed = number(value)
    for condition, truth in case.facts.items():
        if level_of(condition) is not Level.STEP or isinstance(condition, Draw):
            continue
        there = transform(condition, lambda n: placed if n == parameter.expr else n)
        try:
            if bool(evaluate(there, {})) != truth:
                return False
        except Undecided:
            continue
    return True


def _compatible(one: Case, other: Case, parameter: Parameter | None) -> bool:
    facts = one.facts
    agree = all(facts.get(c, v) == v for c, v in other.facts.items())
    return agree and _holds_there(other, parameter)


def _same_rows(yours: Analysis, term: Term, case: Case) -> Case:
    """The other objective on rows that it never draws: what it would do there is still defined."""
    other = make_case(term, case.facts, case.implied)
    for expr in relevant(yours.objective, term):
        if conditions_of(other.reduce(expr)):
            raise Undecided("the other objective tells rows apart that this one does not")
    return other


def _pair(
    mine: Analysis, yours: Analysis, case: Case, theirs: Case, parameter: Parameter | None
) -> Pair:
    bindings: Mapping[Expr, Element] = (
        {} if parameter is None else {parameter.expr: parameter.value}
    )
    one = mine.study(case, "free", NONE, bindings)
    two = yours.study(theirs, "free", NONE, bindings)
    near = parameter is not None and parameter.near
    orders, residuals = zip(*(_leading(mine, s, s.residual, near) for s in (one, two)), strict=True)
    _, variations = zip(*(_leading(mine, s, s.variation, near) for s in (one, two)), strict=True)
    factor, turn = ratio(residuals[0], residuals[1]), ratio(variations[0], variations[1])
    if factor is None or turn is None:
        difference = residuals[0] - residuals[1] if factor is None else (
            variations[0] - variations[1])  # fmt: skip
        return Pair(case, False, False, False, Printer.of(mine, case).state(difference))
    if not _positive(mine, factor * turn):
        return Pair(
            case, False, False, False, f"{mine.scalars.text(factor * turn)} times the other"
        )
    shown, equal, values = _weights(mine, yours, case, theirs, bindings, (factor, turn, orders[0]))
    return Pair(case, True, equal, values, "", *shown)


def _leading(analysis: Analysis, study: Study, state: State, near: bool) -> tuple[int, State]:
    """The state, or the first coefficient of its expansion that is not zero."""
    if not near:
        return 0, state
    series, e = study.context.series, analysis.small
    for order in range(series.lowest(state, e), HIGHEST + 1):
        found = series.coefficient(state, e, order)
        if found:
            return order, found
    raise Undecided(f"both sides vanish to order {HIGHEST}")


def _positive(analysis: Analysis, x: Element) -> bool:
    """Is a factor positive? Known for numbers; for others, at a few values of the symbols in (0,
    1)."""
    exact = analysis.scalars.rational(x)
    if exact is not None:
        return exact > 0
    count = len(analysis.scalars.field.gens)
    samples = [{i: 0.1 + 0.8 * ((k * 37 + i * 61) % 100) / 100 for i in range(count)}
               for k in range(8)]  # fmt: skip
    try:
        return all(analysis.scalars.numeric(x, values) > 0 for values in samples)
    except (ArithmeticError, ValueError, Pole):
        return False


def _weights(
    mine: Analysis,
    yours: Analysis,
    case: Case,
    theirs: Case,
    bindings: Mapping[Expr, Element],
    factors: tuple[Element, Element, int],
) -> tuple[tuple[str, str], bool, bool]:
    """Both rows' weights as text; whether gradients, and whether losses, are equal with them."""
    factor, turn, order = factors
    try:
        one, two = mine.weight(case), yours.weight(theirs)
    except Undecided:
        return ("", ""), False, False
    scalars = mine.loss_scalars
    texts = scalars.text(one.slope), scalars.text(two.slope)
    known = [mine.scalars.rational(x) for x in (factor, turn)]
    if order or any(x is None for x in known):
        return texts, False, False
    scale, turned = (scalars.number(x) for x in known if x is not None)
    place = scalars.index(ERROR)
    error = scalars.generator(place) * scale**2
    slope, value = one.slope, one.value
    for expr, bound in bindings.items():
        slope, value = (_bind(mine, x, expr, bound) for x in (slope, value))
    slope, value = (scalars.substitute(x, place, error) for x in (slope, value))
    return texts, slope * scale * turned == two.slope, value == two.value


def _bind(analysis: Analysis, x: Element, expr: Expr, bound: Element) -> Element:
    """A weight with the parameter at its value."""
    scalars = analysis.loss_scalars
    exact = analysis.scalars.rational(bound)
    known = scalars._found.get(("opaque", expr))
    if exact is None or known is None:
        return x
    return scalars.divide(
        scalars._evaluate(x.numer, {known: scalars.number(exact)}),
        scalars._evaluate(x.denom, {known: scalars.number(exact)}),
    )
