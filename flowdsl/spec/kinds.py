"""Kinds and levels of core expressions: what a value is, and how often it changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

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
    walk,
)
from flowdsl.spec.operations import OPERATIONS


class HasHeads(Protocol):
    @property
    def heads(self) -> tuple[tuple[str, Kind], ...]: ...


def kind_of(expr: Expr, networks: Mapping[str, HasHeads]) -> Kind:
    """The kind of a well-kinded expression; `networks` says what its networks return."""
    known: dict[Expr, Kind] = {}
    for node in walk(expr):
        known[node] = _kind(node, known, networks)
    return known[expr]


def _kind(node: Expr, known: dict[Expr, Kind], networks: Mapping[str, HasHeads]) -> Kind:
    match node:
        case Number() | Constant() | Training():
            return Kind.SCALAR
        case Draw(_, kind, _) | Formal(_, kind):
            return kind
        case Given(name):
            return Kind.LABEL if name in ("label", "text") else Kind.STATE
        case Null():
            return Kind.LABEL
        case PathState() | PathVelocity():
            return Kind.STATE
        case Evaluate(network, head, _, _, _):
            return dict(networks[network].heads)[head]
        case Stop(body):
            return known[body]
        case Apply(op, args):
            match OPERATIONS[op].shape:
                case "comparison" | "logic":
                    return Kind.TRUTH
                case "reduction" | "batch":
                    return Kind.SCALAR
                case "select":
                    first, second = known[args[1]], known[args[2]]
                    if Kind.STATE in (first, second):  # a plain 0 may stand for the zero state
                        return Kind.STATE
                    return first if first is not Kind.TIME else second
                case _:
                    kinds = {known[a] for a in args}
                    return Kind.STATE if Kind.STATE in kinds else Kind.SCALAR
    raise TypeError(f"flowdsl/spec/kinds.py has no rule for {type(node).__name__}")


def level_of(expr: Expr) -> Level:
    """How often the value changes: the highest level of what it is made of."""
    return expr.level
