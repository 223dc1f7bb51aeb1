"""Case analysis: a term on each kind of row that its conditions tell apart."""

from __future__ import annotations

from dataclasses import dataclass, field

from flowdsl.calculus.domain import NEGATED, Domain
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.settle import settle
from flowdsl.spec.core import (
    FALSE,
    ONE,
    TRUE,
    ZERO,
    Apply,
    Draw,
    Evaluate,
    Expr,
    Level,
    Number,
    assume,
    children,
    conditions_of,
    select,
    transform,
    walk,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective, Term

LIMIT = 128  #: a term that falls into more kinds of rows is not taken apart


@dataclass(frozen=True)
class Case:
    """A term where some conditions are known: `facts`, and its expressions on such rows.

    `implied` are the facts that follow from the others and need not be told.
    """

    term: Term
    facts: dict[Expr, bool] = field(hash=False)
    implied: frozenset[Expr]
    prediction: Expr
    target: Expr | None
    loss: Expr

    def reduce(self, expr: Expr) -> Expr:
        """Another expression of the objective on the rows of this case."""
        return on_rows(expr, self.facts)


def on_rows(expr: Expr, facts: dict[Expr, bool]) -> Expr:
    """The expression on rows with these properties; an equality that holds is used as one."""
    expr = assume(expr, facts)
    for condition, value in facts.items():
        match condition:
            case Apply("eq", (left, right)) if value:
                expr = _replace(expr, left, right)
            case Apply("ne", (left, right)) if not value:
                expr = _replace(expr, left, right)
    return expr


def _replace(expr: Expr, left: Expr, right: Expr) -> Expr:
    if isinstance(left, Number):
        left, right = right, left
    return transform(expr, lambda node: right if node == left else node)


def make_case(
    domain: Domain, term: Term, facts: dict[Expr, bool], implied: frozenset[Expr]
) -> Case:
    """A term on rows with these properties; |x|, min and max are what they are on such rows."""

    def here(expr: Expr) -> Expr:
        return settle(domain, facts, on_rows(expr, facts))

    target = None if term.target is None else here(term.target)
    return Case(term, facts, implied, here(term.prediction), target, here(term.loss))


def relevant(objective: Objective, term: Term) -> list[Expr]:
    """The expressions whose conditions tell a term's rows apart."""
    own = [e for e in (term.prediction, term.target, term.loss) if e is not None]
    found = list(own)
    if term.rows is not None:
        found.append(select(term.rows, ONE, ZERO))
    nodes = [node for e in own for node in walk(e) if isinstance(node, Evaluate)]
    networks = {node.network for node in nodes}
    networks |= {o for n in networks if (o := objective.networks[n].average_of) is not None}
    for flow_map in objective.maps.values():
        if any(isinstance(n, Evaluate) and n.network in networks for n in walk(flow_map.body)):
            found.append(flow_map.body)
    moving = objective.moving
    if moving is not None and moving.along is not None and any(node.directions for node in nodes):
        found.append(moving.along)
    return found


class TooManyKinds(Undecided):
    """A term falls into more than `LIMIT` kinds of rows: so it will whenever it is asked."""


def cases(objective: Objective, domain: Domain, term: Term) -> list[Case]:
    """Every kind of row on which the term is computed. Raises `TooManyKinds` beyond `LIMIT`."""
    leaves: list[Case] = []

    def visit(expressions: list[Expr], facts: dict[Expr, bool], implied: frozenset[Expr]) -> None:
        """`expressions` are those that tell rows apart, as they are where the facts hold."""
        if term.rows is not None and assume(term.rows, facts) == FALSE:
            return
        condition = _next_condition(expressions) or _next_order(domain, term, facts)
        if condition is None:
            leaves.append(make_case(domain, term, facts, implied))
            if len(leaves) > LIMIT:
                raise TooManyKinds(f"more than {LIMIT} kinds of rows")
            return
        branches = [v for v in (True, False) if domain.possible({**facts, condition: v})]
        if term.rows is not None:
            branches = [v for v in branches if assume(term.rows, {**facts, condition: v}) != FALSE]
        for value in branches:
            settled = implied | {condition} if len(branches) == 1 else implied
            reduced = list(dict.fromkeys(assume(e, {condition: value}) for e in expressions))
            visit(reduced, {**facts, condition: value}, settled)

    visit(relevant(objective, term), {}, frozenset())
    return leaves


def _next_condition(expressions: list[Expr]) -> Expr | None:
    """The first condition still open: draws before comparisons, steps before rows."""
    still_open = dict.fromkeys(c for expr in expressions for c in conditions_of(expr))
    return min(
        still_open,
        key=lambda c: (not isinstance(c, Draw), level_of(c) is not Level.STEP),
        default=None,
    )


def _next_order(domain: Domain, term: Term, facts: dict[Expr, bool]) -> Expr | None:
    """`a < b`, where min(a, b) or max(a, b) of two draws stands beside the draws themselves.

    Where one of the two is seen nowhere else, the smaller of them is a time like any other.
    """
    sides = [
        settle(domain, facts, on_rows(e, facts))
        for e in (term.prediction, term.target)
        if e is not None
    ]
    outside: set[Expr] = set()
    inside: dict[Apply, None] = {}

    def visit(node: Expr) -> None:
        if isinstance(node, Apply) and node.op in ("min", "max"):
            inside[node] = None
        elif node not in outside:
            outside.add(node)
            for child in children(node):
                visit(child)

    for side in sides:
        visit(side)
    for node in inside:
        order = Apply("lt", node.args)
        drawn = all(isinstance(a, Draw) for a in node.args)
        if drawn and outside.issuperset(node.args) and order not in facts:
            return order
    return None


SYMBOLS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


def negated(condition: Expr, value: bool) -> Expr:
    """The condition that holds: itself, or the opposite comparison."""
    if value:
        return condition
    if isinstance(condition, Apply) and condition.op in NEGATED:
        return Apply(NEGATED[condition.op], condition.args)
    return Apply("not", (condition,))


__all__ = ["SYMBOLS", "TRUE", "Case", "cases", "make_case", "negated", "on_rows", "relevant"]
