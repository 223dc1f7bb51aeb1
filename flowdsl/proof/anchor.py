"""Is the data's flow the only solution? Put the exact flow of any other field in its place and see
what is left.

With hats for the other flow, a term leaves over an equation between velocities. Where it is an
invertible factor times v^ - v (a scalar, or the Jacobian of a flow), the other flow must be the
data's. Conditions are dealt with one after the other: a guided row ties its own field to the fields
it is guided by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from flowdsl.calculus.context import Conditions
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.expand import parts
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Reader
from flowdsl.calculus.rename import renamed
from flowdsl.calculus.state import Atom, Field, FunctionAtom, MapAtom, State, VelocityAtom
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.signs import silent
from flowdsl.proof.small import small_quantities, times_of
from flowdsl.spec.core import Evaluate, Expr, Kind, walk
from flowdsl.truth.cases import Case
from flowdsl.truth.live import live_calls
from flowdsl.truth.sample import NOISES


@dataclass(frozen=True)
class Equation:
    """What a case requires of another flow: this state must be zero."""

    case: Case
    study: Study
    mean: State


@dataclass(frozen=True)
class Tie:
    """What ties a field: an equation, and its left-over once the fields tied before are known."""

    equation: Equation
    conditions: Conditions
    factor: Element
    hat: Atom
    own: Atom


@dataclass(frozen=True)
class Combination:
    """A left-over Σ factor_c (v^_c - v_c) at one place, perhaps under the Jacobian of a flow."""

    factors: dict[Conditions, Element]
    hats: dict[Conditions, Atom]
    owns: dict[Conditions, Atom]


@dataclass
class Anchors:
    """The outcome: which fields are tied to the data, by which case, and which are not."""

    tied: dict[Conditions, Tie] = field(default_factory=dict)
    loose: list[Conditions] = field(default_factory=list)
    unread: list[Equation] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    objected: set[Conditions] = field(default_factory=set)  # rows of these leave something over

    @property
    def empty(self) -> bool:
        """Does every flow satisfy every term?"""
        return not self.failures and all(not e.mean for e in self.equations)

    def few(self, conditions: Conditions) -> bool:
        """Are there too few equations for these fields, all of a form that could tie them?"""
        about = [e for e in self.unread if mentions(e, conditions)]
        rows: list[dict[Conditions, Element]] = []
        for equation in about:
            read = combination(_with_known(equation, set(self.tied)))
            if read is None:
                return False
            rows.append(read.factors)
        unknown = {c for row in rows for c in row}
        return rank(rows) < len(unknown)


def anchors(
    analysis: Analysis, without: str | None = None, apart: frozenset[str] = frozenset()
) -> Anchors:
    """Which fields the terms of an objective tie to the data; `without` leaves out one term.

    Terms of `apart` tie no flow but a law, or teach what others need for that.
    """
    found = Anchors()
    wanted: dict[Conditions, None] = {}
    for case in _weighing(analysis):
        if case.term.name == without or case.term.name in apart:
            continue
        try:
            equation = _equation(analysis, case)
        except Undecided as undecided:
            found.failures.append(undecided.reason)
            continue
        found.equations.append(equation)
        if equation.mean and combination(equation.mean) is None:
            found.equations += _at_the_end(analysis, case)
        own = analysis.conditions(case, analysis.context())
        wanted[own] = None
        if equation.mean:
            found.objected.add(own)
        for conditions in _fields(equation.mean):
            wanted[conditions] = None
    _tie(found)
    found.loose = [c for c in wanted if c not in found.tied]
    return found


def _weighing(analysis: Analysis) -> Iterator[Case]:
    """The cases that still count in the last part of training."""
    for case in analysis.all_cases():
        if not all(silent(analysis, case, progress) for progress in (0.95, 1.0)):
            yield case


def _equation(analysis: Analysis, case: Case) -> Equation:
    """What a case requires of another flow: exactly, or to leading order in a small quantity."""
    study = analysis.study(case, kind="hat")
    exact = study.parts.expected
    if not study.parts.inside and (not exact or combination(exact) is not None):
        return Equation(case, study, exact)
    found = _near(analysis, case)
    if found is not None and (study.parts.inside or combination(found.mean) is not None):
        return found
    if study.parts.inside:
        raise Undecided("the conditional velocity enters in another way than linearly")
    return Equation(case, study, exact)


def _near(analysis: Analysis, case: Case) -> Equation | None:
    for _, bindings in small_quantities(analysis, case):
        near = analysis.study(case, kind="hat", bindings=bindings)
        series, e = near.context.series, analysis.small
        for order in range(series.lowest(near.residual, e), 3):
            sorted_parts = parts(series.coefficient(near.residual, e, order), NOISES)
            if sorted_parts.expected and not sorted_parts.inside:
                return Equation(case, near, sorted_parts.expected)
    return None


def _at_the_end(analysis: Analysis, case: Case) -> list[Equation]:
    """What a case requires of another flow once every curriculum has ended."""
    used = {n for e in (case.prediction, case.target) if e is not None for n in walk(e)}
    ends: dict[Expr, Element] = {}
    try:
        for expr in analysis.curricula.all.values():
            if expr in used:
                end = Fraction(analysis.curricula.profile(expr).end).limit_denominator(1000)
                ends[expr] = analysis.scalars.number(end)
        if not ends:
            return []
        study = analysis.study(case, kind="hat", bindings=ends)
    except Undecided:
        return []
    return [] if study.parts.inside else [Equation(case, study, study.parts.expected)]


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
            read = combination(rest)
            if read is not None and len(read.factors) == 1:
                ((conditions, factor),) = read.factors.items()
                context = equation.study.context
                if context.scalars.vanishes_at(factor, context.constants):
                    continue
                found.tied[conditions] = Tie(
                    equation, conditions, factor, read.hats[conditions], read.owns[conditions]
                )
                open_equations.remove(equation)
                progress = True
    found.unread = open_equations


def _with_known(equation: Equation, tied: set[Conditions]) -> State:
    def swap(whose: Field) -> Field:
        return ("flow", whose[1]) if whose[0] == "hat" and whose[1] in tied else whose

    return renamed(equation.study.context.calculus, equation.mean, swap)


def combination(state: State) -> Combination | None:
    """The state as a combination of differences v^ - v, or None."""
    hats: dict[Conditions, tuple[Atom, Element]] = {}
    owns: dict[Conditions, tuple[Atom, Element]] = {}
    frames, places = set(), set()
    for atom, c in state.terms.items():
        inner: Atom = atom
        frame = None
        if isinstance(atom, MapAtom):
            if len(atom.directions) != 1 or atom.orders != (0, 0):
                return None
            frame, inner = _frame(atom), atom.directions[0]
        if not isinstance(inner, VelocityAtom) or inner.order or inner.directions:
            return None
        frames.add(frame)
        places.add((inner.point, inner.time))
        side = hats if inner.field[0] == "hat" else owns
        side[inner.field[1]] = (atom, c)
    if len(frames) != 1 or len(places) != 1 or hats.keys() != owns.keys():
        return None
    if any(hats[k][1] != -owns[k][1] for k in hats):
        return None
    return Combination(
        {k: c for k, (_, c) in hats.items()},
        {k: a for k, (a, _) in hats.items()},
        {k: a for k, (a, _) in owns.items()},
    )


def rank(rows: list[dict[Conditions, Element]]) -> int:
    """The rank of a matrix given by its sparse rows."""
    work = [dict(row) for row in rows]
    count = 0
    while work:
        row = work.pop()
        pivot = next((k for k, c in row.items() if c), None)
        if pivot is None:
            continue
        count += 1
        for other in work:
            factor = other.get(pivot)
            if factor:
                for k, c in row.items():
                    other[k] = other.get(k, c - c) - factor / row[pivot] * c
    return count


def _frame(atom: MapAtom) -> tuple[Field, State, Element, Element, tuple[int, int], int]:
    return atom.field, atom.point, atom.start, atom.end, atom.orders, len(atom.directions)


def reaches_off_diagonal(analysis: Analysis) -> bool:
    """Is a network of a two-time map trained anywhere but where its times are equal?"""
    for case in analysis.all_cases():
        study = analysis.study(case)
        reader = Reader(study.context, study.networks, study.row)
        assert case.target is not None
        for expr in (case.prediction, case.target):
            for call in moved_calls(analysis, case, live_calls(analysis.objective, expr)):
                if study.networks.jumps(call):
                    start, end = times_of(study, reader, call)
                    if start != end:
                        return True
    return False


def moved_calls(analysis: Analysis, case: Case, calls: list[Evaluate]) -> list[Evaluate]:
    """Of calls through which gradient flows, those that a change of the network at their times
    moves in the residual: not `(t - t) * u(z, t, r)`. All of them where that is not known."""
    try:
        study = analysis.study(case, kind="free")
        moved = {a.times for a in study.variation.atoms() if isinstance(a, FunctionAtom)}
        reader = Reader(study.context, study.networks, study.row)
    except Undecided:
        return calls
    found = []
    for call in calls:
        times = _times(analysis, reader, call)  # those of states that it sees beside come last
        if any(times[: len(known)] == known for known in moved):
            found.append(call)
    return found


def _times(analysis: Analysis, reader: Reader, call: Evaluate) -> tuple[Element, ...]:
    kinds = analysis.objective.networks[call.network].arguments
    numbers = (Kind.TIME, Kind.SCALAR)
    return tuple(
        reader.scalar(arg)
        for (_, kind), arg in zip(kinds, call.args, strict=True)
        if kind in numbers
    )


def passes(analysis: Analysis, kind: str) -> bool:
    """Do networks of this kind ("zero", "constant") satisfy every term in the mean?"""
    any_case = False
    for case in analysis.all_cases():
        sorted_parts = analysis.study(case, kind=kind).parts
        if sorted_parts.mean or not sorted_parts.affine:
            return False
        any_case = True
    return any_case
