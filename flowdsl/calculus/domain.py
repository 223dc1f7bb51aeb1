"""What is known about the draws of a row: bounds and orders, from their laws, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from flowdsl.calculus.curriculum import Curricula
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.inequalities import Affine, Bound, feasible, implies
from flowdsl.calculus.numbers import evaluate
from flowdsl.prelude.laws import LAWS
from flowdsl.spec.core import (
    FALSE,
    TRUE,
    Apply,
    Draw,
    Expr,
    Kind,
    Level,
    Number,
    Stop,
    assume,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import DrawDeclaration, DrawLine, LawCall, Objective

Facts = Mapping[Expr, bool]

#: What the negation of a comparison is, and its sign: left - right, strict or not.
NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


class Domain:
    """The polytope of a row's times, given what is known about the row.

    Bounds are strict: draws on the border of their support have probability zero, but for those
    from a list of values.
    """

    def __init__(self, objective: Objective, curricula: Curricula) -> None:
        self.objective = objective
        self.curricula = curricula
        self._constants = {name: float(v) for name, v in objective.constants.items()}

    # expressions

    def affine(self, expr: Expr, steps: Mapping[Expr, Fraction] | None = None) -> Affine | None:
        """The expression as an affine function of draws, or None.

        Curricula, and draws, take the values given in `steps`; without it, curricula are variables
        of their own.
        """
        if steps is not None and expr in steps:
            return Affine.number(steps[expr])
        if level_of(expr) is Level.CONSTANT:
            return self._constant(expr)
        if level_of(expr) is Level.STEP and steps is None:
            return Affine.variable(self._step_name(expr))
        match expr:
            case Draw(name, kind, _) if kind in (Kind.TIME, Kind.SCALAR):
                return Affine.variable(name)
            case Stop(body):
                return self.affine(body, steps)
            case Apply("neg", (a,)):
                one = self.affine(a, steps)
                return -one if one else None
            case Apply("add" | "sub" | "mul" | "div" as op, (a, b)):
                left, right = self.affine(a, steps), self.affine(b, steps)
                return None if left is None or right is None else _combine(op, left, right)
        return None

    def _constant(self, expr: Expr) -> Affine | None:
        if isinstance(expr, Number):
            return Affine.number(expr.value)
        try:
            value = evaluate(expr, self._constants)
        except Undecided:
            return None
        return Affine.number(_exact(value)) if math.isfinite(value) else None

    def _step_name(self, expr: Expr) -> str:
        return self.curricula.name_of(expr) or f"step {hash(expr)}"

    # draws

    def bounds(self, facts: Facts, before: str | None = None) -> list[Bound]:
        """Everything the laws say about the draws of a row on which `facts` hold.

        With `before`, what is known when that name is drawn: the laws of earlier names alone.
        """
        found: list[Bound] = []
        for name, declaration in self.objective.draws.items():
            if name == before:
                return found
            if declaration.kind in (Kind.TIME, Kind.SCALAR):
                line = self.line(declaration, facts)
                if line is not None:
                    found += self._law(line, name)
        for condition, value in facts.items():
            found += self._fact(condition, value)
        return found

    def line(self, declaration: DrawDeclaration, facts: Facts) -> DrawLine | None:
        """The line that draws this name on such rows, or None where the facts do not say."""
        chosen: DrawLine | None = None
        for line in declaration.lines:
            rows = TRUE if line.rows is None else assume(line.rows, dict(facts))
            if rows == TRUE:
                chosen = line
            elif rows != FALSE:
                chosen = None
        return chosen

    def edges(self, law: LawCall) -> tuple[Affine, Affine] | None:
        """The ends between which a law draws, where it states them; they may be earlier draws."""
        if law.law not in ("uniform", "truncated", "power_law"):
            return None
        first = 1 if law.law == "truncated" else 0
        found = []
        for limit in law.args[first : first + 2]:
            edge = None if isinstance(limit, LawCall) else self.affine(limit)
            if edge is None:
                return None
            found.append(edge)
        return (found[0], found[1]) if len(found) == 2 else None

    def crossed(self, facts: Facts) -> str:
        """A name whose law has its ends the wrong way round on some rows; empty when none has."""
        for name, declaration in self.objective.draws.items():
            line = self.line(declaration, facts)
            edges = None if line is None else self.edges(line.law)
            if edges is None:
                continue
            known = self.bounds(facts, before=name)
            if not implies(known, Bound(edges[1] - edges[0], False)):
                return name
        return ""

    def _law(self, line: DrawLine, name: str) -> list[Bound]:
        variable = Affine.variable(name)
        law = line.law
        low, high = self.support(law)
        strict = not _lists(law)
        found = []
        if math.isfinite(low):
            found.append(Bound(variable - Affine.number(_exact(low)), strict))
        if math.isfinite(high):
            found.append(Bound(Affine.number(_exact(high)) - variable, strict))
        if law.law in ("uniform", "truncated", "power_law"):
            first = 1 if law.law == "truncated" else 0
            for k, sign in ((first, 1), (first + 1, -1)):
                limit = law.args[k]
                edge = None if isinstance(limit, LawCall) else self.affine(limit)
                if edge is not None:
                    found.append(Bound((variable - edge).scaled(Fraction(sign)), True))
        if law.law == "sorted" and len(line.names) == 2:
            first_name, second_name = line.names
            order = Affine.variable(first_name) - Affine.variable(second_name)
            found.append(Bound(order, True))
        return found

    def listed(self, name: str) -> bool:
        """Is it drawn from a list of values, of which the ends are some?"""
        declaration = self.objective.draws.get(name)
        return declaration is not None and any(_lists(line.law) for line in declaration.lines)

    def support(self, law: LawCall | Expr) -> tuple[float, float]:
        """The interval of a law's values; of a number, itself; infinite where nothing is known."""
        everything = (-math.inf, math.inf)
        if not isinstance(law, LawCall):
            known = self.affine(law)
            if known is None:
                return everything
            if not known.terms:
                return float(known.constant), float(known.constant)
            return self.hull(known)
        parts = [self.support(arg) for arg in law.args]
        if law.law in LAWS:
            try:
                low, high = LAWS[law.law].support(*parts)
            except (TypeError, ValueError, ZeroDivisionError, OverflowError):
                return everything
            return float(low), float(high)
        return _arithmetic(law.law, parts)

    def hull(self, expr: Affine) -> tuple[float, float]:
        """Of an expression in earlier draws, by their own supports."""
        low = high = float(expr.constant)
        for name, c in expr.terms:
            declaration = self.objective.draws.get(name)
            if declaration is None:
                return -math.inf, math.inf
            a, b = self.support(declaration.lines[0].law)
            low += float(c) * (a if c > 0 else b)
            high += float(c) * (b if c > 0 else a)
        return low, high

    def _fact(self, condition: Expr, value: bool) -> list[Bound]:
        if not isinstance(condition, Apply) or condition.op not in NEGATED:
            return []
        op = condition.op if value else NEGATED[condition.op]
        left, right = (self.affine(a) for a in condition.args)
        if left is None or right is None or op == "ne":
            return []
        if op == "eq":
            return [Bound(left - right, False), Bound(right - left, False)]
        ahead = left - right if op in ("gt", "ge") else right - left
        return [Bound(ahead, True)]

    def fixed_range(self, draw: Draw) -> tuple[Fraction, Fraction] | None:
        """The ends between which a draw falls on every row by itself, if they are numbers."""
        declaration = self.objective.draws.get(draw.name)
        if declaration is None or [len(line.names) for line in declaration.lines] != [1]:
            return None
        low, high = self.support(declaration.lines[0].law)
        return (_exact(low), _exact(high)) if math.isfinite(high - low) else None

    def comparison(self, condition: Expr, value: bool) -> list[Bound]:
        """What a comparison of draws says, where it is linear in them."""
        return self._fact(condition, value)

    # questions

    def possible(self, facts: Facts) -> bool:
        """Can a row have all these properties (with probability above zero)?"""
        for condition, value in facts.items():
            if isinstance(condition, Draw) and not self._draw_can_be(condition, value, facts):
                return False
        row = {c: v for c, v in facts.items() if level_of(c) is not Level.STEP}
        return self.curricula.attained(facts) and feasible(self.bounds(row))

    def _draw_can_be(self, draw: Draw, value: bool, facts: Facts) -> bool:
        declaration = self.objective.draws.get(draw.name)
        if declaration is None:
            return True
        others = {c: v for c, v in facts.items() if c != draw}
        line = declaration.lines[-1]
        if len(declaration.lines) > 1:
            return True
        if value and line.rows is not None and assume(line.rows, others) == FALSE:
            return False
        low, high = self.support(line.law.args[0]) if line.law.args else (0.0, 1.0)
        if value:
            return high > 0
        return low < 1 or (line.rows is not None and assume(line.rows, others) != TRUE)


