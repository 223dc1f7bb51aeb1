"""Generated samples: do they have the law of the data when the map is the flow?

A path state made of them, `z(r | data = map(noise, 1, 0), noise = noise')`, is then the data's own
state at r, and what regresses on its velocity learns the data's. That holds only if the map leads
from the noise at its time to the data at theirs.
"""

from __future__ import annotations

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.interpret import Reader
from flowdsl.calculus.state import MapAtom
from flowdsl.proof.analysis import Analysis
from flowdsl.spec.core import Evaluate, Expr, Given, walk
from flowdsl.truth.cases import Case
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


__all__ = ["misses_data"]
