"""Generated samples: do they have the law of the data when the map is the flow?

A path state made of them, `z(r | data = map(noise, 1, 0), noise = noise')`, is then the data's own
state at r, and what regresses on its velocity learns the data's. That holds only if the map leads
from the noise at its time to the data at theirs.

An inner flow starts from noise that has nothing to do with the state by which it is conditioned.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from flowdsl.calculus.beside import outer_states
from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Reader
from flowdsl.calculus.state import MapAtom, State
from flowdsl.calculus.write import element_expr
from flowdsl.proof.analysis import Analysis
from flowdsl.spec.core import Evaluate, Expr, Given, PathState, PathVelocity, walk
from flowdsl.truth.cases import Case
from flowdsl.truth.known import Known
from flowdsl.truth.maps import single_call
from flowdsl.truth.sample import Row, X, end_state


def misses_data(analysis: Analysis, case: Case) -> Expr | None:
    """What stands in the place of the data in a case's state and is, at the truth, known to be
    something else; None when it is the data, or when that is not known."""
    objective = analysis.objective
    try:
        data = analysis.base(case).data
        if isinstance(data, Given) or len(objective.maps) != 1:
            return None
        (flow_map,) = objective.maps.values()
        if flow_map.path != analysis.base(case).path:
            return None  # an inner flow draws from a law that the step itself must tell
        mapped = {n.network for n in walk(flow_map.body) if isinstance(n, Evaluate)}
        if not any(isinstance(n, Evaluate) and n.network in mapped for n in walk(data)):
            return None
        first, last = (end_state(objective, name) for name in ("noise", "data"))
        context = analysis.context()
        networks = analysis.networks(case, context, "flow")
        row = Row(context, networks, first, context.calculus.zero)
        reader = Reader(context, networks, row)
        value = context.series.at_zero(reader.state(data), context.eta)
        start, end = (reader.scalar(state.time) for state in (first, last))
    except (Undecided, Pole):
        return None
    atom = value.only()
    landed = isinstance(atom, MapAtom) and value.terms[atom] == 1 and not atom.directions
    if landed and isinstance(atom, MapAtom):
        landed = atom.point == context.calculus.symbol(X) and (atom.start, atom.end) == (start, end)
    return None if landed else data


class _Unseen(Row):
    """A row of which nothing is seen: data and noises are symbols."""

    @cached_property
    def known(self) -> Known:
        return Known(self.context.scalars, self.context.calculus.zero)

    def _free(self, leaf: Expr, reader: Reader | None, live: bool) -> State:
        if isinstance(leaf, Given):
            return self.context.calculus.symbol(leaf.name)
        return super()._free(leaf, reader, live)

    def state(self, reader: Reader, node: PathState, live: bool) -> State:
        return self._read(self.made_of(node), reader, live)

    def velocity(self, reader: Reader, node: PathVelocity, live: bool) -> State:
        return self._read(self.made_of(node), reader, live)


def off_the_draw(analysis: Analysis, case: Case, data: Expr) -> State | None:
    """By how much samples made with an inner map differ from what this draws, at the truth.

    The inner map carries fresh noise to a draw L = p data + q noise of a pair that has the outer
    state α data + σ noise: solved for the data, that is what the sampler makes of it. None where
    the samples are no function of one such draw.
    """
    objective, context = analysis.objective, analysis.context()
    inner = [m for m in objective.maps.values() if m.path != analysis.base(case).path]
    if len(inner) != 1:
        return None
    networks = analysis.mapped_networks(case, context, "flow")
    row = _Unseen(context, networks, analysis.base(case), context.calculus.zero)
    reader = Reader(context, networks, row)
    value = context.series.at_zero(reader.state(data), context.eta)
    draws = [a for a in value.terms if isinstance(a, MapAtom) and not a.directions]
    outer = outer_states(objective, single_call(inner[0], inner[0].body))
    if len(draws) != 1 or len(outer) != 1:
        return None
    (draw,) = draws
    end = PathState(inner[0].path, inner[0].end, Given("data"), Given("noise"))
    end = replace(end, time=element_expr(context.scalars, draw.end, _no_leaf))
    (a, s), (p, q) = _weights(row, outer[0]), _weights(row, end)
    turn = a * q - s * p
    if not turn:
        return None
    scalars = context.scalars
    sampled = reader.state(outer[0]).scaled(scalars.divide(q, turn))
    sampled = sampled - context.calculus.single(draw).scaled(scalars.divide(s, turn))
    return value - sampled


def _weights(row: Row, state: PathState) -> tuple[Element, Element]:
    """How much of the row's data and noise are in a state."""
    made, zero = row.made_of(state), row.context.scalars.zero
    return made.get(Given("data"), zero), made.get(Given("noise"), zero)


def _no_leaf(index: int) -> Expr:
    raise Undecided("an inner flow that ends at a drawn time")


def reused_noise(analysis: Analysis, case: Case) -> tuple[Expr, PathState] | None:
    """A noise from which a case's flow starts, and a state it is conditioned on that is made of
    it."""
    try:
        return analysis.bare_row(case).reused()
    except (Undecided, Pole):
        return None


__all__ = ["misses_data", "off_the_draw", "reused_noise"]
