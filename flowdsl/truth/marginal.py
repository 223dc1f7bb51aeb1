"""Guided truth: how the data's velocity follows from the flow that an objective defines.

Where a target stands for `velocity + k (v(label) - v(null))`, the flow to be learned is not the
data's but that of the field v which solves v = E[guided | z] with the networks at their own truth:
a linear fixed point. The equation is solved for the data's velocity, V = Σ c_k v_k over the
conditions k, because the calculus knows the flow of v.

An equation is taken as guidance only if its coefficients sum to 1: were all conditions the same,
the flow would be the data's. Any other combination is a wrong target, not another flow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from flowdsl.calculus.context import Conditions, Context, numbers_in
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.expand import parts
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import NoNetwork, Reader
from flowdsl.calculus.state import State, VelocityAtom
from flowdsl.spec.core import (
    Apply,
    Evaluate,
    Expr,
    Formal,
    Kind,
    Level,
    PathState,
    PathVelocity,
    transform,
    walk,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective
from flowdsl.truth.cases import Case
from flowdsl.truth.live import learning_calls
from flowdsl.truth.networks import data_field
from flowdsl.truth.sample import NOISES, X
from flowdsl.truth.solver import Relation, Solver


class Singular(Undecided):
    """The guidance does not determine the flow: its fixed point divides by zero."""


#: How an equation for the velocities is read off: from the direction of differentiation, from a
#: term as it stands, or from a term whose direction is taken to be the flow's velocity.
Way = Literal["direction", "term", "moving"]
WAYS: tuple[Way, ...] = ("direction", "term", "moving")
_CARRIED = Formal("the flow's velocity", Kind.STATE)
Region = frozenset[tuple[Expr, bool]]


@dataclass
class Guidance:
    """The relations of one objective: found once, then the same for all of its terms."""

    found: list[tuple[Conditions, Region, Relation]] = field(default_factory=list)
    singular: str = ""  # why some guidance has no solution
    _ready: bool = False
    _busy: bool = False

    def relation(
        self, solver: Solver, case: Case, context: Context, conditions: Conditions
    ) -> Relation:
        """V under these conditions on the rows of a case, as a combination of flow velocities."""
        own: Relation = {conditions: context.scalars.one}
        if not conditions:
            return own
        if not self._ready and not self._busy:
            self._collect(solver)
        if self.singular and not self._busy:
            raise Undecided(self.singular)
        region = _region(solver, case)
        fitting = [
            r for c, other, r in self.found if c == conditions and _compatible(region, other)
        ]
        # where one kind of row is guided and another is not, no flow fits both: show the guided one
        return next((r for r in fitting if r != own), fitting[0] if fitting else own)

    def _collect(self, solver: Solver) -> None:
        """The direction of differentiation speaks first, then each term about its own rows, at last
        each term on condition that its direction is the flow's own velocity."""
        self._busy = True
        everything = [case for term in solver.matched for case in _cases(solver, term)]
        for way in WAYS:
            for case in everything:
                try:
                    self._add(solver, case, way)
                except Singular as singular:
                    self.singular = singular.reason
                except Undecided:
                    continue
        self._busy, self._ready = False, True

    def _add(self, solver: Solver, case: Case, way: Way) -> None:
        context = solver.context()
        conditions, region = solver.conditions(case, context), _region(solver, case)
        if not conditions:
            return
        if any(c == conditions and _compatible(region, r) for c, r, _ in self.found):
            return
        equation = equation_of(solver, case, context, conditions, way)
        relation = None if equation is None else solved(context, equation, conditions)
        if relation is not None:
            _check_shown(solver, case, context, relation)
            self.found.append((conditions, region, relation))


def _cases(solver: Solver, term: object) -> list[Case]:
    try:
        return solver.cases(term)  # type: ignore[arg-type]
    except Undecided:
        return []


