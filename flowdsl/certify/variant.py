"""What is measured: a term with the plain squared error, where its own loss would hide the answer.

A weight made of the sample's own error, a learned weight, a clipped or normalised target distort
the mean of the residual on purpose: their solution is not quite the flow, and their authors know.
So the identity is measured without them, on the same trees.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flowdsl.checks.certificate import LOSS_REPLACED
from flowdsl.spec.core import (
    ONE,
    Apply,
    Evaluate,
    Expr,
    Kind,
    PathState,
    PathVelocity,
    sub,
    transform,
    walk,
)
from flowdsl.spec.objective import Objective, Term
from flowdsl.spec.operations import OPERATIONS

SQUARES = ("sum_squares", "mean_squares")


@dataclass(frozen=True)
class Bare:
    """An objective without what distorts its residuals: matched terms only, and for each term what
    was replaced in it, a clause each."""

    objective: Objective
    replaced: dict[str, tuple[str, ...]]


def bare(objective: Objective) -> Bare:
    """The matched terms of an objective, each with a gradient proportional to its residual."""
    notes: dict[str, None] = {}

    def strip(expr: Expr) -> Expr:
        return transform(expr, lambda node: _bare(objective, node, notes))

    terms: list[Term] = []
    replaced: dict[str, tuple[str, ...]] = {}
    for term in objective.terms:
        if term.target is None:
            continue
        notes.clear()
        prediction, target = strip(term.prediction), strip(term.target)
        loss, squares = term.loss, sub(prediction, target)
        own = weighs_squares(term.loss, sub(term.prediction, term.target))
        if not own:
            notes[LOSS_REPLACED] = None
        if notes:
            loss = Apply("mean_squares", (squares,))
        terms.append(replace(term, prediction=prediction, target=target, loss=loss))
        replaced[term.name] = tuple(notes)
    moving = objective.moving
    if moving is not None and moving.along is not None:
        moving = replace(moving, along=strip(moving.along))
    maps = {name: replace(m, body=strip(m.body)) for name, m in objective.maps.items()}
    plain = replace(objective, terms=tuple(terms), moving=moving, maps=maps, claims=(), stages=())
    return Bare(plain, replaced)


def as_written(objective: Objective, term: Term) -> Objective:
    """The objective with this term only, untouched."""
    own = next(t for t in objective.terms if t.name == term.name)
    return replace(objective, terms=(own,), claims=(), stages=())


def weighs_squares(loss: Expr, difference: Expr) -> bool:
    """Is a loss the square of the difference, times a factor that knows neither the sample's error
    nor a network?"""
    match loss:
        case Apply(op, (inner,)) if op in SQUARES:
            return inner == difference
        case Apply("mul", (a, b)):
            return (weighs_squares(a, difference) and _is_weight(b)) or (
                weighs_squares(b, difference) and _is_weight(a)
            )
        case Apply("div", (a, b)):
            return weighs_squares(a, difference) and _is_weight(b)
        case Apply("select", (_, a, b)):
            return weighs_squares(a, difference) and weighs_squares(b, difference)
    return False


def _is_weight(factor: Expr) -> bool:
    return not any(isinstance(n, Evaluate | PathState | PathVelocity) for n in walk(factor))


def _bare(objective: Objective, node: Expr, notes: dict[str, None]) -> Expr:
    if not isinstance(node, Apply):
        return node
    if node.op == "clip" and objective.kind(node) is Kind.STATE:
        notes["clip taken as the identity"] = None
        return node.args[0]
    if OPERATIONS[node.op].shape in ("reduction", "batch"):
        notes[f"{_text(node)} held at 1"] = None
        return ONE
    return node


def _text(node: Apply) -> str:
    span = node.span
    return span.text if span is not None and "\n" not in span.text else f"{node.op}(…)"
