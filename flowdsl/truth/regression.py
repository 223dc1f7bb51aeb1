"""One-time regression: what a network without a map learns is the mean of its target, given its
state."""

from __future__ import annotations

from dataclasses import dataclass

from flowdsl.calculus.context import Context
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.expand import parts
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Call, Reader
from flowdsl.calculus.preimage import MONOTONE, outermost
from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.state import FunctionAtom, State, VelocityAtom
from flowdsl.spec.core import Evaluate, Expr, Kind
from flowdsl.truth.cases import Case
from flowdsl.truth.learnt import Regression, hidden_time
from flowdsl.truth.networks import Networks
from flowdsl.truth.sample import NOISES, X
from flowdsl.truth.setting import Setting

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
    setting: Setting, case: Case, context: Context, networks: Networks, learner: Evaluate
) -> Regression:
    """Solve E[prediction - target | z] = 0 for the head that learns, all conditions taken as equal.

    The answer p z + q v says what the network predicts: v itself, the noise, the data, a mixture.
    The network may see a multiple of its state, and functions of its time.
    """
    calculus, scalars = context.calculus, context.scalars
    x = calculus.symbol(X)
    time = setting.row(case, context, networks, x).time
    index = next((i for i in scalars.generators_in(time) if scalars.generator(i) == time), None)
    row = setting.row(case, context, networks, calculus.velocity(_PLAIN, x, time))
    moment = setting.base(case).time
    place, shown, seen = _seen(Reader(context, networks, row), learner, moment, index)
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
        match atom:
            case FunctionAtom(point=point, times=times, directions=()) if (
                point == x.scaled(seen) and times in ((), (shown,)) and not any(atom.orders)
            ):
                own = own + c
            case VelocityAtom(point=point, order=0, directions=()) if point == x:
                q = c
            case _ if atom == x.only():
                p = c
            case _:
                raise Undecided("the target is no combination of state, velocity and network")
    if not own:
        raise Undecided("the term does not constrain the network")
    p, q = scalars.divide(-p, own), scalars.divide(-q, own)
    return Regression(time, index, p, q, place, seen, shown)


def _seen(
    reader: Reader, learner: Evaluate, moment: Expr, index: int | None
) -> tuple[int | None, Element, Element]:
    """How the network sees its row: which of its times tells that of the state (None where none
    does), what it is shown there, and by what the state is scaled."""
    context, here = reader.context, reader.scalar(moment)
    scalars = context.scalars
    kinds = context.objective.networks[learner.network].arguments
    beside = context.beside(learner.network)
    arguments = [(kind, a) for k, ((_, kind), a) in enumerate(zip(kinds, learner.args, strict=True))
                 if k not in beside]  # fmt: skip
    point = reader.state(next(a for k, a in arguments if k is Kind.STATE), False)
    atom = context.calculus.symbol(X).only()
    scale = point.terms.get(atom) if atom is not None and len(point.terms) == 1 else None
    if scale is None:
        raise Undecided("the network reads something else than the state", learner.span)
    times = [a for k, a in arguments if k is not Kind.STATE]
    if moment in times:
        return times.index(moment), here, scale
    for place, value in enumerate(reader.scalar(a) for a in times):
        if index is not None and _is_alone(context, value, index):
            if not _tells(scalars, value, index):
                context.notes.add(hidden_time(learner.network))
            return place, value, scale
    return None, here, scale


def _is_alone(context: Context, value: Element, index: int) -> bool:
    """Is this a function of one time, and of no other draw?"""
    return context.scalars.generators_in(value) & context.drawn == {index}


def _tells(scalars: Scalars, value: Element, index: int) -> bool:
    """Can a time be read off this function of it? So it is where the function is built of affine
    and of monotone ones; elsewhere that is not known."""
    outer = outermost(scalars, value, index)
    if outer is None or outer == index:
        return outer is not None
    definition = scalars.defined[outer]
    return definition.function in MONOTONE and _tells(scalars, definition.argument, index)
