"""One-time regression: what a network without a map learns is the mean of its target, given its
state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowdsl.proof.errors import Undecided
from flowdsl.proof.expand import parts
from flowdsl.proof.interpret import Call, Context, Reader
from flowdsl.proof.sample import NOISES, X
from flowdsl.proof.state import FunctionAtom, State, VelocityAtom
from flowdsl.proof.truth import Networks, Regression
from flowdsl.spec.core import Evaluate, Kind

if TYPE_CHECKING:
    from flowdsl.proof.analysis import Analysis
    from flowdsl.proof.cases import Case

_PLAIN: tuple[str, tuple[tuple[str, object], ...]] = ("flow", ())


@dataclass
class _Unknown:
    """Every network that learns is one unknown, whatever its conditions; nothing else is known."""

    context: Context
    head: str
    place: int | None

    def value(self, call: Call) -> State:
        _, head = self.context.objective.origin(call.network, call.head)
        if head != self.head:
            raise Undecided(f"it is not known what {head} computes at the truth", call.node.span)
        # what it is shown beside its state's time has no part in a conditional mean
        moment = () if self.place is None else (call.times[self.place],)
        return self.context.calculus.function(("unknown", ()), call.point, moment)


def regress(
    analysis: Analysis, case: Case, context: Context, networks: Networks, learner: Evaluate
) -> Regression:
    """Solve E[prediction - target | z] = 0 for the head that learns, all conditions taken as equal.

    The answer p z + q v says what the network predicts: v itself, the noise, the data, a mixture.
    """
    calculus, scalars = context.calculus, context.scalars
    x = calculus.symbol(X)
    time = analysis.row(case, context, networks, x).time
    row = analysis.row(case, context, networks, calculus.velocity(_PLAIN, x, time))
    place = _place(analysis, case, learner)
    reader = Reader(context, _Unknown(context, learner.head, place), row)
    assert case.target is not None
    value = reader.state(case.prediction, False) - reader.state(case.target, False)
    sorted_parts = parts(value, NOISES)
    if not sorted_parts.affine:
        raise Undecided(
            "the network is evaluated at a state that depends on the conditional velocity"
        )
    own, p, q = scalars.zero, scalars.zero, scalars.zero
    for atom, c in sorted_parts.mean.terms.items():
        here = isinstance(atom, FunctionAtom | VelocityAtom) and atom.point == x
        if isinstance(atom, FunctionAtom) and here and not atom.directions and not any(atom.orders):
            own = own + c
        elif isinstance(atom, VelocityAtom) and here and not atom.directions and not atom.order:
            q = c
        elif atom == x.only():
            p = c
        else:
            raise Undecided("the target is no combination of state, velocity and network")
    if not own:
        raise Undecided("the term does not constrain the network")
    index = next((i for i in scalars.generators_in(time) if scalars.generator(i) == time), None)
    return Regression(time, index, scalars.divide(-p, own), scalars.divide(-q, own), place)


def _place(analysis: Analysis, case: Case, learner: Evaluate) -> int | None:
    """Which of the times that the network reads is that of the row's state; None where none is."""
    kinds = analysis.objective.networks[learner.network].arguments
    times = [a for (_, k), a in zip(kinds, learner.args, strict=True) if k is not Kind.STATE]
    moment = analysis.base(case).time
    return times.index(moment) if moment in times else None
