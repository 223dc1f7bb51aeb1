"""Sampling with an inner flow: a map of another path, under the state of the outer one.

The outer state z is known; the inner map carries fresh noise to a draw of what the inner path ends
in, p data + q noise of the outer path, given z (Meta Flow Maps, arXiv:2601.14430, draw the data;
Transition Matching Distillation, arXiv:2601.09881, the velocity). With z that determines data and
noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from flowdsl.emit.ends import first_path
from flowdsl.ir.algebra import Linear, linear_in, solve
from flowdsl.ir.ranges import evaluate
from flowdsl.spec.core import (
    ONE,
    Draw,
    Expr,
    Formal,
    Given,
    Kind,
    Number,
    PathState,
    replace_formals,
    transform,
    walk,
)
from flowdsl.spec.objective import FlowMap, Objective, Path

OUTER, TIME = Formal("z", Kind.STATE), Formal("time", Kind.TIME)
INNER = Formal("y", Kind.STATE)
_DATA, _NOISE = Formal("data", Kind.STATE), Formal("noise", Kind.STATE)
_CANDIDATES = (0, 1)


@dataclass(frozen=True)
class Inner:
    """An inner map over the formals `INNER`, its own times, `OUTER` and `TIME`.

    It leads from `start` (fresh noise) to `end`; `data` is then the outer path's data, as an
    expression of where it ends (`INNER`), `OUTER` and `TIME`.
    """

    flow: FlowMap
    body: Expr
    start: float
    end: float
    data: Expr


def inner_of(objective: Objective) -> Inner | None:
    """The inner map of an objective that has no other, if samples can be made with it."""
    outer = first_path(objective)
    if outer is None or len(objective.maps) != 1 or "map" in objective.maps:
        return None
    (flow,) = objective.maps.values()
    path = objective.paths.get(flow.path)
    if path is None or path == outer or not isinstance(flow.start, Formal):
        return None
    body = _under_outer(flow, outer)
    if body is None:
        return None
    fresh = [n for n in walk(path.body) if isinstance(n, Draw) and n.kind is Kind.STATE]
    if len(fresh) != 1:
        return None
    forms = linear_in(path.body, frozenset({_DATA, _NOISE, fresh[0]}))
    place = linear_in(outer.body, frozenset({_DATA, _NOISE}))
    if forms is None or place is None:
        return None
    end = _zero(objective, path, [forms.get(fresh[0])])
    start = _zero(objective, path, [forms.get(_DATA), forms.get(_NOISE)])
    if start is None or end is None:
        return None
    scale = evaluate(forms[fresh[0]], {path.time: float(start)}, objective)
    if scale is None or abs(scale - 1) > 1e-9:
        return None
    at: dict[str, Expr] = {path.time: Number(Fraction(end))}
    reached = {s: replace_formals(c, at) for s, c in forms.items() if s != fresh[0]}
    here = {s: replace_formals(c, {outer.time: TIME}) for s, c in place.items()}
    wanted: Linear = {_DATA: ONE}
    data = solve(OUTER, INNER, here, wanted, reached, _DATA, _NOISE)
    return Inner(flow, body, float(start), float(end), data)


def _under_outer(flow: FlowMap, outer: Path) -> Expr | None:
    """The map's body over the outer state and its time; None where it needs more of the outer path.

    The outer path must stand in the map at one time, with its own ends.
    """
    points = {
        node for node in walk(flow.body) if isinstance(node, PathState) and node.path == outer.state
    }
    if len(points) != 1:
        return None
    (point,) = points
    if (point.data, point.noise) != (Given("data"), Given("noise")):
        return None
    moved = transform(point, lambda e: TIME if e == point.time else e)
    body = transform(flow.body, lambda e: TIME if e == point.time else e)
    body = transform(body, lambda e: OUTER if e == moved else e)
    return replace_formals(body, {flow.state.name: INNER})


def _zero(objective: Objective, path: Path, coefficients: list[Expr | None]) -> int | None:
    """The time at which all of these coefficients vanish."""
    for at in _CANDIDATES:
        values = [
            0.0 if c is None else evaluate(c, {path.time: float(at)}, objective)
            for c in coefficients
        ]
        if all(v is not None and abs(v) < 1e-12 for v in values):
            return at
    return None
