"""Do the rows that train a map, and those that tie it to the data, reach all of the path's times?

An identity says nothing at times that no row draws. A sampler jumps anywhere between the path's
ends, and an ordinary differential equation in the end time only holds the map to the flow when it
is trained from the diagonal on. Times are probed: the laws of a row are linear inequalities, and
whether some row has given times is decided exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.inequalities import Affine, Bound, Chain, feasible
from flowdsl.calculus.region import steps_in
from flowdsl.checks.asked import jumps
from flowdsl.checks.gradient import is_empty
from flowdsl.checks.linear import row_facts
from flowdsl.checks.times import data_is_later, domain
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.anchor import Anchors, moved_calls
from flowdsl.proof.moments import current
from flowdsl.proof.signs import vanishes
from flowdsl.proof.weight import marked
from flowdsl.spec.core import Draw, Evaluate, Expr, Formal, Null, Number, walk
from flowdsl.spec.objective import FlowMap, LawCall, Objective, Path
from flowdsl.truth.cases import Case
from flowdsl.truth.live import live_calls

#: Where training is looked for, as shares of the path's length: laws may leave out its very ends.
PROBES = (Fraction(3, 20), Fraction(2, 5), Fraction(13, 20), Fraction(9, 10))


#: Shares of what a row draws beside given times, where its weight is looked at.
SHARES = (Fraction(1, 4), Fraction(1, 2), Fraction(4, 5))


@dataclass(frozen=True)
class Reached:
    """Rows of one kind, and the times at which they train: none that is fixed, one or two.

    `idle` says whether the rows' weight is zero at values of what they draw; `given` whether the
    network sees there what it is given, and not another condition in its place.
    """

    bounds: tuple[Bound, ...]
    times: tuple[Affine, ...]
    idle: Callable[[dict[str, float]], bool]
    given: bool

    def at(self, moments: Iterable[Fraction]) -> bool:
        """Is there a row with these times that learns?"""
        if not self.times:
            return False
        system = list(self.bounds)
        for time, moment in zip(self.times, moments, strict=True):
            ahead = time - Affine.number(moment)
            system += [Bound(ahead, False), Bound(-ahead, False)]
        if not feasible(system):
            return False
        chain = Chain(system, sorted({n for b in system for n, _ in b.left.terms}))
        points = (chain.point([float(share)] * len(chain.names)) for share in SHARES)
        return not all(self.idle(point) for point in points)


def untrained(objective: Objective, analysis: Analysis, flow_map: FlowMap) -> str:
    """Jumps of a map that no row trains, in words; empty when there are none, or none is known."""
    if _learns_otherwise(objective, flow_map):
        return ""
    try:
        found = _missed(analysis, flow_map, False)
        if found:
            return f"no row trains the map {found}"
        found = _missed(analysis, flow_map, True) if analysis.curricula.all else ""
        return f"at the end of training no row trains the map {found}" if found else ""
    except Undecided:
        return ""


def untied(objective: Objective, analysis: Analysis, found: Anchors) -> str:
    """Times at which nothing ties the velocity to the data, in words; empty when there are none."""
    rows: list[Reached] = []
    path: Path | None = None
    for equation in (e for e in found.equations if e.mean):
        base = analysis.base(equation.case)
        reached = _reached(analysis, equation.case, (base.time,), {})
        if reached is None or not reached.times[0].terms:
            return ""
        rows.append(reached)
        path = objective.paths[base.path]
    if path is None:
        return ""
    rows = _as_given(rows)
    for (moment,) in _probes(objective, path, 1):
        if not any(row.at((moment,)) for row in rows):
            return f"nothing ties the velocity to the data at times about {float(moment):.2g}"
    return ""


def _learns_otherwise(objective: Objective, flow_map: FlowMap) -> bool:
    """Is the map's network also trained by a term that states no identity?"""
    own = {n.network for n in walk(flow_map.body) if isinstance(n, Evaluate)}
    free = [term for term in objective.terms if term.target is None]
    return any(call.network in own for term in free for call in live_calls(objective, term.loss))


