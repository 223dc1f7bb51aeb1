"""Kinds of rows that are no kinds of their own: a limit, written out.

`goal = map(z(s), s, 0); goal = data on s == 0` says what the first line says, but where its network
would be asked at log(0). Where a term on rows with `left == right` is the limit of the term on the
other rows, what is found of these holds of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import NoNetwork, Reader
from flowdsl.calculus.state import State
from flowdsl.spec.core import Apply, Expr, Level, Number
from flowdsl.spec.kinds import level_of
from flowdsl.truth.cases import Case
from flowdsl.truth.setting import Setting

#: What is left of a case at the truth, with these values in the place of scalars.
Residual = Callable[[Case, Mapping[Expr, Element]], State]


def joined(setting: Setting, residual: Residual, cases: list[Case]) -> list[Case]:
    """The cases without those that are limits of others; these then stand for both."""
    found = list(cases)
    for case in cases:
        for condition in (c for c, holds in case.facts.items() if holds and _is_equality(c)):
            other = next((c for c in found if c.facts == {**case.facts, condition: False}), None)
            if other is not None and _is_limit(setting, residual, case, other, condition):
                found.remove(case)
                place = found.index(other)
                found[place] = replace(other, implied=other.implied | {condition})
                break
    return found


def _is_equality(condition: Expr) -> bool:
    """Does it compare two numbers of the row?"""
    match condition:
        case Apply("eq", _):
            return level_of(condition) is Level.ROW
    return False


def _is_limit(
    setting: Setting, residual: Residual, case: Case, other: Case, condition: Expr
) -> bool:
    """Is the residual of a case that of the other where the two sides of the equality meet?"""
    assert isinstance(condition, Apply)
    left, right = condition.args
    if isinstance(left, Number):
        left, right = right, left
    small, series = setting.small, setting.context().series
    try:
        end = Reader(setting.context(), NoNetwork("condition")).scalar(right)
        near = residual(other, {left: end + setting.scalars.generator(small)})
        limit = series.coefficient(near, small, 0)
        return series.lowest(near, small) >= 0 and limit == residual(case, {})
    except (Undecided, Pole):
        return False
