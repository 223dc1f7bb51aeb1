"""Steps that match distributions: generated samples are moved by the difference of two velocities.

An auxiliary network knows the velocity v_q of generated samples, renoised: it regresses on it. A
frozen one knows that of the data, v_p. On a path with x = α data + σ noise, W = α σ' - σ α',

    v = α' / α x - σ W / α score,   hence   v_q - v_p = -σ W / α (score_q - score_p),

and the gradient of KL(q | p) at x in the generated sample is α (score_q - score_p) (Variational
score distillation; DMD, arXiv:2311.18828, equation 6). A term whose gradient at the sample is
c (v_q - v_p) therefore descends it where c σ W is negative, and ascends it where that is positive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flowdsl.calculus.context import Context
from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Call, NoNetwork, Reader
from flowdsl.calculus.numbers import path_weights
from flowdsl.calculus.state import State, VelocityAtom
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.show import ratio
from flowdsl.spec.core import Apply, Evaluate, Expr, Given, PathState, Stop, walk
from flowdsl.truth.cases import Case
from flowdsl.truth.learnt import Regression
from flowdsl.truth.live import live_calls, taught
from flowdsl.truth.networks import Networks, data_field
from flowdsl.truth.regression import regress

GENERATED = "generated"
#: Functions that are nowhere negative.
_SIZES = frozenset({"norm", "mean_abs", "abs", "sum_squares", "mean_squares", "exp", "sigmoid"})
_ALONG = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)  #: values of drawn times at which a sign is looked at


class Amiss(Exception):
    """A step that does not compare the velocities of one law with those of another: why."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint


@dataclass(frozen=True)
class Matching:
    """A step along c (v_q - v_p): the networks that tell the velocities, whether the KL divergence
    falls by it, and the numbers of the sample that it is scaled by."""

    auxiliary: str
    teachers: tuple[str, ...]
    guided: bool
    descends: bool
    sizes: tuple[str, ...]
    mapped: bool  # does a map of the samples' own path generate them?
    inner: str  # a map of another path that takes part, if there is one
    samples: Expr  # what is generated


@dataclass(frozen=True)
class _Gradient:
    """A term's gradient: `direction` (stopped) times the change of `moved`."""

    direction: State
    change: State


@dataclass
class _Apart:
    """Networks while generated samples have a law of their own: a generator computes anything, the
    auxiliary knows the generated velocity, frozen networks know the data's."""

    context: Context
    networks: Networks
    auxiliary: str
    learned: Regression

    def value(self, call: Call) -> State:
        objective, calculus = self.context.objective, self.context.calculus
        owner, head = objective.origin(call.network, call.head)
        if objective.networks[owner].frozen:
            return self.networks.value(call)
        if owner == self.auxiliary:
            return self.learned.value(
                self.context,
                lambda given, point, time: calculus.velocity((GENERATED, given), point, time),
                call,
            )
        name = f"{owner}.{head}"
        value = calculus.function((name, call.conditions), call.point, call.times)
        if not call.live:
            return value
        test = calculus.function((f"δ{name}", call.conditions), call.point, call.times)
        return value + test.scaled(self.context.scalars.generator(self.context.eta))


def matching(analysis: Analysis, case: Case) -> Matching | None:
    """The step of a case that matches distributions, None where it is none.

    Raises `Amiss` where it is one and goes wrong whatever its sign, `Undecided` where what it does
    is not known. Found once for all checks.
    """
    key = "matching", case.prediction, case.target
    if key not in analysis.found:
        try:
            analysis.found[key] = _matching(analysis, case)
        except (Amiss, Undecided) as reason:
            analysis.found[key] = reason
    known = analysis.found[key]
    if isinstance(known, Exception):
        raise known
    assert known is None or isinstance(known, Matching)
    return known


