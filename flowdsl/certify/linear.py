"""State trees as what they are: sums of states with scalar factors.

Two states may be added and scaled by scalars and nothing else, so every tree of kind state is a
combination of leaves (path states, velocities, evaluations of networks) with scalar trees in front.
The factors stay trees; they are evaluated in numbers, never simplified by rules.
"""

from __future__ import annotations

from collections.abc import Mapping

from flowdsl.certify.errors import Uncertified
from flowdsl.spec.core import (
    ONE,
    ZERO,
    Apply,
    Expr,
    Kind,
    Number,
    Stop,
    add,
    div,
    mul,
    neg,
    select,
    transform,
)
from flowdsl.spec.kinds import HasHeads, kind_of

Combination = dict[Expr, Expr]


def combination(expr: Expr, networks: Mapping[str, HasHeads]) -> Combination:
    """The leaves of a state tree, each with its factor. Raises `Uncertified` beyond sums and
    scalings."""
    match expr:
        case Apply("add" | "sub" as op, (a, b)):
            return plus(combination(a, networks), combination(b, networks), negative=op == "sub")
        case Apply("neg", (a,)):
            return {leaf: neg(c) for leaf, c in combination(a, networks).items()}
        case Apply("mul", (a, b)):
            state, factor = (a, b) if kind_of(a, networks) is Kind.STATE else (b, a)
            return scaled(combination(state, networks), factor)
        case Apply("div", (a, b)):
            return {leaf: _over(c, b) for leaf, c in combination(a, networks).items()}
        case Apply("select", (condition, yes, no)):
            return _selected(condition, combination(yes, networks), combination(no, networks))
        case Apply(op, _):
            raise Uncertified(f"a state goes through `{op}`", expr.span)
        case Stop(body):
            return combination(body, networks)
        case Number(value) if value == 0:
            return {}
    return {expr: ONE}


def plus(one: Combination, other: Combination, *, negative: bool = False) -> Combination:
    """The sum, or with `negative` the difference, of two combinations."""
    total = dict(one)
    for leaf, c in other.items():
        term: Expr = neg(c) if negative else c
        total[leaf] = add(total[leaf], term) if leaf in total else term
    return total


def scaled(terms: Combination, factor: Expr) -> Combination:
    """A combination times a scalar tree."""
    return {leaf: factor if c == ONE else mul(factor, c) for leaf, c in terms.items()}


def _over(c: Expr, divisor: Expr) -> Expr:
    return div(c, divisor)


def _selected(condition: Expr, yes: Combination, no: Combination) -> Combination:
    return {
        leaf: yes[leaf]
        if yes.get(leaf) == no.get(leaf)
        else select(condition, yes.get(leaf, ZERO), no.get(leaf, ZERO))
        for leaf in {**yes, **no}
    }


def folded(expr: Expr) -> Expr:
    """The tree without what has become zero."""
    return transform(expr, _fold)


def _fold(node: Expr) -> Expr:
    match node:
        case Apply("sub", (a, b)) if a == b:
            return ZERO
        case Apply("mul", (a, b)) if ZERO in (a, b):
            return ZERO
        case Apply("mul", (a, b)) if ONE in (a, b):
            return b if a == ONE else a
        case Apply("div" | "neg", (a, *_)) if a == ZERO:
            return ZERO
        case Apply("add", (a, b)) if ZERO in (a, b):
            return b if a == ZERO else a
        case Apply("sub", (a, b)) if b == ZERO:
            return a
    return node
