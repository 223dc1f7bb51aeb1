"""What may be small in a term: a curriculum near its end, or a step between two of its times.

A step is a quantity in a time at which a network or the path is evaluated, such that this time
tends to another one of the term as the quantity tends to 0: `h` in `s = t - h`, alpha in
`s = t - alpha * (t - r)`, the distance of two noise levels of one grid. Two times that are drawn
each by itself are not near each other. The distance of the times between which a live network jumps
is no step: there every map is right in the limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import combinations
from typing import cast

from flowdsl.calculus.context import Context
from flowdsl.calculus.curriculum import STEPS
from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.inequalities import Chain
from flowdsl.calculus.interpret import NoNetwork, Reader
from flowdsl.calculus.numbers import evaluate
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.points import spread
from flowdsl.spec.core import (
    ZERO,
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Kind,
    Level,
    PathState,
    PathVelocity,
    children,
    transform,
    walk,
)
from flowdsl.spec.kinds import level_of
from flowdsl.truth.cases import Case
from flowdsl.truth.live import live_calls
from flowdsl.truth.variables import change_of_variables, opaque_times

Bindings = dict[Expr, Element]


def small_quantities(analysis: Analysis, case: Case) -> Iterator[tuple[str, Bindings]]:
    """What may be small in a case, and the binding that makes it the generator of expansions."""
    scalars = analysis.scalars
    step = scalars.generator(analysis.small)
    named = {expr: name for name, expr in opaque_times(analysis.objective)}
    used = _outside(case, named)
    for name, expr in analysis.curricula.all.items():
        if expr in used:
            end = Fraction(analysis.curricula.profile(expr).end).limit_denominator(1000)
            text = name if not end else f"({name} - {end})"
            yield text, {expr: scalars.number(end) + step}
    for name, bindings in _steps(analysis, case, used, named):
        if _is_step(analysis, case, used, bindings):
            yield name, bindings


def _outside(case: Case, named: Mapping[Expr, str]) -> set[Expr]:
    """What the sides of a case are made of, but for what is inside a named time."""
    return _inside([e for e in (case.prediction, case.target) if e is not None], named)


def _inside(roots: Iterable[Expr], whole: Collection[Expr]) -> set[Expr]:
    """The nodes of some trees, but for those inside the ones that are taken as a whole."""
    found: set[Expr] = set()
    ahead = list(roots)
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            ahead += () if node in whole else children(node)
    return found


def _steps(
    analysis: Analysis, case: Case, used: set[Expr], named: Mapping[Expr, str]
) -> Iterator[tuple[str, Bindings]]:
    """Everything that might be a step."""
    scalars = analysis.scalars
    step = scalars.generator(analysis.small)
    for name, expr in analysis.curricula.all.items():
        if expr in used and analysis.curricula.profile(expr).end:
            yield name, {expr: step}
    for name in analysis.objective.constants:
        if Constant(name) in used and analysis.symbolic:
            yield name, {Constant(name): step}
    for expr, draw in ((e, d) for _, e, d in change_of_variables(analysis.objective)):
        if expr in used:
            yield draw.name, {draw: step, expr: _with(analysis, expr, draw, step)}
    draws = [n for n in used if isinstance(n, Draw) and n.kind in (Kind.TIME, Kind.SCALAR)]
    order = list(analysis.objective.draws)
    draws.sort(key=lambda n: order.index(n.name))
    for draw in draws:
        yield draw.name, {draw: step}
    times = [(draw.name, cast(Expr, draw)) for draw in draws]
    times += [(name, expr) for expr, name in named.items() if expr in used]
    for (first, one), (second, other) in combinations(times, 2):
        if not _seen_together(used, [one, other]) and can_meet(analysis, one, other):
            yield f"({first} - {second})", {other: scalars.symbol(first) - step}


def _with(analysis: Analysis, expr: Expr, draw: Draw, step: Element) -> Element:
    """A sum of two draws, one of which is small."""
    context = analysis.context(bindings={draw: step, expr: step})
    plain = Context(
        context.objective, context.scalars, context.calculus, context.series, context.curricula,
        context.eta, context.symbolic, {draw: step},
    )  # fmt: skip
    return Reader(plain, NoNetwork("scalar")).scalar(expr)


def _is_step(analysis: Analysis, case: Case, used: set[Expr], bindings: Bindings) -> bool:
    """Does a time of the term tend to another, and no jump of a live network to nothing?"""
    moments = _moments(analysis, used)
    try:
        now = [_at_rest(analysis, {}, m) for m in moments]
        then = [_at_rest(analysis, bindings, m) for m in moments]
    except (Undecided, Pole):
        return False
    met = any(
        now[i] != now[j] and then[i] == then[j]
        for i in range(len(moments)) for j in range(i)
    )  # fmt: skip
    return met and not _collapses(analysis, case, bindings)


def _moments(analysis: Analysis, used: set[Expr]) -> list[Expr]:
    """The times at which networks and paths are evaluated."""
    found: dict[Expr, None] = {}
    for node in used:
        match node:
            case PathState(_, time, _, _) | PathVelocity(_, time, _, _):
                found[time] = None
            case Evaluate(network, _, args, _, _):
                kinds = analysis.objective.networks[network].arguments
                for (_, kind), arg in zip(kinds, args, strict=True):
                    if kind is Kind.TIME:
                        found[arg] = None
    return list(found)


def _at_rest(analysis: Analysis, bindings: Bindings, expr: Expr) -> Element:
    context = analysis.context(bindings=bindings)
    value = Reader(context, NoNetwork("scalar")).scalar(expr)
    return analysis.scalars.at_zero(value, analysis.small)


def _collapses(analysis: Analysis, case: Case, bindings: Bindings) -> bool:
    """Does the jump of a live, predicted network tend to nothing?"""
    study = analysis.study(case, bindings=bindings)
    reader = Reader(study.context, study.networks, study.row)
    scalars = analysis.scalars
    for node in live_calls(analysis.objective, case.prediction):
        if not study.networks.jumps(node):
            continue
        start, end = times_of(study, reader, node)
        if start != end and not scalars.at_zero(start - end, analysis.small):
            return True
    return False


def times_of(study: Study, reader: Reader, node: Evaluate) -> tuple[Element, Element]:
    """The map's start and end at a network's evaluation."""
    owner, _ = study.context.objective.origin(node.network, node.head)
    kinds = study.context.objective.networks[node.network].arguments
    beside = study.context.beside(node.network)
    own = [(kind, a) for k, ((_, kind), a) in enumerate(zip(kinds, node.args, strict=True))
           if k not in beside]  # fmt: skip
    moments = [reader.scalar(a) for kind, a in own if kind is not Kind.STATE]
    state = next(a for kind, a in own if kind is Kind.STATE)
    moment = reader.moment(state, reader.state(state, False))
    return study.networks.maps[owner].times_of(moments, reader.conditions(node), moment)


def can_meet(analysis: Analysis, one: Expr, other: Expr) -> bool:
    """Are two times equal, whatever a row draws, once some number that is the same on every row is
    zero, or a draw of which one of them alone is made: the step of a grid, the share of a distance?

    Else their distance is whatever the laws of the row make it, and is not small.
    """
    one, other = _differing(one, other)
    drawn = [{n for n in walk(time) if isinstance(n, Draw)} for time in (one, other)]
    if not drawn[0] & drawn[1]:
        return False
    common = [n.name for n in drawn[0] & drawn[1]]
    numbers = {part: None for time in (one, other) for part in _same_on_every_row(time)}
    alone = drawn[0] ^ drawn[1]
    return any(_meet(analysis, one, other, gone, common) for gone in [*numbers, *alone])


def _differing(one: Expr, other: Expr) -> tuple[Expr, Expr]:
    """What differs in two values of the same function."""
    while isinstance(one, Apply) and isinstance(other, Apply) and one.op == other.op:
        pairs = [(a, b) for a, b in zip(one.args, other.args, strict=True) if a != b]
        if len(pairs) != 1:
            break
        ((one, other),) = pairs
    return one, other


def _same_on_every_row(expr: Expr) -> set[Expr]:
    """The largest parts of a time that are not drawn, and what these are made of."""
    if level_of(expr) is not Level.ROW:
        return set(walk(expr))
    return {part for child in children(expr) for part in _same_on_every_row(child)}


def _meet(analysis: Analysis, one: Expr, other: Expr, gone: Expr, names: list[str]) -> bool:
    """Are the times equal where this part of them is zero, and still times that are drawn?"""
    constants = {name: float(value) for name, value in analysis.objective.constants.items()}
    moment = {"progress": 0.5, "step": STEPS / 2, "steps": STEPS}
    sides = [transform(t, lambda n: ZERO if n == gone else n) for t in (one, other)]
    chain = Chain(analysis.domain.bounds({}), names)
    taken = set()
    for shares in spread(len(names), 4):
        values = {**dict.fromkeys(analysis.objective.draws, 0.37), **chain.point(shares)}
        try:
            a, b = (evaluate(side, {**constants, **moment, **values}) for side in sides)
        except Undecided:
            return False
        if abs(a - b) > 1e-9 * (abs(a) + abs(b)):
            return False
        taken.add(a)
    return len(taken) > 1


def _seen_together(used: set[Expr], times: list[Expr]) -> bool:
    """Does a network see both times? Then their distance is the map's own, and no step to be made
    small."""
    return any(
        isinstance(node, Evaluate) and set(times) <= _inside(node.args[1:], times)
        for node in used
    )  # fmt: skip