def _lists(law: LawCall | Expr) -> bool:
    """Does a law draw one of a list of values?"""
    return isinstance(law, LawCall) and (law.law == "choice" or any(map(_lists, law.args)))


def _exact(value: float) -> Fraction:
    return Fraction(value).limit_denominator(10**9)


def _combine(op: str, left: Affine, right: Affine) -> Affine | None:
    match op:
        case "add":
            return left + right
        case "sub":
            return left - right
        case "mul" if not left.terms:
            return right.scaled(left.constant)
        case "mul" if not right.terms:
            return left.scaled(right.constant)
        case "div" if not right.terms and right.constant:
            return left.scaled(1 / right.constant)
    return None


def _arithmetic(op: str, parts: list[tuple[float, float]]) -> tuple[float, float]:
    """Interval arithmetic for laws that are computed from laws, such as `atan(log_normal(…) /
    sd)`."""
    monotone = {"atan": math.atan, "tanh": math.tanh}
    match op, parts:
        case "neg", [(a, b)]:
            return -b, -a
        case "atan" | "tanh", [(a, b)]:
            return monotone[op](a), monotone[op](b)
        case "exp", [(a, b)]:
            return math.exp(min(a, 700)), math.exp(b) if b < 700 else math.inf
        case "add", [(a, b), (c, d)]:
            return a + c, b + d
        case "sub", [(a, b), (c, d)]:
            return a - d, b - c
        case "mul", [(a, b), (c, d)] if c == d and c > 0:
            return a * c, b * c
        case "mul", [(a, b), (c, d)] if a == b and a > 0:
            return a * c, a * d
        case "div", [(a, b), (c, d)] if c == d and c > 0:
            return a / c, b / c
    return -math.inf, math.inf