def _missed(analysis: Analysis, flow_map: FlowMap, at_end: bool) -> str:
    """Times of the map that are not trained: at all, or still when every curriculum has ended."""
    objective = analysis.objective
    path = objective.paths[flow_map.path]
    ends = [isinstance(end, Formal) for end in (flow_map.start, flow_map.end)]
    found = list(_trained(analysis, flow_map, at_end, ends))
    rows = _as_given([row for row in found if row is not None])
    if (not rows and not at_end) or None in found:
        return ""
    for moments in _probes(objective, path, sum(ends)):
        if not any(row.at(moments) for row in rows):
            told = iter(f"{float(m):.2g}" for m in moments)
            named = zip(("from", "to"), ends, strict=True)
            return " ".join(f"{word} times about {next(told)}" for word, free in named if free)
    return ""


def _trained(
    analysis: Analysis, flow_map: FlowMap, at_end: bool, ends: list[bool]
) -> Iterator[Reached | None]:
    """The rows that train a map; None for one whose times are not known."""
    steps: dict[Expr, Fraction] = {}
    for case in analysis.all_cases():
        if is_empty(analysis, case) or (at_end and not current(analysis, case, 1.0)):
            continue
        live = set(moved_calls(analysis, case, live_calls(analysis.objective, case.loss)))
        for node, *times in jumps(analysis, case, flow_map):
            if node not in live:
                continue
            moving = tuple(t for t, free in zip(times, ends, strict=True) if free)
            if at_end:
                for step in (s for t in moving for s in steps_in(t)):
                    value = analysis.curricula.value(step, 1.0)
                    steps[step] = Fraction(value).limit_denominator(10**6)
            yield _reached(analysis, case, moving, steps if at_end else None)


def _reached(
    analysis: Analysis, case: Case, times: tuple[Expr, ...], steps: Mapping[Expr, Fraction] | None
) -> Reached | None:
    """The times on the rows of a case. None where they are no affine functions of draws with known
    laws, or draws from a list of values."""
    if any(_discrete(analysis.objective, t) for t in times):
        return None
    forms = [analysis.domain.affine(t, steps) for t in times]
    if any(f is None for f in forms):
        drawn = {n for t in times for n in walk(t) if isinstance(n, Draw)}
        # functions of one draw are on a curve, which meets no other pair of times
        return None if len(drawn) >= len(times) else Reached((), (), lambda point: True, True)
    return Reached(
        tuple(analysis.domain.bounds(row_facts(case))),
        tuple(f for f in forms if f is not None),
        _idle(analysis, case),
        not any(_replaced(c) for n in live_calls(analysis.objective, case.loss)
                for _, c in n.conditions),
    )  # fmt: skip


def _idle(analysis: Analysis, case: Case) -> Callable[[dict[str, float]], bool]:
    if not any(isinstance(n, Draw) for n in walk(marked(case))):
        return lambda point: False  # the same weight everywhere: `gradient` looks at it
    return lambda point: vanishes(analysis, case, point)


def _replaced(condition: Expr) -> bool:
    """Does a network see another condition than the one that is given?"""
    return any(isinstance(n, Null | Number) for n in walk(condition))


def _as_given(rows: list[Reached]) -> list[Reached]:
    """The rows whose conditions are those that a sampler will give; all, where there is none."""
    return [row for row in rows if row.given] or rows


def _discrete(objective: Objective, expr: Expr) -> bool:
    draws = [objective.draws[n.name] for n in walk(expr) if isinstance(n, Draw)]
    return any(_lists(line.law) for d in draws for line in d.lines)


def _lists(law: LawCall | Expr) -> bool:
    return isinstance(law, LawCall) and (law.law == "choice" or any(_lists(a) for a in law.args))


def _probes(objective: Objective, path: Path, count: int) -> list[tuple[Fraction, ...]]:
    """Times to look at, in the order in which samples are made; none on a path without an end."""
    low, high = domain(objective, path)
    later = data_is_later(objective, path)
    if high is None or later is None:
        return []
    moments = [low + share * (high - low) for share in PROBES]
    return list(combinations(moments if later else moments[::-1], count))