def _matching(analysis: Analysis, case: Case) -> Matching | None:
    found = _asked(analysis, case)
    if found is None:
        return None
    call, state = found
    context = analysis.context()
    networks = analysis.mapped_networks(case, context, "flow")
    networks.marginal = lambda c, p, t: context.calculus.velocity(data_field(c), p, t)
    networks.own = ()
    learned = _lesson(analysis, context, networks, call, state)
    row = analysis.bare_row(case)
    reader = Reader(context, _Apart(context, networks, call.network, learned), row)
    gradient = _gradient(context, reader, case)
    made = reader.state(bare(state.data))
    sample_moves = context.series.coefficient(made, context.eta, 1)
    turn = ratio(gradient.change, sample_moves)
    if turn is None:
        raise Undecided("how the term's prediction moves the generated samples is not known")
    factor, guided = _difference(analysis, gradient.direction, reader, state)
    factor = context.scalars.product(factor, turn)
    sign = _sign(analysis, context, factor, state)
    maps = analysis.objective.maps.values()
    mapped = any(m.path == state.path for m in maps)
    inner = next((m.name for m in maps if m.path != state.path), "")
    return Matching(call.network, _teachers(analysis, case), guided, sign < 0,
                    tuple(_sizes(context, factor)), mapped, inner, bare(state.data))  # fmt: skip


def bare(expr: Expr) -> Expr:
    """What is inside of stops."""
    while isinstance(expr, Stop):
        expr = expr.body
    return expr


def steered(case: Case) -> Expr | None:
    """What tells a case's direction: its target, or the stopped side of a product that is
    minimised."""
    if case.target is not None:
        return case.target
    product = _product(case.prediction)
    return None if product is None else product[1]


def _product(expr: Expr) -> tuple[Expr, Expr] | None:
    """The live and the stopped side of `dot(a, stop(b))`."""
    match expr:
        case Apply("dot", (a, b)) if isinstance(a, Stop) != isinstance(b, Stop):
            return (b, a) if isinstance(a, Stop) else (a, b)
    return None


def _asked(analysis: Analysis, case: Case) -> tuple[Evaluate, PathState] | None:
    """A call, under stop, of a learning network at a state made of what the case's own networks
    generate."""
    objective = analysis.objective
    target = steered(case)
    if target is None:
        return None
    live = {n.network for n in live_calls(objective, case.prediction)}
    moving = set(live_calls(objective, target))
    for node in walk(target):
        if not isinstance(node, Evaluate) or node in moving or node.network in live:
            continue
        network = objective.networks[node.network]
        if network.frozen or network.average_of is not None:
            continue
        for arg in map(bare, node.args):
            if isinstance(arg, PathState) and not isinstance(arg.data, Given):
                inside = {n.network for n in walk(arg.data) if isinstance(n, Evaluate)}
                if inside & live:
                    return node, arg
    return None


def _lesson(
    analysis: Analysis, context: Context, networks: Networks, call: Evaluate, state: PathState
) -> Regression:
    """What the auxiliary learns of the velocity of these samples."""
    others = False
    for case in analysis.all_cases():
        learner = taught(analysis.objective, case.prediction, case.target)
        if learner is None or learner.network != call.network:
            continue
        base = analysis.base(case)
        if bare(base.data) != bare(state.data) or base.path != state.path:
            others = True  # of other rows, or of other samples altogether
            continue
        return regress(analysis, case, context, networks, learner)
    if others:
        raise Amiss(
            f"{call.network} is trained on other samples than those that are moved by it",
            f"match {call.network} to the velocity of a state made of the generated samples",
        )
    raise Undecided(f"no matched term teaches {call.network} the velocity of generated samples")


def _gradient(context: Context, reader: Reader, case: Case) -> _Gradient:
    """What a case's gradient is made of, for networks that compute anything."""
    series = context.series
    if case.target is not None:
        difference = reader.state(case.prediction) - reader.state(case.target)
        return _Gradient(
            series.at_zero(difference, context.eta),
            series.coefficient(difference, context.eta, 1),
        )
    product = _product(case.prediction)
    assert product is not None
    live, stopped = product
    return _Gradient(
        reader.state(stopped, False), series.coefficient(reader.state(live), context.eta, 1)
    )