def equation_of(
    solver: Solver,
    case: Case,
    context: Context,
    conditions: Conditions,
    way: Way,
) -> State | None:
    """What is zero at the truth, in the data's velocity and the flow's.

    With `moving` the direction of differentiation is taken to be the flow's velocity: where it is
    another one, the term itself is not zero at the solution that is found.
    """
    networks = solver.networks(case, context, "flow")
    networks.marginal = lambda c, p, t: context.calculus.velocity(data_field(c), p, t)
    networks.elsewhere = None
    x = context.calculus.symbol(X)
    time = solver.row(case, context, networks, x).time
    row = solver.row(case, context, networks, networks.marginal(conditions, x, time))
    reader = Reader(context, networks, row)
    if way == "direction":
        moving = solver.objective.moving
        if moving is None or moving.along is None:
            return None
        along = case.reduce(moving.along)
        if not _tells_velocity(solver.objective, along, row.base):
            return None
        value = reader.state(along, False) - context.calculus.velocity(
            ("flow", conditions), x, time
        )
    else:
        assert case.target is not None
        sides = case.prediction, case.target
        if way == "moving":
            moving = solver.objective.moving
            if moving is None or moving.along is None:
                return None
            along = case.reduce(moving.along)
            sides = _carried(case.prediction, along), _carried(case.target, along)
            own = context.calculus.velocity(("flow", conditions), x, time)
            reader = Reader(context, networks, row, {_CARRIED.name: own})
        value = reader.state(sides[0], False) - reader.state(sides[1], False)
    sorted_parts = parts(value, NOISES)
    return None if not sorted_parts.affine else sorted_parts.mean


def _carried(expr: Expr, along: Expr) -> Expr:
    """An expression whose derivatives are taken along the flow's own velocity."""

    def turned(tangent: Expr | None) -> Expr | None:
        return None if tangent is None else transform(
            tangent, lambda n: _CARRIED if n == along else n)  # fmt: skip

    def visit(node: Expr) -> Expr:
        if not isinstance(node, Evaluate) or not node.directions:
            return node
        directions = tuple(tuple(turned(t) for t in d) for d in node.directions)
        return replace(node, directions=directions)

    return transform(expr, visit)


def _tells_velocity(objective: Objective, along: Expr, base: PathState) -> bool:
    """Is a direction made of the velocity at the row's state, or of what teachers know of it?"""
    here = PathVelocity(base.path, base.time, base.data, base.noise)
    return any(
        node == here
        or (isinstance(node, Evaluate) and objective.networks[node.network].frozen
            and any(part == base for a in node.args for part in walk(a)))
        for node in walk(along)
    )  # fmt: skip


def solved(context: Context, equation: State, conditions: Conditions) -> Relation | None:
    """V = Σ c_k v_k from an equation between velocities at one place, or None."""
    own: Element = context.scalars.zero
    others: Relation = {}
    places = set()
    for atom, c in equation.terms.items():
        if not isinstance(atom, VelocityAtom) or atom.order or atom.directions:
            return None
        places.add((atom.point, atom.time))
        kind, whose = atom.field
        if kind == "data" and whose == conditions:
            own = c
        else:  # the data's velocity under other conditions is taken to be unguided
            others[whose] = others.get(whose, context.scalars.zero) + c
    if len(places) != 1:
        return None
    scalars = context.scalars
    if not own or scalars.vanishes_at(own, context.constants):
        return None
    relation = {whose: scalars.divide(-c, own) for whose, c in others.items()}
    if sum(relation.values(), scalars.zero) != 1:
        return None
    back = relation.get(conditions)
    if back is None or scalars.vanishes_at(back, context.constants):
        raise Singular("the guidance has no fixed point at these values of the constants")
    return relation


def _check_shown(solver: Solver, case: Case, context: Context, relation: Relation) -> None:
    """A flow that is guided by a drawn number is one flow only to a network that sees the
    number."""
    scalars = context.scalars
    learner = learning_calls(solver.objective, case.prediction, case.target)[0]
    reader = Reader(context, NoNetwork("scalar"))
    shown = list(numbers_in(solver.conditions(case, context)).values())
    kinds = solver.objective.networks[learner.network].arguments
    shown += [
        reader.scalar(a)
        for (_, kind), a in zip(kinds, learner.args, strict=True)
        if kind in (Kind.TIME, Kind.SCALAR)
    ]
    shown.append(reader.scalar(solver.base(case).time))
    seen = {i for x in shown for i in scalars.generators_in(x)}
    drawn = {scalars.index(n) for n in solver.objective.draws if scalars.has(n)}
    used = {i for c in relation.values() for i in scalars.generators_in(c)}
    if hidden := used & drawn - seen:
        names = ", ".join(scalars.name_of(i) for i in sorted(hidden))
        raise Singular(f"{learner.head} is not shown {names}, by which its flow is guided")


def _region(solver: Solver, case: Case) -> Region:
    """What is known about the time of the row's state, in terms of that time alone."""
    time = solver.base(case).time
    here = Formal("τ", Kind.TIME)
    found = set()
    for condition, value in case.facts.items():
        about_rows = isinstance(condition, Apply) and level_of(condition) is Level.ROW
        if about_rows and any(node == time for node in walk(condition)):
            found.add((transform(condition, lambda n: here if n == time else n), value))
    return frozenset(found)


def _compatible(one: Region, other: Region) -> bool:
    return not any((condition, not value) in other for condition, value in one)
