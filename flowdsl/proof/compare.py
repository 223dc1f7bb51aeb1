"""Two objectives side by side, for every network: are their rows' gradients the same?

The networks are functions about which nothing is known, so what is found holds from the first
training step to the last. Rows are compared as drawn: the same state, times and conditions; how
often each kind of row is drawn is not compared.

Terms are compared one by one where both objectives have as many, else all terms of a row together
(see sums.py). The gradient of a matched row's loss is

    slope * 2 <variation, residual>,

and two are the same up to a positive weight when residuals and variations are multiples of each
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.numbers import evaluate
from flowdsl.calculus.state import State
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.kinds import RowKind, row_kinds
from flowdsl.proof.show import Printer, ratio
from flowdsl.proof.sums import Pair, Total, compared, positive, total
from flowdsl.proof.weight import course
from flowdsl.spec.core import Constant, Draw, Expr, Level, conditions_of, number, transform
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Claim, Objective, Term
from flowdsl.truth.cases import Case, make_case, relevant
from flowdsl.truth.setting import ERROR

NONE: frozenset[str] = frozenset()
HIGHEST = 3


@dataclass(frozen=True)
class Parameter:
    """Where a claim is made: an expression, its value, and whether it is only approached."""

    expr: Expr
    value: Element
    near: bool
    number: Expr

    @property
    def bindings(self) -> dict[Expr, Element]:
        return {self.expr: self.value}


def compare(analysis: Analysis, other: Objective, claim: Claim) -> list[Pair]:
    """Every kind of row of an objective beside the other's. Raises `Undecided`.

    For all values of the constants where that can be shown, else at the values of the specs.
    """
    beside = Analysis(other, analysis.identities, analysis.clock)
    same_values = all(
        analysis.objective.constants[n] == v
        for n, v in other.constants.items()
        if n in analysis.objective.constants
    )
    if same_values:
        pairs = _compare(analysis, beside, claim, True)
        if pairs[-1].same:
            return pairs
    return _compare(analysis, beside, claim, False)


def _compare(analysis: Analysis, other: Analysis, claim: Claim, same_values: bool) -> list[Pair]:
    mine, yours = _fresh(analysis, same_values), _fresh(other, same_values)
    mine.share_with(yours)
    yours.aliases = _aliases(analysis.objective, other.objective)
    parameter = _parameter(mine, claim)
    own, theirs = (_terms(a.objective, claim) for a in (analysis, other))
    if not own or not theirs:
        raise Undecided("there are no terms to compare")
    matched = all(term.target is not None for term in (*own, *theirs))
    alone = len(own) == len(theirs) and matched
    if alone:
        pairs = [p for one, two in zip(own, theirs, strict=True)
                 for p in _rows(mine, yours, [one], [two], parameter)]  # fmt: skip
        if len(own) == 1 or all(p.same for p in pairs):
            return _differing_last(pairs)
    try:
        return _differing_last(_rows(mine, yours, own, theirs, parameter))
    except Undecided:
        if alone:
            return _differing_last(pairs)
        raise


def _differing_last(pairs: list[Pair]) -> list[Pair]:
    if not pairs:
        raise Undecided("there are no rows to compare")
    return sorted(pairs, key=lambda pair: not pair.same)


def _terms(objective: Objective, claim: Claim) -> list[Term]:
    """The terms that a claim speaks of."""
    return [t for t in objective.terms if claim.upto not in (t.name, t.group)]


def _rows(
    mine: Analysis, yours: Analysis, own: list[Term], theirs: list[Term],
    parameter: Parameter | None,
) -> list[Pair]:  # fmt: skip
    """Every kind of row on which these terms are computed, beside the other's."""
    others = [k for k in row_kinds(yours, theirs) if _holds_there(k.facts, parameter)]
    pairs = []
    for kind in row_kinds(mine, own):
        if not _holds_there(kind.facts, parameter):
            continue
        fitting = [k for k in others if all(kind.facts.get(c, v) == v for c, v in k.facts.items())]
        for other in fitting or [_same_rows(yours, theirs, kind)]:
            pairs.append(_pair(mine, yours, kind, other, parameter))
    return pairs


def _fresh(analysis: Analysis, symbolic: bool) -> Analysis:
    """The same objective with nothing studied yet; its kinds of rows are those that are known."""
    found = Analysis(
        analysis.objective, analysis.identities, analysis.clock, symbolic, _cases=analysis._cases
    )
    vars(found).update(curricula=analysis.curricula, domain=analysis.domain)
    return found


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
    expr: Expr | None = analysis.objective.definitions.get(claim.parameter)
    if claim.parameter in analysis.objective.constants:
        expr = Constant(claim.parameter)
    if expr is None:
        raise Undecided(f"there is no `{claim.parameter}` here")
    constants = {n: float(v) for n, v in analysis.objective.constants.items()}
    value = number(evaluate(claim.value, constants))
    element = analysis.scalars.number(value.value)
    near = claim.mode == "near"
    if near:
        element = element + analysis.scalars.generator(analysis.small)
    return Parameter(expr, element, near, value)


