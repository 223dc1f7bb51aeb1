"""Kinds and levels of core expressions: what a value is, and how often it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowdsl.spec.core import (
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Level,
    Null,
    Number,
    PathState,
    PathVelocity,
    Stop,
    Training,
    children,
)
from flowdsl.spec.operations import OPERATIONS

if TYPE_CHECKING:
    from flowdsl.spec.objective import Objective


def kind_of(expr: Expr, objective: Objective) -> Kind:
    """The kind of a well-kinded expression."""
    match expr:
        case Number() | Constant() | Training():
            return Kind.SCALAR
        case Draw(_, kind, _) | Formal(_, kind):
            return kind
        case Given(name):
            return Kind.LABEL if name == "label" else Kind.STATE
        case Null():
            return Kind.LABEL
        case PathState() | PathVelocity():
            return Kind.STATE
        case Evaluate(network, head, _, _, _):
            return dict(objective.networks[network].heads)[head]
        case Stop(body):
            return kind_of(body, objective)
        case Apply(op, args):
            match OPERATIONS[op].shape:
                case "comparison" | "logic":
                    return Kind.TRUTH
                case "reduction" | "batch":
                    return Kind.SCALAR
                case "select":
                    first, second = (kind_of(a, objective) for a in args[1:])
                    return first if first is not Kind.TIME else second
                case _:
                    kinds = {kind_of(a, objective) for a in args}
                    return Kind.STATE if Kind.STATE in kinds else Kind.SCALAR
    raise TypeError(f"flowdsl/spec/kinds.py has no rule for {type(expr).__name__}")


def level_of(expr: Expr) -> Level:
    """How often the value changes: the highest level of what it is made of."""
    match expr:
        case Number() | Constant() | Null():
            return Level.CONSTANT
        case Training():
            return Level.STEP
        case Draw(_, _, level):
            return level
        case Given() | Formal() | PathState() | PathVelocity() | Evaluate():
            return Level.ROW
        case Apply("batch_mean", _):
            return Level.STEP
    return max((level_of(child) for child in children(expr)), default=Level.CONSTANT)