def _difference(
    analysis: Analysis, direction: State, reader: Reader, state: PathState
) -> tuple[Element, bool]:
    """c of a direction c (v_q - v_p), and whether v_p is guided."""
    scalars = analysis.scalars
    own, rest = scalars.zero, scalars.zero
    conditions = set()
    place = reader.state(PathState(state.path, state.time, bare(state.data), state.noise), False)
    moment = reader.scalar(state.time)
    for atom, c in direction.terms.items():
        if not isinstance(atom, VelocityAtom) or atom.order or atom.directions:
            raise Undecided("the step is more than a difference of two velocities")
        if atom.point != place or atom.time != moment:
            raise Amiss(
                "a velocity is asked for elsewhere than at the renoised sample and its time",
                "ask both networks at the same state and its time",
            )
        if atom.field[0] == GENERATED:
            own = own + c
        else:
            rest = rest + c
            conditions.add(atom.field)
    if not own or scalars.normal(own + rest):
        raise Amiss(
            "the step is no multiple of the difference of the two velocities: it does not vanish "
            "where both laws are the same",
            "subtract the velocity of the one network from that of the other",
        )
    return own, len(conditions) > 1


def _sign(analysis: Analysis, context: Context, factor: Element, state: PathState) -> int:
    """The sign of c σ W along the path. Raises `Undecided` where it is not the same throughout, or
    not known."""
    objective = analysis.objective
    path = objective.paths[state.path]
    scalars = context.scalars
    unknown = [
        scalars.name_of(i)
        for i in scalars.generators_in(factor)
        if i in scalars.opaques and not _is_size(scalars.opaques[i])
    ]
    if unknown:
        raise Undecided(f"the sign of {', '.join(unknown)} is not known")
    moment = Reader(context, NoNetwork("scalar")).scalar(state.time)
    signs = set()
    for part in _ALONG:
        values = dict.fromkeys(range(len(scalars.names)), part)
        values |= dict.fromkeys(scalars.opaques, part)
        values |= {scalars.index(n): float(v) for n, v in objective.constants.items()
                   if scalars.has(n)}  # fmt: skip
        try:
            time = scalars.numeric(moment, values)
            a, s = path_weights(objective, path, time)
            da, ds = path_weights(objective, path, time, velocity=True)
            value = scalars.numeric(factor, values) * s * (a * ds - s * da)
        except (ArithmeticError, ValueError, Pole):
            continue
        signs.add((value > 0) - (value < 0))
    if len(signs) != 1 or 0 in signs:
        raise Undecided("the step points one way at some times and another way at others")
    return signs.pop()


def _is_size(key: object) -> bool:
    """Is an opaque scalar one that is nowhere negative?"""
    match key:
        case Apply(op, _) if op in _SIZES:
            return True
        case Apply("batch_mean" | "sqrt", (inner,)) | Stop(inner):
            return _is_size(inner)
        case Apply("mul" | "div" | "add", args):
            return all(_is_size(a) for a in args)
    return False


def _sizes(context: Context, factor: Element) -> Iterable[str]:
    """The numbers of the sample in a factor; means over the batch are no sample's own."""
    scalars = context.scalars
    for i in sorted(scalars.generators_in(factor)):
        key = scalars.opaques.get(i)
        if isinstance(key, Apply) and key.op != "batch_mean":
            yield scalars.name_of(i)


def _teachers(analysis: Analysis, case: Case) -> tuple[str, ...]:
    target = steered(case)
    assert target is not None
    names = [n.network for n in walk(target) if isinstance(n, Evaluate)
             if analysis.objective.networks[n.network].frozen]  # fmt: skip
    return tuple(dict.fromkeys(names))


__all__ = ["Amiss", "Matching", "bare", "matching", "steered"]
