"""Systems of linear inequalities over the rationals, decided exactly (Fourier and Motzkin's
elimination)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

LIMIT = 4000  #: systems that grow beyond this are given up as feasible


@dataclass(frozen=True)
class Affine:
    """constant + Σ coefficient * variable; zero coefficients are dropped."""

    terms: tuple[tuple[str, Fraction], ...]
    constant: Fraction

    @staticmethod
    def of(terms: Mapping[str, Fraction], constant: Fraction | int = 0) -> Affine:
        kept = tuple(sorted((n, Fraction(c)) for n, c in terms.items() if c))
        return Affine(kept, Fraction(constant))

    @staticmethod
    def number(value: Fraction | int) -> Affine:
        return Affine((), Fraction(value))

    @staticmethod
    def variable(name: str) -> Affine:
        return Affine(((name, Fraction(1)),), Fraction(0))

    def __add__(self, other: Affine) -> Affine:
        terms = dict(self.terms)
        for name, c in other.terms:
            terms[name] = terms.get(name, Fraction(0)) + c
        return Affine.of(terms, self.constant + other.constant)

    def __neg__(self) -> Affine:
        return self.scaled(Fraction(-1))

    def __sub__(self, other: Affine) -> Affine:
        return self + (-other)

    def scaled(self, factor: Fraction) -> Affine:
        return Affine.of({n: c * factor for n, c in self.terms}, self.constant * factor)

    def coefficient(self, name: str) -> Fraction:
        return dict(self.terms).get(name, Fraction(0))


@dataclass(frozen=True)
class Bound:
    """`left > 0` when strict, else `left >= 0`."""

    left: Affine
    strict: bool


def feasible(bounds: Iterable[Bound]) -> bool:
    """Is there a point that satisfies every bound?"""
    system = set(bounds)
    while True:
        for bound in [b for b in system if not b.left.terms]:
            value = bound.left.constant
            if value < 0 or (bound.strict and value == 0):
                return False
            system.discard(bound)
        names = {name for b in system for name, _ in b.left.terms}
        if not names or len(system) > LIMIT:
            return True
        name = min(names, key=lambda n: _growth(system, n))
        system = _without(system, name)


def _growth(system: set[Bound], name: str) -> int:
    up = sum(b.left.coefficient(name) > 0 for b in system)
    down = sum(b.left.coefficient(name) < 0 for b in system)
    return up * down - up - down


def _without(system: set[Bound], name: str) -> set[Bound]:
    """The projection along one variable."""
    up = [b for b in system if b.left.coefficient(name) > 0]
    down = [b for b in system if b.left.coefficient(name) < 0]
    rest = {b for b in system if not b.left.coefficient(name)}
    for low in up:
        for high in down:
            a, b = low.left.coefficient(name), -high.left.coefficient(name)
            rest.add(Bound(low.left.scaled(b) + high.left.scaled(a), low.strict or high.strict))
    return rest


class Chain:
    """Points of a system of inequalities: each variable between the ends that those chosen before
    it leave, so that no point is thrown away."""

    def __init__(self, bounds: Iterable[Bound], names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._systems: list[set[Bound]] = []
        system = set(bounds)
        for name in reversed(self.names):
            self._systems.append({b for b in system if b.left.coefficient(name)})
            system = _without(system, name) if len(system) <= LIMIT else set()
        self._systems.reverse()

    def point(self, shares: Iterable[float]) -> dict[str, float]:
        """The values of the variables at these shares (between 0 and 1) of their intervals; where
        there is no end, as much as 2 away from the other end or from 0."""
        values: dict[str, float] = {}
        for name, system, share in zip(self.names, self._systems, shares, strict=True):
            low, high = -math.inf, math.inf
            for bound in system:
                slope = float(bound.left.coefficient(name))
                known = float(bound.left.constant) + sum(
                    float(c) * values[n] for n, c in bound.left.terms if n != name
                )
                edge = -known / slope
                low, high = (max(low, edge), high) if slope > 0 else (low, min(high, edge))
            if math.isinf(low):
                low = -2.0 if math.isinf(high) else high - 2.0
            high = min(high, low + 2.0) if math.isinf(high) else high
            values[name] = low + share * (high - low)
        return values


def extent(bounds: Iterable[Bound], form: Affine) -> tuple[Fraction | None, Fraction | None]:
    """The least and the greatest value of a form where every bound holds; None where there is
    none, or it takes too long to tell. Ends that strict bounds leave out are given as they are."""
    value = Affine.variable("")
    system = {*bounds, Bound(value - form, False), Bound(form - value, False)}
    while names := {name for b in system for name, _ in b.left.terms} - {""}:
        if len(system) > LIMIT:
            return None, None
        system = _without(system, min(names, key=lambda n: _growth(system, n)))
    ends = [(b.left.coefficient(""), b.left.constant) for b in system]
    lows = [-constant / c for c, constant in ends if c > 0]
    highs = [-constant / c for c, constant in ends if c < 0]
    return max(lows, default=None), min(highs, default=None)


def implies(bounds: Iterable[Bound], claim: Bound) -> bool:
    """Does every point of the system satisfy the claim?"""
    return not feasible([*bounds, Bound(-claim.left, not claim.strict)])
