"""Do all times stay where the path is defined, in one order, and what happens on the diagonal?"""

from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction
from itertools import product

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.inequalities import Affine, Bound, implies
from flowdsl.calculus.numbers import far_end, path_weights
from flowdsl.checks.asked import jumps, misplaced
from flowdsl.checks.check import Check, Example, per_case
from flowdsl.checks.report import Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.show import Printer
from flowdsl.spec.core import (
    Apply,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Kind,
    Level,
    PathState,
    PathVelocity,
    children,
    transform,
    walk,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import FlowMap, Objective, Path, Term
from flowdsl.truth.cases import Case

NAME = "times"
_CODES = frozenset({"log", "exp", "sqrt", "pow", "sin", "cos", "tan", "atan", "tanh", "sigmoid"})


def _run(objective: Objective, analysis: Analysis) -> list[Verdict]:
    crossed = analysis.domain.crossed({})
    if crossed:
        return [_crossed(crossed, objective.terms[0])]
    verdicts = per_case(NAME, analysis, objective.terms, lambda case: _decide(analysis, case))
    return verdicts + _directions(objective, analysis)


def _crossed(name: str, term: Term) -> Verdict:
    message = f"the law of {name} can have its upper end below its lower one"
    hint = f"draw what stands in its ends so that {name} has room"
    diagnostic = Diagnostic(NAME, message, term.span, hint=hint)
    return Verdict(NAME, "refuted", message, diagnostic=diagnostic)


def _decide(analysis: Analysis, case: Case) -> Verdict:
    row = {c: v for c, v in case.facts.items() if level_of(c) is not Level.STEP}
    crossed = analysis.domain.crossed(row)
    if crossed:
        return _crossed(crossed, case.term)
    wrong = misplaced(analysis, case)
    if wrong is not None:
        return wrong
    bounds = analysis.domain.bounds(row)
    printer = Printer.of(analysis, case)
    unknown: list[str] = []
    for expr, path in _moments(analysis, case).items():
        low, high = domain(analysis.objective, path)
        for text, claim in _inside(low, high):
            outcome = _follows(analysis, bounds, expr, claim)
            name = printer.expression(expr)
            if outcome is False:
                return _outside(case, name, text)
            if outcome is None:
                unknown.append(name)
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        return Verdict(NAME, "undecided", f"whether {names} stays in the path's times is not clear")
    return _ordered(analysis, case, bounds)


def _moments(analysis: Analysis, case: Case) -> dict[Expr, Path]:
    """The times at which paths and networks are evaluated on these rows."""
    found: dict[Expr, Path] = {}
    first = next(iter(analysis.objective.paths.values()))
    for expr in (case.prediction, case.target):
        for node in walk(expr) if expr is not None else ():
            match node:
                case PathState(path, time, _, _) | PathVelocity(path, time, _, _):
                    found.setdefault(time, analysis.objective.paths[path])
                case Evaluate(network, _, args, _, _):
                    kinds = analysis.objective.networks[network].arguments
                    for (_, kind), arg in zip(kinds, args, strict=True):
                        if kind is Kind.TIME and not _is_code(arg):
                            found.setdefault(arg, first)
    return found


def _is_code(expr: Expr) -> bool:
    """Is this a function by which a network is told a time, such as its logarithm, and no time?"""
    return any(
        isinstance(node, Apply) and node.op in _CODES and level_of(node) is Level.ROW
        for node in walk(expr)
    )


def domain(objective: Objective, path: Path) -> tuple[Fraction, Fraction | None]:
    """Where a path runs from one end to the other: [0, 1], [0, pi/2] and the like rounded up, or
    without an end."""
    try:
        end = far_end(objective, path)
        if end is not None:
            return Fraction(0), Fraction(math.ceil(end * 10**6), 10**6)
        weights = path_weights(objective, path, 1.0)
    except Undecided:
        return Fraction(0), Fraction(1)
    return (Fraction(0), None) if abs(weights[0] - 1) < 1e-12 else (Fraction(0), Fraction(1))


def _inside(low: Fraction, high: Fraction | None) -> list[tuple[str, Affine]]:
    """Claims about a time τ, as affine functions that must not be negative."""
    moment = Affine.variable("τ")
    claims = [(f"below {low}", moment - Affine.number(low))]
    if high is not None:
        claims.append((f"above {high}", Affine.number(high) - moment))
    return claims


def _follows(analysis: Analysis, bounds: list[Bound], expr: Expr, claim: Affine) -> bool | None:
    """Is the claim about τ = expr true on every row? None where that is not known.

    Of `min` and `max` each side is taken where it is the value. Curricula, and draws that multiply
    others, enter linearly or not at all: then their extreme values decide.
    """
    choice = next((n for n in walk(expr) if isinstance(n, Apply) and n.op in _CHOICES
                   and level_of(n) is Level.ROW), None)  # fmt: skip
    if choice is None:
        return _linearly(analysis, bounds, expr, claim)
    verdicts = set()
    for k, condition in enumerate(_CHOICES[choice.op]):
        known = analysis.domain.comparison(Apply(condition, choice.args), True)
        side = _replaced(expr, choice, choice.args[k])
        verdicts.add(_follows(analysis, [*bounds, *known], side, claim))
    return False if False in verdicts else None if None in verdicts else True


def _replaced(expr: Expr, old: Expr, new: Expr) -> Expr:
    return transform(expr, lambda node: new if node == old else node)


#: When the value of min and max is their first, and their second argument.
_CHOICES = {"min": ("le", "ge"), "max": ("ge", "le")}


def _linearly(analysis: Analysis, bounds: list[Bound], expr: Expr, claim: Affine) -> bool | None:
    forms = _forms(analysis, expr)
    if forms is None:
        return None
    verdict: bool | None = True
    for form in forms:
        factor = claim.coefficient("τ")
        total = Affine.of({}, claim.constant) + form.scaled(factor)
        if implies(bounds, Bound(total, False)):
            continue
        bounded = {n for b in bounds for n, _ in b.left.terms}
        if any(n not in bounded for n, _ in form.terms):
            verdict = None
        else:
            return False
    return verdict


def _forms(analysis: Analysis, expr: Expr) -> list[Affine] | None:
    """The time as affine functions of the draws, one per corner of what multiplies them."""
    steps = steps_in(expr)
    try:
        ranges = [analysis.curricula.profile(s) for s in steps]
    except Undecided:
        return None
    limits = [
        (Fraction(p.low).limit_denominator(1000), Fraction(p.high).limit_denominator(1000))
        for p in ranges
    ]
    at = {s: low for s, (low, _) in zip(steps, limits, strict=True)}
    for factor, limit in _factors(analysis, expr, at):
        steps.append(factor)
        limits.append(limit)
    if not steps:
        form = analysis.domain.affine(expr, {})
        return None if form is None else [form]
    corners = []
    for corner in product(*limits):
        form = analysis.domain.affine(expr, dict(zip(steps, corner, strict=True)))
        if form is None:
            return None
        corners.append(form)
    return corners if _is_affine_in(analysis, expr, steps, limits) else None


def _is_affine_in(
    analysis: Analysis, expr: Expr, steps: list[Expr], limits: list[tuple[Fraction, Fraction]]
) -> bool:
    """Three more points on each edge: a polynomial of low degree cannot agree by accident."""
    for k, step in enumerate(steps):
        inside = Fraction(5, 13)  # the others anywhere between, where nothing vanishes by accident
        at = {s: low + inside * (high - low) for s, (low, high) in zip(steps, limits, strict=True)}

        def form(value: Fraction, step: Expr = step, at: dict[Expr, Fraction] = at) -> Affine:
            found = analysis.domain.affine(expr, {**at, step: value})
            assert found is not None
            return found

        low, high = limits[k]
        for share in (Fraction(1, 2), Fraction(1, 3), Fraction(5, 7)):
            mixed = form(low).scaled(1 - share) + form(high).scaled(share)
            if form(low + share * (high - low)) != mixed:
                return False
    return True


def _factors(
    analysis: Analysis, expr: Expr, at: dict[Expr, Fraction]
) -> list[tuple[Expr, tuple[Fraction, Fraction]]]:
    """The one draw that multiplies others in a time, with its range, if there is one."""
    if analysis.domain.affine(expr, at) is not None:
        return []
    for node in dict.fromkeys(walk(expr)):
        if isinstance(node, Draw):
            limit = analysis.domain.fixed_range(node)
            if limit is not None and analysis.domain.affine(expr, {**at, node: limit[0]}):
                return [(node, limit)]
    return []


def steps_in(expr: Expr) -> list[Expr]:
    """The largest parts of a time that only change from step to step."""
    if level_of(expr) is Level.STEP:
        return [expr]
    found: dict[Expr, None] = {}
    for child in children(expr):
        found.update(dict.fromkeys(steps_in(child)))
    return list(found)


def _outside(case: Case, name: str, text: str) -> Verdict:
    message = f"{name} can lie {text}, where the path is not defined"
    hint = "draw it from a law within the path's times"
    diagnostic = Diagnostic(NAME, message, case.term.span, hint=hint)
    return Verdict(NAME, "refuted", message, diagnostic=diagnostic)


def _ordered(analysis: Analysis, case: Case, bounds: list[Bound]) -> Verdict:
    """Which way the maps run on these rows, and whether they are evaluated on the diagonal."""
    printer = Printer.of(analysis, case)
    ways: dict[str, None] = {}
    limits: dict[str, None] = {}
    for node, start, end in jumps(analysis, case):
        difference = Apply("sub", (start, end))
        if analysis.domain.affine(difference, {}) == Affine.number(0) or start == end:
            limits[printer.call_text(node)] = None
            continue
        down = _follows(analysis, bounds, difference, Affine.variable("τ"))
        up = _follows(analysis, bounds, Apply("sub", (end, start)), Affine.variable("τ"))
        a, b = printer.expression(start), printer.expression(end)
        if down:
            ways[f"{a} >= {b}"] = None
        elif up:
            ways[f"{a} <= {b}"] = None
        elif down is None or up is None:
            return Verdict(NAME, "undecided", f"the order of {a} and {b} is not clear")
        else:
            ways[f"{a} and {b} in either order"] = None
    message = ", ".join(["inside the path's times", *ways])
    if limits:
        message += f"; 0 / 0 with a limit at {', '.join(limits)}"
    return Verdict(NAME, "proved", message)


def _directions(objective: Objective, analysis: Analysis) -> list[Verdict]:
    """Samples are made by jumps towards the data: some rows must train such jumps."""
    two_times = [
        m for m in objective.maps.values()
        if isinstance(m.start, Formal) and isinstance(m.end, Formal)
    ]  # fmt: skip
    for flow_map in two_times:
        path = objective.paths[flow_map.path]
        towards = data_is_later(objective, path)
        ways = _ways(analysis, flow_map)
        if towards is None or ways != {"down" if towards else "up"}:
            continue
        message = "the map is trained from data to noise only; samples need the other way"
        hint = "draw the start of the map nearer to the noise than its end"
        diagnostic = Diagnostic(NAME, message, flow_map.span, hint=hint)
        return [Verdict(NAME, "refuted", message, flow_map.name, diagnostic=diagnostic)]
    return []


def _ways(analysis: Analysis, flow_map: FlowMap) -> set[str]:
    """The ways in which the jumps of a map lead, on all rows on which they lead anywhere."""
    ways: set[str] = set()
    with suppress(Undecided):
        for case in analysis.all_cases():
            row = {c: v for c, v in case.facts.items() if level_of(c) is not Level.STEP}
            bounds = analysis.domain.bounds(row)
            for _, start, end in jumps(analysis, case, flow_map):
                ways.add(_way(analysis, bounds, start, end))
    return ways - {"nowhere"}


def data_is_later(objective: Objective, path: Path) -> bool | None:
    """Does the path end in the data? None where neither of its usual ends is the data."""
    with suppress(Undecided):
        end = far_end(objective, path)
        nearly = 1e-9 if end is None else 1e-3  # digits of pi / 2 that were left out
        for moment in (0.0, 1.0 if end is None else end):
            a, s = path_weights(objective, path, moment)
            if abs(a - 1) < nearly and abs(s) < nearly:
                return moment > 0
    return None


def _way(analysis: Analysis, bounds: list[Bound], start: Expr, end: Expr) -> str:
    """Where a jump leads in time: "nowhere", "down", "up", or "either" when not always one way."""
    difference = Apply("sub", (start, end))
    if start == end or analysis.domain.affine(difference, {}) == Affine.number(0):
        return "nowhere"
    if _follows(analysis, bounds, difference, Affine.variable("τ")):
        return "down"
    if _follows(analysis, bounds, Apply("sub", (end, start)), Affine.variable("τ")):
        return "up"
    return "either"


CHECK = Check(
    NAME,
    6,
    "Do all times stay where the path is defined, in one order?",
    """The supports of the laws and the orders they declare are linear inequalities; every time a
path or a network is given must follow from them to lie between the path's ends. Evaluations on the
diagonal, where a map gives 0 / 0 for its network, are named: the limit there is the velocity.
`data` and `noise` are states of the path at its ends, and a network is told those times.

    times  gap ~ uniform(0, 1); s ~ uniform(0, 1); t = s + gap

is refuted: t can lie above 1.""",
    _run,
    Example(
        good="times         t ~ uniform(0, 1); r ~ truncated(uniform(0, 1), 0, t)",
        bad="times         t ~ uniform(0, 2); r ~ uniform(0, 1)",
        status="refuted",
    ),
)