def _holds_there(facts: Mapping[Expr, bool], parameter: Parameter | None) -> bool:
    """Do the step-level conditions of a kind of row hold at (or near) the parameter's value?"""
    if parameter is None:
        return True
    value = float(evaluate(parameter.number, {})) + (1e-9 if parameter.near else 0.0)
    placed = number(value)
    for condition, truth in facts.items():
        if level_of(condition) is Level.ROW or isinstance(condition, Draw):
            continue
        there = transform(condition, lambda n: placed if n == parameter.expr else n)
        try:
            if bool(evaluate(there, {})) != truth:
                return False
        except Undecided:
            continue
    return True


def _same_rows(yours: Analysis, terms: list[Term], kind: RowKind) -> RowKind:
    """The other objective on rows that it never draws: what it would do there is still defined."""
    cases = []
    for term in terms:
        other = make_case(yours.domain, term, kind.facts, kind.implied)
        for expr in relevant(yours.objective, term):
            if conditions_of(other.reduce(expr)):
                raise Undecided("the other objective tells rows apart that this one does not")
        cases.append(other)
    return RowKind(kind.facts, kind.implied, tuple(cases))


def _pair(
    mine: Analysis, yours: Analysis, kind: RowKind, other: RowKind, parameter: Parameter | None
) -> Pair:
    bindings = {} if parameter is None else parameter.bindings
    near = parameter is not None and parameter.near
    alone = len(kind.cases) == len(other.cases) == 1
    if alone and kind.cases[0].target is not None and other.cases[0].target is not None:
        return _matched(mine, yours, kind.cases[0], other.cases[0], bindings, near)
    if not kind.cases and not other.cases:
        raise Undecided("rows on which neither objective has a term")
    sides: list[Total] = []
    for analysis, one in ((mine, kind), (yours, other)):
        sides.append(total(analysis, one.cases, bindings))
    shown = (mine, kind.cases[0]) if kind.cases else (yours, other.cases[0])
    return compared(Printer.of(*shown), shown[1], sides[0], sides[1], near)


def _matched(
    mine: Analysis, yours: Analysis, case: Case, theirs: Case,
    bindings: Mapping[Expr, Element], near: bool,
) -> Pair:  # fmt: skip
    """One matched term beside another."""
    one = mine.study(case, "free", NONE, bindings)
    two = yours.study(theirs, "free", NONE, bindings)
    if not one.row.same_state(two.row):
        return Pair(case, False, False, False, "the networks see states of different paths")
    orders, residuals = zip(*(_leading(mine, s, s.residual, near) for s in (one, two)), strict=True)
    _, variations = zip(*(_leading(mine, s, s.variation, near) for s in (one, two)), strict=True)
    factor, turn = ratio(residuals[0], residuals[1]), ratio(variations[0], variations[1])
    if factor is None or turn is None:
        what = "residuals" if factor is None else "variations"
        first, second = residuals if factor is None else variations
        left = f"{what} differ by {_told(mine, case, first - second)}"
        return Pair(case, False, False, False, left)
    if not positive(mine.scalars, factor * turn):
        return Pair(
            case, False, False, False, f"{mine.scalars.text(factor * turn)} times the other"
        )
    shown, equal, values = _weights(mine, yours, case, theirs, bindings, (factor, turn, orders[0]))
    if not equal and not _parallel(mine, yours, case, theirs):
        return Pair(case, False, False, False, f"weights {shown[0]} against {shown[1]}", *shown)
    return Pair(case, True, equal, values, "", *shown)


def _told(analysis: Analysis, case: Case, state: State) -> str:
    """A difference as text: with every condition written out, where two calls would else look the
    same."""
    printer = Printer.of(analysis, case)
    names = [printer.atom(atom) for atom in state.terms]
    if len(set(names)) < len(names):
        printer = replace(printer, own=())
    return printer.state(state)


def _parallel(mine: Analysis, yours: Analysis, case: Case, theirs: Case) -> bool:
    """Have two rows' weights the same sign?"""
    scalars = mine.loss_scalars
    try:
        one, two = mine.weight(case).slope, yours.weight(theirs).slope
        return positive(scalars, scalars.divide(one, two))
    except Pole:
        return False
    except Undecided:
        return course(mine, case) != "unknown" and course(yours, theirs) != "unknown"


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
