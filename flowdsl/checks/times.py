"""Do all times stay where the path is defined, in one order, and what happens on the diagonal?"""

from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.inequalities import Affine, Bound
from flowdsl.calculus.numbers import far_end, path_weights
from flowdsl.checks.asked import jumps, misplaced
from flowdsl.checks.check import Check, Example, per_case
from flowdsl.checks.linear import facts, follows, place, row_facts
from flowdsl.checks.report import Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.defined import first_hole
from flowdsl.proof.show import Printer
from flowdsl.spec.core import (
    Apply,
    Evaluate,
    Expr,
    Formal,
    Kind,
    Level,
    PathState,
    PathVelocity,
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
        return [_crossed(analysis, crossed, None, objective.terms[0])]
    verdicts = per_case(NAME, analysis, objective.terms, lambda case: _decide(analysis, case))
    return verdicts + _directions(objective, analysis)


def _crossed(analysis: Analysis, name: str, case: Case | None, term: Term) -> Verdict:
    message = f"the law of {name} can have its upper end below its lower one"
    hint = f"draw what stands in its ends so that {name} has room"
    row = {} if case is None else row_facts(case)
    line = analysis.domain.line(analysis.objective.draws[name], row)
    span = term.span if line is None else line.span
    diagnostic = Diagnostic(NAME, message, span, hint=hint)
    return Verdict(NAME, "refuted", message, diagnostic=diagnostic, cause="times")


def _decide(analysis: Analysis, case: Case) -> Verdict:
    row = row_facts(case)
    crossed = analysis.domain.crossed(row)
    if crossed:
        return _crossed(analysis, crossed, case, case.term)
    wrong = misplaced(analysis, case)
    if wrong is not None:
        return wrong
    bounds = analysis.domain.bounds(row)
    printer = Printer.of(analysis, case)
    unknown: list[str] = []
    for expr, path in _moments(analysis, case).items():
        low, high = domain(analysis.objective, path)
        for text, claim in _inside(low, high):
            outcome = follows(analysis, bounds, expr, claim)
            if outcome is False:
                return _outside(analysis, case, bounds, expr, text)
            if outcome is None:
                unknown.append(printer.expression(expr))
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        return Verdict(NAME, "undecided", f"whether {names} stays in the path's times is not clear")
    return _hole(analysis, case) or _ordered(analysis, case, bounds)


def _hole(analysis: Analysis, case: Case) -> Verdict | None:
    """A root, a logarithm or a quotient without a value on some of the rows."""
    hole = first_hole(analysis, case)
    if hole is None:
        return None
    printer = Printer.of(analysis, case)
    whole, argument = printer.expression(hole.node), printer.expression(hole.argument)
    if hole.point is None:
        return Verdict(NAME, "undecided", f"whether {argument} is {hole.must_be}, as {whole} "
                       "needs it, is not clear")  # fmt: skip
    at = ", ".join(f"{name} = {value:.4g}" for name, value in hole.point.items())
    where = f" at {at}" if at else ""
    message = f"{whole} has no value{where}: {argument} is {hole.value:.4g} there"
    span = hole.node.span or hole.argument.span or case.term.span
    told = facts(analysis, case, [], hole.argument)
    hint = f"draw the times where {argument} is {hole.must_be}"
    diagnostic = Diagnostic(NAME, message, span, facts=told, hint=hint)
    return Verdict(NAME, "refuted", message, diagnostic=diagnostic, cause="times")


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
        isinstance(node, Apply)
        and (node.op == "log" or (node.op in _CODES and level_of(node) is Level.ROW))
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


def _outside(analysis: Analysis, case: Case, bounds: list[Bound], expr: Expr, text: str) -> Verdict:
    name = Printer.of(analysis, case).expression(expr)
    message = f"{name} can lie {text}, where the path is not defined"
    hint = "draw it from a law within the path's times"
    diagnostic = Diagnostic(
        NAME, message, place(analysis, case, expr) or case.term.span,
        facts=facts(analysis, case, bounds, expr), hint=hint,
    )  # fmt: skip
    return Verdict(NAME, "refuted", message, diagnostic=diagnostic, cause="times")


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
        down = follows(analysis, bounds, difference, Affine.variable("τ"))
        up = follows(analysis, bounds, Apply("sub", (end, start)), Affine.variable("τ"))
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
        if towards is None or set(ways) != {"down" if towards else "up"}:
            continue
        message = "the map is trained from data to noise only; samples need the other way"
        hint = "draw the start of the map nearer to the noise than its end"
        case, start, end = next(iter(ways.values()))
        printer = Printer.of(analysis, case)
        found = " >= " if towards else " <= "
        told = found.join(printer.expression(x) for x in (start, end))
        places = [place(analysis, case, end), place(analysis, case, start)]
        span = max((p for p in places if p is not None), key=lambda p: p.start, default=None)
        diagnostic = Diagnostic(NAME, message, span or flow_map.span, hint=hint,
                                facts=(("found", f"{told} on every row"),))  # fmt: skip
        return [Verdict(NAME, "refuted", message, flow_map.name, diagnostic=diagnostic,
                        cause="times")]  # fmt: skip
    return []


def _ways(analysis: Analysis, flow_map: FlowMap) -> dict[str, tuple[Case, Expr, Expr]]:
    """The ways in which the jumps of a map lead, on all rows on which they lead anywhere, each
    with a jump that does."""
    ways: dict[str, tuple[Case, Expr, Expr]] = {}
    with suppress(Undecided):
        for case in analysis.all_cases():
            bounds = analysis.domain.bounds(row_facts(case))
            for _, start, end in jumps(analysis, case, flow_map):
                ways.setdefault(_way(analysis, bounds, start, end), (case, start, end))
    ways.pop("nowhere", None)
    return ways


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
    if follows(analysis, bounds, difference, Affine.variable("τ")):
        return "down"
    if follows(analysis, bounds, Apply("sub", (end, start)), Affine.variable("τ")):
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

is refuted: t can lie above 1. The message stands at the line of the time, says between which values
it was found and from which laws, and the hint is an edit of such a line that was proved.

Samples are made by jumps from noise to data. Where every row jumps the other way the map is refuted
as "trained from data to noise only": the names of its two times are exchanged, or a step between
them has the wrong sign. Which times no row reaches at all is told by `anchored`.""",
    _run,
    Example(
        good="times         t ~ uniform(0, 1); r ~ truncated(uniform(0, 1), 0, t)",
        bad="times         t ~ uniform(0, 2); r ~ uniform(0, 1)",
        status="refuted",
    ),
)
