"""Is a term's residual zero at the truth? Exactly, in the mean, or to some order in a small
quantity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.expand import Parts, parts
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Reader
from flowdsl.calculus.numbers import evaluate
from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.state import State
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.hidden import remains
from flowdsl.proof.points import everywhere
from flowdsl.proof.small import small_quantities, times_of
from flowdsl.spec.core import Apply, Evaluate, Expr, walk
from flowdsl.truth.cases import Case
from flowdsl.truth.live import live_calls
from flowdsl.truth.sample import NOISES

HIGHEST = 3  #: residuals are expanded up to this order

Outcome = Literal["proved", "order", "biased", "refuted", "undecided"]


@dataclass(frozen=True)
class Finding:
    """What was found of one case.

    `left` is the mean of target - prediction, or its leading coefficient in `small`. `exact` says
    that the residual vanishes for every sample and not only in the mean; `values_only` that the
    constants' values were needed.
    """

    outcome: Outcome
    study: Study | None = None
    left: State | None = None
    order: int = 0
    small: str = ""
    exact: bool = False
    values_only: bool = False
    reason: str = ""
    expanded: Parts | None = None
    bindings: Mapping[Expr, Element] = field(default_factory=dict)


def judge(analysis: Analysis, case: Case) -> Finding:
    """The residual of a case at the truth."""
    try:
        study = analysis.study(case)
        finding = _judge(analysis, case, study)
        if finding.outcome in ("refuted", "undecided") and analysis.objective.constants:
            by_value = _judge_values(analysis, case)
            if by_value is not None:
                return by_value
        if finding.outcome == "proved":
            _finite(analysis, study)
        return finding
    except Undecided as undecided:
        return Finding("undecided", reason=undecided.reason)


def _judge(analysis: Analysis, case: Case, study: Study) -> Finding:
    sorted_parts = study.parts
    if study.blind and remains(study.residual) and not remains(sorted_parts.mean):
        return Finding(
            "undecided", study, reason="the velocity and a label that is not shown go together"
        )
    if sorted_parts.affine and not sorted_parts.mean:
        return Finding("proved", study, exact=not sorted_parts.linear and not sorted_parts.higher)
    expanded = next(_expansions(analysis, case), None)
    if expanded is not None:
        return expanded
    if sorted_parts.inside:
        return _without_noise(study)
    left = -sorted_parts.expected
    if _unreduced(analysis, case, study, left):
        return Finding("undecided", study, left, reason=MAY_CANCEL)
    if _higher(left):
        return Finding("undecided", study, left, reason="third derivatives of a flow are left over")
    return Finding("biased" if settled(analysis, case, study) else "refuted", study, left)


def _without_noise(study: Study) -> Finding:
    """A term into which the noise enters other than linearly must hold at least when there is
    none."""
    calm = study.context.series.without(study.residual, NOISES)
    if calm and not _higher(calm):
        return Finding("refuted", study, -calm)
    return Finding(
        "undecided", study, reason="the conditional velocity enters in another way than linearly"
    )


def _judge_values(analysis: Analysis, case: Case) -> Finding | None:
    """With the constants at their values: does the term hold after all?"""
    if not analysis.symbolic:
        return None
    own = analysis.values
    try:
        study = own.study(case)
    except Undecided:
        return None
    if not study.parts.affine or study.parts.mean:
        return None
    exact = not study.parts.linear and not study.parts.higher
    return Finding("proved", study, exact=exact, values_only=True)


def _finite(analysis: Analysis, study: Study) -> None:
    """A proof for all constants must not divide by zero at the constants of the spec."""
    scalars = analysis.scalars
    if not analysis.symbolic or not analysis.objective.constants:
        return
    values = study.context.constants
    for state in (study.prediction, study.target):
        for c in state.terms.values():
            if not scalars.finite_at(c, values):
                raise Undecided("at the values of the constants something is divided by zero")


_RELATED = frozenset({"sqrt", "exp", "log", "atan"})
MAY_CANCEL = "roots, logarithms or branches are left that may cancel"


def _higher(state: State) -> bool:
    """Are there derivatives of flows of an order for which the rules are not complete?"""
    return any(a.parts is not None and len(a.parts[2]) > 2 for a in state.atoms())


def _unreduced(analysis: Analysis, case: Case, study: Study, state: State) -> bool:
    """May the left-over be zero after all, by a relation between roots, exponentials, logarithms or
    the branches of |x|, min and max?

    Each function has a generator of its own; relations such as sqrt(x) sqrt(y) = sqrt(x y) are not
    known to the field. A coefficient that is not zero at some numbers is not zero.
    """
    scalars = study.context.scalars
    risky = {i for i, d in scalars.defined.items() if d.function in _RELATED}
    risky |= {i for i, key in scalars.opaques.items() if isinstance(key, Apply)}
    coefficients = [c for c in state.terms.values() if scalars.generators_in(c) & risky]
    if len(coefficients) < len(state.terms):
        return False
    return not any(_differs_from_zero(analysis, case, scalars, c) for c in coefficients)


def _differs_from_zero(analysis: Analysis, case: Case, scalars: Scalars, x: Element) -> bool:
    """Is a coefficient other than zero at some values of what the row draws?"""
    constants = {name: float(value) for name, value in analysis.objective.constants.items()}
    opaques = scalars.opaques
    for k, point in enumerate(everywhere(analysis, case)):
        values = {
            i: 0.07 + 0.86 * ((k * 41 + i * 67 + 13) % 101) / 101
            for i in range(len(scalars.field.gens))
        }
        named = {**constants, **point, "progress": values[0], "step": 1000 * values[0]}
        for name, value in {**constants, **point}.items():
            if scalars.has(name):
                values[scalars.index(name)] = value
        for i, key in opaques.items():
            with suppress(Undecided):
                values[i] = float(evaluate(key, named)) if isinstance(key, Expr) else values[i]
        try:
            if abs(scalars.numeric(x, values)) > 1e-7:
                return True
        except (ArithmeticError, ValueError):
            continue
    return False


def settled(analysis: Analysis, case: Case, study: Study) -> bool:
    """Does the term alone fix what the network learns, as the mean of its target?

    It does when the prediction is the network itself, and the target uses it at most where the
    map's times are equal.
    """
    objective = analysis.objective
    assert case.target is not None
    predicted = live_calls(objective, case.prediction)
    if len(predicted) != 1 or predicted[0].directions:
        return False
    if len([n for n in walk(case.prediction) if isinstance(n, Evaluate)]) != 1:
        return False
    reader = Reader(study.context, study.networks, study.row)
    return all(
        _on_diagonal(study, reader, node)
        for node in walk(case.target)
        if isinstance(node, Evaluate) and not objective.networks[node.network].frozen
    )


def _on_diagonal(study: Study, reader: Reader, node: Evaluate) -> bool:
    if not study.networks.jumps(node) or node.directions:
        return False
    start, end = times_of(study, reader, node)
    return bool(start == end)


# expansions


def _expand(
    analysis: Analysis, case: Case, name: str, bindings: dict[Expr, Element]
) -> Finding | None:
    """The lowest order at which the mean of the residual is not zero, if that is any better than a
    wrong map's."""
    study = analysis.study(case, bindings=bindings)
    found = _leading(analysis, study)
    if found is None:
        return None
    order, sorted_parts = found
    if order < 1 or sorted_parts.inside:
        return None
    other = _leading(analysis, analysis.study(case, kind="hat", bindings=bindings), order - 1)
    if other is None:
        return None
    return Finding(
        "order",
        study,
        -sorted_parts.expected,
        order,
        name,
        expanded=sorted_parts,
        bindings=bindings,
    )


def _expansions(analysis: Analysis, case: Case) -> Iterator[Finding]:
    """The term near the end of a curriculum, or with a step between two times made small."""
    for name, bindings in small_quantities(analysis, case):
        try:
            finding = _expand(analysis, case, name, bindings)
        except Undecided:
            continue
        if finding is not None:
            yield finding


def _leading(analysis: Analysis, study: Study, highest: int = HIGHEST) -> tuple[int, Parts] | None:
    """The first order of the expansion with a mean; None when there is none up to `highest`."""
    series, e = study.context.series, analysis.small
    for order in range(series.lowest(study.residual, e), highest + 1):
        sorted_parts = parts(series.coefficient(study.residual, e, order), NOISES)
        if sorted_parts.mean or sorted_parts.inside or sorted_parts.higher:
            return order, sorted_parts
    return None
