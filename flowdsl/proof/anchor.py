"""Is the data's flow the only solution? Put the exact flow of any other field in its place and see what is left.

With hats for the other flow, a term leaves over an equation between velocities. Where it is an invertible factor
times v^ - v (a scalar, or the Jacobian of a flow), the other flow must be the data's. Conditions are dealt with one
after the other: a guided row ties its own field to the fields it is guided by.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.cases import Case
from flowdsl.proof.errors import Undecided
from flowdsl.proof.expand import parts
from flowdsl.proof.field import Element
from flowdsl.proof.interpret import Conditions, Reader
from flowdsl.proof.judge import small_quantities, times_of
from flowdsl.proof.rename import renamed
from flowdsl.proof.sample import NOISES, live_calls
from flowdsl.proof.state import Atom, Calculus, Field, MapAtom, State, VelocityAtom


@dataclass(frozen=True)
class Equation:
    """What a case requires of another flow: this state must be zero."""

    case: Case
    study: Study
    mean: State


@dataclass(frozen=True)
class Tie:
    """An equation that is `factor` (times a Jacobian) times v^ - v, under these conditions.

    `hat` and `own` are the atoms whose difference it is.
    """

    equation: Equation
    conditions: Conditions
    factor: Element
    hat: Atom
    own: Atom


@dataclass
class Anchors:
    """The outcome: which fields are tied to the data, by which case, and which are not."""

    tied: dict[Conditions, Tie] = field(default_factory=dict)
    loose: list[Conditions] = field(default_factory=list)
    unread: list[Equation] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Does every flow satisfy every term?"""
        return not self.failures and all(not e.mean for e in self.equations)


def anchors(analysis: Analysis) -> Anchors:
    """Which fields the terms of an objective tie to the data."""
    found = Anchors()
    wanted: dict[Conditions, None] = {}
    for case in analysis.all_cases():
        try:
            equation = _equation(analysis, case)
        except Undecided as undecided:
            found.failures.append(undecided.reason)
            continue
        found.equations.append(equation)
        wanted[analysis.conditions(case, analysis.context())] = None
        for conditions in _fields(equation.mean):
            wanted[conditions] = None
    _tie(found)
    found.loose = [c for c in wanted if c not in found.tied]
    return found


def _equation(analysis: Analysis, case: Case) -> Equation:
    study = analysis.study(case, kind="hat")
    if not study.parts.inside:
        return Equation(case, study, study.parts.mean)
    for _, bindings in small_quantities(analysis, case):
        near = analysis.study(case, kind="hat", bindings=bindings)
        series, e = near.context.series, analysis.small
        for order in range(series.lowest(near.residual, e), 3):
            sorted_parts = parts(series.coefficient(near.residual, e, order), NOISES)
            if sorted_parts.mean and not sorted_parts.inside:
                return Equation(case, near, sorted_parts.mean)
    raise Undecided("the conditional velocity enters in another way than linearly")


def _fields(state: State) -> set[Conditions]:
    """The conditions of the other flow's fields in a state."""
    return {
        atom.field[1]
        for atom in state.atoms()
        if isinstance(atom, MapAtom | VelocityAtom) and atom.field[0] == "hat"
    }


def mentions(equation: Equation, conditions: Conditions) -> bool:
    """Is the other flow's field under these conditions in the equation?"""
    return conditions in _fields(equation.mean)


def _tie(found: Anchors) -> None:
    open_equations = [e for e in found.equations if e.mean]
    progress = True
    while progress:
        progress = False
        for equation in list(open_equations):
            rest = _with_known(equation, set(found.tied))
            if not rest:
                open_equations.remove(equation)
                continue
            tie = difference(equation, rest)
            if tie is not None and tie.conditions not in found.tied:
                found.tied[tie.conditions] = tie
                open_equations.remove(equation)
                progress = True
    found.unread = open_equations


def _with_known(equation: Equation, tied: set[Conditions]) -> State:
    def swap(whose: Field) -> Field:
        return ("flow", whose[1]) if whose[0] == "hat" and whose[1] in tied else whose

    return renamed(equation.study.context.calculus, equation.mean, swap)


def difference(equation: Equation, state: State) -> Tie | None:
    """The state as an invertible factor times v^ - v at one place, or None."""
    if len(state.terms) != 2:
        return None
    items = sorted(state.terms.items(), key=lambda item: not _is_hat(item[0]))
    (one, a), (two, b) = items
    if a != -b:
        return None
    inner_one, inner_two = one, two
    if isinstance(one, MapAtom) and isinstance(two, MapAtom):
        if _frame(one) != _frame(two) or len(one.directions) != 1 or one.orders != (0, 0):
            return None
        inner_one, inner_two = one.directions[0], two.directions[0]
        if not _is_hat(inner_one):
            one, two, inner_one, inner_two, a = two, one, inner_two, inner_one, b
    conditions = _pair(inner_one, inner_two)
    return None if conditions is None else Tie(equation, conditions, a, one, two)


def _is_hat(atom: Atom) -> bool:
    return isinstance(atom, VelocityAtom) and atom.field[0] == "hat"


def _frame(atom: MapAtom) -> tuple[Field, State, Element, Element, tuple[int, int], int]:
    return atom.field, atom.point, atom.start, atom.end, atom.orders, len(atom.directions)


def _pair(one: Atom, two: Atom) -> Conditions | None:
    if not isinstance(one, VelocityAtom) or not isinstance(two, VelocityAtom):
        return None
    same = (one.point, one.time, one.order, one.directions) == (
        two.point, two.time, two.order, two.directions)  # fmt: skip
    kinds = {one.field[0], two.field[0]}
    plain = same and not one.order and not one.directions
    if plain and kinds == {"hat", "flow"} and one.field[1] == two.field[1]:
        return one.field[1]
    return None


def reaches_off_diagonal(analysis: Analysis) -> bool:
    """Is a network of a two-time map trained anywhere but where its times are equal?"""
    for case in analysis.all_cases():
        study = analysis.study(case)
        reader = Reader(study.context, study.networks, study.row)
        assert case.target is not None
        for expr in (case.prediction, case.target):
            for call in live_calls(analysis.objective, expr):
                if call.network in study.networks.maps:
                    start, end = times_of(study, reader, call)
                    if start != end:
                        return True
    return False


def passes(analysis: Analysis, kind: str) -> bool:
    """Do networks of this kind ("zero", "constant") satisfy every term in the mean?"""
    any_case = False
    for case in analysis.all_cases():
        sorted_parts = analysis.study(case, kind=kind).parts
        if sorted_parts.mean or sorted_parts.inside:
            return False
        any_case = True
    return any_case
