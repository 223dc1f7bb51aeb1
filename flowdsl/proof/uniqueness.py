"""Which maps that are no flows a term rules out, and where a theorem leaves one map only.

Candidates are put in the place of the map, while the data keep their velocity: the exact flow of
another field, the map that moves nothing, a constant one, and the map that moves nothing but where
its times are equal, where it has the data's velocity. The last is no continuous network's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.state import FunctionAtom, State, VelocityAtom
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.truth.cases import Case

Operator = Literal["eulerian", "lagrangian"]


@dataclass(frozen=True)
class Candidate:
    """A map that is not the data's: its kind in a study, and what it is called."""

    kind: str
    text: str


CANDIDATES = (
    Candidate("hat", "another flow"),
    Candidate("zero", "the map that moves nothing"),
    Candidate("constant", "a constant map"),
    Candidate("still apart", "the map that moves nothing off the diagonal"),
)


def objects(analysis: Analysis, case: Case, kind: str) -> bool | None:
    """Does a case leave something over in the mean with this map? None where that is not known."""
    try:
        found = analysis.study(case, kind=kind).parts
    except (Undecided, Pole):
        return None
    if found.mean:
        return True
    return False if found.affine else None


def operator(analysis: Analysis, case: Case) -> Operator | None:
    """The differential operator that a case applies to an arbitrary map F, if it is one.

    "eulerian" for c (∂F/∂t + J F[v]), "lagrangian" for c (∂F/∂s - v(F, s)), with c nowhere zero.
    On the diagonal the network has the data's velocity.
    """
    try:
        study = analysis.study(case, kind="any apart")
    except (Undecided, Pole):
        return None
    if not study.parts.affine:
        return None
    return _read(study, study.parts.mean)


def _read(study: Study, mean: State) -> Operator | None:
    moved = [(a, c) for a, c in mean.terms.items() if isinstance(a, FunctionAtom) and any(a.orders)]
    rest = [(a, c) for a, c in mean.terms.items() if all(a is not b for b, _ in moved)]
    if len(moved) != 1 or len(rest) != 1:
        return None
    ((function, factor),), ((other, coefficient),) = moved, rest
    if function.directions or _vanishes(study, factor):
        return None
    if isinstance(other, FunctionAtom):
        transported = (
            function.orders == (1, 0) and coefficient == factor and not any(other.orders)
            and _place(other) == _place(function) and len(other.directions) == 1
            and _is_velocity(other.directions[0], function.point, function.times[0])
        )  # fmt: skip
        return "eulerian" if transported else None
    landing = study.context.calculus.function(function.name, function.point, function.times)
    follows = function.orders == (0, 1) and coefficient == -factor
    return (
        "lagrangian" if follows and _is_velocity(other, landing, function.times[1]) else None
    )  # fmt: skip


def _place(atom: FunctionAtom) -> tuple[object, State, tuple[Element, ...]]:
    return atom.name, atom.point, atom.times


def _is_velocity(atom: object, point: State, time: Element) -> bool:
    return (
        isinstance(atom, VelocityAtom) and not atom.order and not atom.directions
        and (atom.point, atom.time) == (point, time)
    )  # fmt: skip


def _vanishes(study: Study, factor: Element) -> bool:
    return study.context.scalars.vanishes_at(factor, study.context.constants)
