"""What follows about a time from the laws of the draws from which it is computed, and where these
stand in the text."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.inequalities import Affine, Bound, extent, implies
from flowdsl.calculus.region import steps_in
from flowdsl.diagnostics import Span
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.show import Printer
from flowdsl.spec.core import Apply, Draw, Expr, Level, transform, walk
from flowdsl.spec.kinds import level_of
from flowdsl.spec.notation import Notation
from flowdsl.truth.cases import Case

ROUNDED = 1e-9  #: how far intervals in floating point may lie outside


def follows(analysis: Analysis, bounds: list[Bound], expr: Expr, claim: Affine) -> bool | None:
    """Is the claim about τ = expr true on every row? None where that is not known."""
    verdict = _by_cases(analysis, bounds, expr, claim)
    return True if verdict is None and _enclosed(analysis, expr, claim) else verdict


def _enclosed(analysis: Analysis, expr: Expr, claim: Affine) -> bool:
    """Is the claim true of all numbers between which the time lies?"""
    factor, rest = float(claim.coefficient("τ")), float(claim.constant)
    ends = [factor * x + rest for interval in analysis.enclosures.of(expr) for x in interval]
    return all(x >= -ROUNDED for x in ends)


def _by_cases(analysis: Analysis, bounds: list[Bound], expr: Expr, claim: Affine) -> bool | None:
    """The same by linear inequalities.

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
        verdicts.add(_by_cases(analysis, [*bounds, *known], side, claim))
    return False if False in verdicts else None if None in verdicts else True


def _replaced(expr: Expr, old: Expr, new: Expr) -> Expr:
    return transform(expr, lambda node: new if node == old else node)


#: When the value of min and max is their first, and their second argument.
_CHOICES = {"min": ("le", "ge"), "max": ("ge", "le")}


def _linearly(analysis: Analysis, bounds: list[Bound], expr: Expr, claim: Affine) -> bool | None:
    found = forms(analysis, expr)
    if found is None:
        return None
    verdict: bool | None = True
    for form in found:
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


def forms(analysis: Analysis, expr: Expr) -> list[Affine] | None:
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


def place(analysis: Analysis, case: Case, expr: Expr) -> Span | None:
    """Where a time gets its value: its definition, or the line that draws it on these rows."""
    objective = analysis.objective
    if isinstance(expr, Draw) and expr.name in objective.draws:
        line = analysis.domain.line(objective.draws[expr.name], row_facts(case))
        return None if line is None else line.span
    named = (d for d in objective.definitions.values() if expr in (d, case.reduce(d)))
    return next((d.span for d in named if d.span is not None), expr.span)


def row_facts(case: Case) -> dict[Expr, bool]:
    """What is known about the rows of a case, from row to row."""
    return {c: v for c, v in case.facts.items() if level_of(c) is not Level.STEP}


def facts(
    analysis: Analysis, case: Case, bounds: list[Bound], expr: Expr
) -> tuple[tuple[str, str], ...]:
    """The values that a time takes, and the laws of what it is computed from, for a message."""
    objective = analysis.objective
    told = []
    reach = [extent(bounds, form) for form in forms(analysis, expr) or ()]
    lows, highs = [low for low, _ in reach], [high for _, high in reach]
    if reach and None not in lows and None not in highs:
        low, high = (float(end(x for x in ends if x is not None))
                     for end, ends in ((min, lows), (max, highs)))  # fmt: skip
        shown = Printer.of(analysis, case).expression(expr)
        written = Notation().text(expr)
        name = shown if shown == written else f"{shown} = {written}"
        told.append(("found", f"{name} between {low:.4g} and {high:.4g}"))
    names = dict.fromkeys(n.name for n in walk(expr) if isinstance(n, Draw))
    lines = [analysis.domain.line(objective.draws[n], row_facts(case)) for n in names]
    laws = dict.fromkeys(x.span.text for x in lines if x is not None and x.span is not None)
    if laws:
        told.append(("drawn", "; ".join(laws)))
    return tuple(told)
