"""Velocities under conditions that differ from the row's own: what other rows say about them.

Where a network is shown a guidance scale, a row may ask for its velocity at another scale, or at
the null label. What that is follows from the equation of the rows which have these conditions: take
it with their values in the place of the draws, solve it for the data's velocity, and compare with
the row's own. In a spec with

    guided = velocity + (1 - 1 / k) * (v(z, t | k, lo = 0, hi = 1) - v(z, t | null))

the velocity at `lo = 0, hi = 1` is that of the row itself wherever its own interval contains t.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flowdsl.calculus.context import Conditions, Context
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import NoNetwork, Reader
from flowdsl.calculus.state import State, VelocityAtom
from flowdsl.spec.core import Apply, Draw, Evaluate, Expr, Level, transform, walk
from flowdsl.spec.kinds import level_of
from flowdsl.truth.cases import Case
from flowdsl.truth.live import learning_calls
from flowdsl.truth.marginal import equation_of, solved
from flowdsl.truth.sample import X
from flowdsl.truth.solver import Relation, Solver

Shown = tuple[tuple[str, Expr], ...]  # conditions as they are written


@dataclass
class Siblings:
    """For each case, v under other conditions as a combination of velocities at the same place."""

    _known: dict[object, dict[Conditions, Relation]] = field(default_factory=dict)

    def relations(self, solver: Solver, case: Case, context: Context) -> dict[Conditions, Relation]:
        key = (case.prediction, case.target)
        known = self._known.get(key)
        if known is None:
            self._known[key] = {}  # while an equation is read, nothing is known about the others
            known = self._known[key] = _relations(solver, case, context)
        return known

    def rewritten(
        self, solver: Solver, case: Case, context: Context, state: State, time: Element
    ) -> State:
        """The state with the velocities at x that other rows determine put in their places."""
        relations = self.relations(solver, case, context)
        if not relations:
            return state
        calculus = context.calculus
        x = calculus.symbol(X)
        total = calculus.zero
        for atom, c in state.terms.items():
            term = calculus.single(atom)
            if isinstance(atom, VelocityAtom) and not atom.order and not atom.directions:
                known = relations.get(atom.field[1])
                if known is not None and atom.point == x and atom.time == time:
                    term = calculus.zero
                    for whose, share in known.items():
                        own = calculus.velocity((atom.field[0], whose), x, time)
                        term = term + own.scaled(share)
            total = total + term.scaled(c)
        return total


def _relations(solver: Solver, case: Case, context: Context) -> dict[Conditions, Relation]:
    calls = learning_calls(solver.objective, case.prediction, case.target)
    if not calls or not any(_scalars(solver, shown) for shown in [calls[0].conditions]):
        return {}
    reader = Reader(solver.context(), NoNetwork("condition"))
    own = reader.conditions(calls[0])
    found: dict[Conditions, Relation] = {}
    for node in _evaluations(solver, case):
        conditions = reader.conditions(node)
        same_network = solver.objective.origin(node.network, node.head)[0]
        if conditions == own or conditions in found or same_network != calls[0].network:
            continue
        relation = _relation(solver, case, own, conditions, node.conditions)
        if relation is not None:
            found[conditions] = relation
    return {conditions: _closed(relation, found) for conditions, relation in found.items()}


def _closed(relation: Relation, others: dict[Conditions, Relation]) -> Relation:
    """A relation in which no velocity stands that the other relations determine: what rows without
    a label teach at one guidance scale they teach at every one."""
    for _ in others:
        if not relation.keys() & others.keys():
            return relation
        total: Relation = {k: c for k, c in relation.items() if k not in others}
        for whose in relation.keys() & others.keys():
            for k, share in others[whose].items():
                term = relation[whose] * share
                total[k] = total[k] + term if k in total else term
        relation = {k: c for k, c in total.items() if c}
    return relation


def _scalars(solver: Solver, shown: Shown) -> bool:
    """Is a network shown numbers that differ from row to row?"""
    return any(isinstance(n, Draw) and level_of(n) is Level.ROW for _, v in shown for n in walk(v))


def _evaluations(solver: Solver, case: Case) -> list[Evaluate]:
    """Every evaluation of a case, those in its direction of differentiation included."""
    moving = solver.objective.moving
    along = None if moving is None or moving.along is None else case.reduce(moving.along)
    roots = [e for e in (case.prediction, case.target, along) if e is not None]
    return [n for root in roots for n in walk(root) if isinstance(n, Evaluate)]


def _relation(
    solver: Solver, case: Case, own: Conditions, conditions: Conditions, shown: Shown
) -> Relation | None:
    """v under other conditions, from two equations for one velocity of the data.

    None where no row has such conditions, or where rows that may all be meant say different things.
    """
    context = solver.context()
    found: Relation | None = None
    for other in solver.all_cases():
        moved = _moved(solver, case, other, shown)
        if moved is None or solver.conditions(moved, context) != conditions:
            continue
        second = _solved(solver, moved, context, conditions)
        if second is None:
            continue
        if dict(own).get("label") == dict(conditions).get("label"):
            first = solver.relation(case, context, own)
        else:
            first = solver.relation(other, context, solver.conditions(other, context))
        relation = _compared(context, first, second, conditions)
        if relation is None or found not in (None, relation):
            return None
        found = relation
    return found


def _compared(
    context: Context, first: Relation, second: Relation, conditions: Conditions
) -> Relation | None:
    """Two equations V = Σ c_k v_k, solved for the velocity under `conditions`."""
    difference: Relation = dict(first)
    for k, c in second.items():
        difference[k] = difference[k] - c if k in difference else -c
    factor = difference.pop(conditions)
    if not factor:
        return None
    return {k: context.scalars.divide(-c, factor) for k, c in difference.items() if c}


def _moved(solver: Solver, case: Case, other: Case, shown: Shown) -> Case | None:
    """Another kind of row with these conditions in the place of its own, if the row at hand can be
    of that kind."""
    calls = learning_calls(solver.objective, other.prediction, other.target)
    if not calls:
        return None
    values: dict[Expr, Expr] = {}
    for (name, theirs), (same, wanted) in zip(calls[0].conditions, shown, strict=False):
        if name != same:
            return None
        if theirs == wanted:
            continue
        if not isinstance(theirs, Draw) or level_of(theirs) is not Level.ROW:
            return None
        values[theirs] = wanted

    def put(expr: Expr) -> Expr:
        return transform(expr, lambda node: values.get(node, node))

    facts = dict(case.facts)
    for condition, value in other.facts.items():
        if isinstance(condition, Apply) and level_of(condition) is Level.ROW:
            if facts.get(put(condition), value) != value:
                return None
            facts[put(condition)] = value
    if not solver.domain.possible(facts):
        return None
    assert other.target is not None
    return Case(other.term, other.facts, other.implied, put(other.prediction), put(other.target),
                put(other.loss))  # fmt: skip


def _solved(
    solver: Solver, case: Case, context: Context, conditions: Conditions
) -> Relation | None:
    try:
        equation = equation_of(solver, case, context, conditions, "term")
        return None if equation is None else solved(context, equation, conditions)
    except Undecided:
        return None
