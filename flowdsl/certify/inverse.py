"""Times from what a network is shown: functions of time, turned around one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flowdsl.spec.core import (
    ONE,
    Apply,
    Draw,
    Expr,
    Formal,
    Kind,
    Stop,
    add,
    apply,
    div,
    mul,
    neg,
    sub,
    walk,
)

#: Stands for what a network is shown, in the tree that gives the time from it.
SHOWN = Formal("shown", Kind.TIME)


@dataclass(frozen=True)
class Reading:
    """One time, as a tree over `SHOWN`, the argument of that place, and times read before."""

    time: Expr
    place: int
    tree: Expr


def readings(
    arguments: Sequence[Expr], wanted: Iterable[Expr], known: Iterable[Expr] = ()
) -> tuple[Reading, ...] | None:
    """How each of the wanted times follows from the arguments, in an order in which they do.

    None where they do not, one by one: `log(t) / 4` and `t - r` tell both times, `t - r` alone
    neither of them, unless the other is known.
    """
    left, told = list(wanted), set(known)
    found: list[Reading] = []
    while left:
        step = _next(arguments, left, told)
        if step is None:
            return None
        found.append(step)
        told.add(step.time)
        left.remove(step.time)
    return tuple(found)


def _next(arguments: Sequence[Expr], left: list[Expr], known: set[Expr]) -> Reading | None:
    for time in left:
        if time in arguments:
            return Reading(time, arguments.index(time), SHOWN)
    for time in left:
        for place, argument in enumerate(arguments):
            if _unknown(argument, {time, *known}):
                continue
            tree = inverted(argument, time)
            if tree is not None:
                return Reading(time, place, tree)
    return None


def _unknown(expr: Expr, known: set[Expr]) -> bool:
    """Is there a time, or another drawn quantity, that is not among the known?"""
    if expr in known:
        return False
    match expr:
        case Draw() | Formal():
            return True
        case Apply(_, args):
            return any(_unknown(a, known) for a in args)
        case Stop(body):
            return _unknown(body, known)
    return False


def inverted(expr: Expr, time: Expr) -> Expr | None:
    """The time, as a tree over `SHOWN`, the value of `expr`; None where no chain of invertible
    steps leads to its one occurrence. Of several solutions the principal one."""
    value: Expr = SHOWN
    while expr != time:
        step = _step(expr, time, value)
        if step is None:
            return None
        expr, value = step
    return value


_TURNED: dict[str, Callable[[Expr], Expr]] = {
    "neg": neg,
    "exp": lambda v: apply("log", v),
    "log": lambda v: apply("exp", v),
    "sqrt": lambda v: mul(v, v),
    "tan": lambda v: apply("atan", v),
    "atan": lambda v: apply("tan", v),
    "sin": lambda v: apply("atan", div(v, _side(v))),
    "cos": lambda v: apply("atan", div(_side(v), v)),
    "sigmoid": lambda v: apply("log", div(v, sub(ONE, v))),
}


def _side(v: Expr) -> Expr:
    return apply("sqrt", sub(ONE, mul(v, v)))


def _step(expr: Expr, time: Expr, value: Expr) -> tuple[Expr, Expr] | None:
    """The operand that holds the time, and its value where `expr` has this one."""
    match expr:
        case Stop(body):
            return body, value
        case Apply(op, (a,)) if op in _TURNED:
            return a, _TURNED[op](value)
        case Apply(op, (a, b)):
            return _binary(op, a, b, value, holds=(_holds(a, time), _holds(b, time)))
    return None


def _binary(
    op: str, a: Expr, b: Expr, value: Expr, holds: tuple[bool, bool]
) -> tuple[Expr, Expr] | None:
    match op, holds:
        case "add", (True, False):
            return a, sub(value, b)
        case "add", (False, True):
            return b, sub(value, a)
        case "sub", (True, False):
            return a, add(value, b)
        case "sub", (False, True):
            return b, sub(a, value)
        case "mul", (True, False):
            return a, div(value, b)
        case "mul", (False, True):
            return b, div(value, a)
        case "div", (True, False):
            return a, mul(value, b)
        case "div", (False, True):
            return b, div(a, value)
        case "pow", (True, False):
            return a, apply("pow", value, div(ONE, b))
    return None


def _holds(expr: Expr, time: Expr) -> bool:
    return any(node == time for node in walk(expr))
