"""A term where its map's times are equal: what it says there about the field.

Away from the diagonal a term speaks of networks at states that other networks made. On it every map
moves nothing, and what is left tells which velocity is learnt.
"""

from __future__ import annotations

from dataclasses import replace

from flowdsl.certify.linear import folded
from flowdsl.certify.places import Place
from flowdsl.certify.shape import MapShape
from flowdsl.spec.core import (
    Draw,
    Evaluate,
    Expr,
    Formal,
    Kind,
    PathState,
    transform,
    walk,
)


def on_diagonal(place: Place, shape: MapShape) -> Place | None:
    """The place with the end of its map's jump moved to the start; None where no draw is such an
    end."""
    start, end = place.base.time, _end(place, shape)
    if end is None or place.term.target is None:
        return None
    if any(node == end for node in walk(start)):  # `t = s + gap` ends at s
        start, end = end, start

    def moved(expr: Expr) -> Expr:
        return folded(transform(expr, lambda node: start if node == end else node))

    learner, base = moved(place.learner), moved(place.base)
    assert isinstance(learner, Evaluate)
    assert isinstance(base, PathState)
    term = replace(
        place.term, prediction=moved(place.term.prediction), target=moved(place.term.target)
    )
    return Place(term, place.facts, learner, base)


def _end(place: Place, shape: MapShape) -> Expr | None:
    """The time at which the learner's jump ends: shown to it as it is, or in a function."""
    formal = shape.flow_map.end
    if not isinstance(formal, Formal):
        return None
    seen = place.reduce(place.learner)
    assert isinstance(seen, Evaluate)
    if formal in shape.call.args:
        shown = seen.args[shape.call.args.index(formal)]
        return None if shown == place.base.time else shown
    inside = {n for a in seen.args[1:] for n in walk(a) if isinstance(n, Draw)}
    other = [n for n in inside if n.kind is Kind.TIME and n not in set(walk(place.base.time))]
    return other[0] if len(other) == 1 else None
