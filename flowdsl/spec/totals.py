"""Which `d/dX[…]` of a spec means a network's derivative along given tangents, if any does.

The inverse of what `motion.py` does with `d/dX[…]`: a candidate is differentiated by the very
rules of `differentiate.py`, and holds only if that gives the tangents asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from flowdsl.diagnostics import DiagnosticError
from flowdsl.spec.core import (
    ONE,
    Direction,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    PathState,
    PathVelocity,
    children,
    rebuild,
    replace_formals,
    walk,
)
from flowdsl.spec.differentiate import differentiate
from flowdsl.spec.objective import Moving


@dataclass(frozen=True)
class Surroundings:
    """How names stand around an expression.

    `named` gives the name that means an expression, or nothing; `own_state` says whether one is
    a path's state at the path's own time; `paths` and `moving` are those of a `Notation`.
    """

    named: Callable[[Expr], str]
    own_state: Callable[[Expr], bool]
    paths: Mapping[str, str]
    moving: Moving | None


@dataclass(frozen=True)
class Total:
    """`d/dVARIABLE[… along ALONG]`; `fixed` is `along none`."""

    variable: str
    along: Expr | None = None
    fixed: bool = False


class _Unreadable(Exception):
    """Something inside that a derivative of the language does not read as it stands."""


def total(node: Evaluate, around: Surroundings) -> Total | None:
    """The derivative that means this one; None where the language has none, or none is found."""
    if len(node.directions) != 1:
        return None
    (wanted,) = node.directions
    for variable, name in _variables(node, around):
        for guess in _guesses(variable, name, node, around):
            if _tangents(node, variable, guess, around) == wanted:
                return guess
    return None


def _variables(node: Evaluate, around: Surroundings) -> Iterator[tuple[Expr, str]]:
    """What may move: times and numbers that have a name, then the states of paths."""
    states: dict[Expr, str] = {}
    times: dict[Expr, str] = {}

    def visit(expr: Expr) -> None:
        if around.own_state(expr) and isinstance(expr, PathState):
            states[expr] = expr.path
        elif name := around.named(expr):
            if not _of_state(expr):
                times[expr] = name
            return
        for child in children(expr):
            visit(child)

    for arg in node.args:
        visit(arg)
    yield from times.items()
    yield from states.items()


def _guesses(variable: Expr, name: str, node: Evaluate, around: Surroundings) -> Iterator[Total]:
    (wanted,) = node.directions
    places = zip(node.args, wanted, strict=True)
    given = [d for arg, d in places if d is not None and around.own_state(arg)]
    if isinstance(variable, PathState):
        yield from (Total(name, along) for along in given)
        return
    yield Total(name)
    if name in around.paths.values():
        yield from (Total(name, along) for along in given)
        yield Total(name, fixed=True)


def _tangents(
    node: Evaluate, variable: Expr, guess: Total, around: Surroundings
) -> Direction | None:
    """How the arguments move under a derivative; None where it cannot be told."""
    tangents: dict[Expr, Expr] = {}
    back: dict[str, Expr] = {}

    def moving(value: Expr, tangent: Expr, kind: Kind) -> Formal:
        formal = Formal(f"d:{len(back)}", kind)
        known = next((f for f, v in back.items() if v == value), None)
        if known is not None:
            return Formal(known, kind)
        tangents[formal], back[formal.name] = tangent, value
        return formal

    def visit(expr: Expr) -> Expr:
        if expr == variable:
            if isinstance(expr, PathState):
                return moving(expr, guess.along or ONE, Kind.STATE)
            return moving(expr, ONE, Kind.TIME)
        if around.own_state(expr) and isinstance(expr, PathState):
            if isinstance(variable, PathState) or guess.fixed:
                return expr
            if around.paths.get(expr.path) != guess.variable:
                return expr
            return moving(expr, guess.along or _usual(expr, guess.variable, around), Kind.STATE)
        if around.named(expr):
            if _of_state(expr):  # a derivative looks inside such a name
                raise _Unreadable
            return expr
        if isinstance(expr, PathVelocity) or (isinstance(expr, Evaluate) and expr.directions):
            raise _Unreadable
        return rebuild(expr, visit)

    try:
        moved = [differentiate(visit(a), tangents, _rate, _no_partials) for a in node.args]
    except (_Unreadable, DiagnosticError):
        return None
    return tuple(None if d is None else replace_formals(d, back) for d in moved)


def _of_state(expr: Expr) -> bool:
    """Is it, or is it made of, a state?"""
    return any(
        isinstance(node, PathState | PathVelocity | Evaluate)
        or (isinstance(node, Given) and node.name != "label")
        or (isinstance(node, Draw | Formal) and node.kind is Kind.STATE)
        for node in walk(expr)
    )


def _usual(state: PathState, time: str, around: Surroundings) -> Expr:
    """The direction along which a state moves where nothing is said."""
    declared = around.moving
    if declared is not None and declared.time == time and declared.along is not None:
        return declared.along
    return PathVelocity(state.path, state.time, state.data, state.noise)


def _rate(node: PathState | PathVelocity) -> Expr:
    if isinstance(node, PathState):
        return PathVelocity(node.path, node.time, node.data, node.noise)
    raise _Unreadable


def _no_partials(op: str, args: tuple[Expr, ...]) -> tuple[Expr, ...]:
    raise _Unreadable
