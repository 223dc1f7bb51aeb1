"""Kinds of rows for several terms at once: which of them are computed there, and as what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from flowdsl.proof.analysis import Analysis
from flowdsl.spec.core import FALSE, ONE, ZERO, Expr, assume, conditions_of, select
from flowdsl.spec.objective import Term
from flowdsl.truth.cases import Case, make_case


@dataclass(frozen=True)
class RowKind:
    """What is known of these rows, and the cases of the terms that are computed on them."""

    facts: dict[Expr, bool] = field(hash=False)
    implied: frozenset[Expr]
    cases: tuple[Case, ...]


def row_kinds(analysis: Analysis, terms: Sequence[Term]) -> list[RowKind]:
    """Every kind of row that these terms together tell apart."""
    kinds = [RowKind({}, frozenset(), ())]
    for term in terms:
        kinds = [longer for kind in kinds for longer in _with(analysis, kind, term)]
    return [
        RowKind(kind.facts, kind.implied, tuple(_known(analysis, kind, c) for c in kind.cases))
        for kind in kinds
        if kind.cases
    ]


def _known(analysis: Analysis, kind: RowKind, case: Case) -> Case:
    """A case with all that is known of its rows."""
    if (case.facts, case.implied) == (kind.facts, kind.implied):
        return case
    return make_case(analysis.domain, case.term, kind.facts, kind.implied)


def _with(analysis: Analysis, kind: RowKind, term: Term) -> Iterator[RowKind]:
    for case in analysis.cases(term):
        facts = _merged(analysis, kind.facts, case.facts)
        if facts is not None:
            yield RowKind(facts, kind.implied | case.implied, (*kind.cases, case))
    if term.rows is None:
        return
    conditions = conditions_of(select(term.rows, ONE, ZERO))
    for values in product((True, False), repeat=len(conditions)):
        extra = dict(zip(conditions, values, strict=True))
        if assume(term.rows, extra) == FALSE:
            facts = _merged(analysis, kind.facts, extra)
            if facts is not None:
                yield RowKind(facts, kind.implied, kind.cases)


def _merged(
    analysis: Analysis, one: dict[Expr, bool], other: dict[Expr, bool]
) -> dict[Expr, bool] | None:
    """Both facts together, where they can hold together."""
    if any(one.get(c, v) != v for c, v in other.items()):
        return None
    facts = {**one, **other}
    return facts if analysis.domain.possible(facts) else None
