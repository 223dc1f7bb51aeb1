"""Rational functions over the integers, kept in lowest terms cheaply.

The field of one objective has some twenty generators, a scalar of it contains three or four. A
greatest common divisor is therefore sought among the generators that both sides contain, and sums
and products of fractions that are in lowest terms already need those of their parts alone (Henrici
1956; Knuth, The Art of Computer Programming 2, section 4.5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import gcd
from typing import Any, Self

from sympy import ZZ
from sympy.polys.fields import FracElement, FracField
from sympy.polys.heuristicgcd import heugcd
from sympy.polys.orderings import lex
from sympy.polys.polyerrors import HeuristicGCDFailed
from sympy.polys.rings import PolyRing

Poly = Any  #: a sympy PolyElement: {exponents: integer}
Monomial = tuple[int, ...]

KEPT = 20_000  #: common divisors are remembered up to this many


class Quotient(FracElement):  # type: ignore[misc]
    """An element of a `Quotients` field: coprime numerator and denominator, the latter with a
    positive leading coefficient."""

    field: Quotients
    places: frozenset[int] | None = None  # the generators in it, once somebody has asked

    def __init__(self, field: Quotients, numer: Poly, denom: Poly | None = None) -> None:
        super().__init__(field, numer, denom)
        # polynomial division hashes its quotient before it has grown to its end
        self.numer._hash = self.denom._hash = None

    def new(self, numer: Poly, denom: Poly) -> Self:
        """numer / denom in lowest terms."""
        _, numer, denom = self.field.cofactors(numer, denom)
        return self._signed(numer, denom)

    def _signed(self, numer: Poly, denom: Poly) -> Self:
        if denom.LC < 0:
            numer, denom = -numer, -denom
        return self.raw_new(numer, denom)  # type: ignore[no-any-return]

    def __add__(self, other: object) -> Self:
        if not isinstance(other, Quotient):
            return super().__add__(other)  # type: ignore[no-any-return]
        if not other.numer:
            return self
        if not self.numer:
            return other
        cofactors = self.field.cofactors
        shared, left, right = cofactors(self.denom, other.denom)
        total = self.numer * right + other.numer * left
        if not total:
            return self.field.zero  # type: ignore[no-any-return]
        if shared == 1:
            return self.raw_new(total, left * right)  # type: ignore[no-any-return]
        _, total, shared = cofactors(total, shared)
        return self._signed(total, left * right * shared)

    def __sub__(self, other: object) -> Self:
        if not isinstance(other, Quotient):
            return super().__sub__(other)  # type: ignore[no-any-return]
        return self + (-other)  # type: ignore[no-any-return]

    def __mul__(self, other: object) -> Self:
        if not isinstance(other, Quotient):
            return super().__mul__(other)  # type: ignore[no-any-return]
        return self._times(other.numer, other.denom)

    def __truediv__(self, other: object) -> Self:
        if not isinstance(other, Quotient):
            return super().__truediv__(other)  # type: ignore[no-any-return]
        if not other.numer:
            raise ZeroDivisionError
        return self._times(other.denom, other.numer)

    def _times(self, numer: Poly, denom: Poly) -> Self:
        if not self.numer or not numer:
            return self.field.zero  # type: ignore[no-any-return]
        _, first, denom = self.field.cofactors(self.numer, denom)
        _, second, own = self.field.cofactors(numer, self.denom)
        return self._signed(first * second, own * denom)


class Quotients(FracField):  # type: ignore[misc]
    """The field of rational functions over the integers in the given symbols."""

    def __new__(cls, symbols: Iterable[str]) -> Quotients:
        made: Quotients = super().__new__(cls, list(symbols), ZZ, lex)
        made.dtype = Quotient(made, made.ring.zero).raw_new
        made.zero, made.one = made.dtype(made.ring.zero), made.dtype(made.ring.one)
        made.gens = made._gens()
        made._rings = {}
        made._known = {}
        return made

    watch: Callable[[int], None] | None = None  # told the number of terms before long computations
    _rings: dict[Monomial, PolyRing]
    _known: dict[tuple[Poly, Poly], tuple[Poly, Poly, Poly]]

    def is_element(self, element: object) -> bool:
        return isinstance(element, Quotient) and element.field is self

    def new(self, numer: Poly, denom: Poly | None = None) -> Any:
        return self.zero.new(numer, self.ring.one if denom is None else denom)

    def cofactors(self, f: Poly, g: Poly) -> tuple[Poly, Poly, Poly]:
        """(h, f / h, g / h) for the greatest common divisor h of two polynomials."""
        one = self.ring.one
        if f == one or g == one:
            return one, f, g
        if not f or not g:
            h = f if f else g
            return h, one if f else f, one if g else g
        if len(f) == 1 or len(g) == 1:
            return self._divided(f, g, _least(f, g))
        known = self._known.get((f, g))
        if known is None:
            if self.watch is not None:
                self.watch(max(len(f), len(g)))
            if len(self._known) > KEPT:
                self._known.clear()
            known = self._known[f, g] = self._cofactors(f, g)
        return known

    def _divided(self, f: Poly, g: Poly, least: Monomial) -> tuple[Poly, Poly, Poly]:
        """With the monomial and the integer that divide both taken out."""
        content = 0
        for poly in (f, g):
            for c in poly.values():
                content = gcd(content, c)
                if content == 1:
                    break
        if content == 1 and not any(least):
            return self.ring.one, f, g
        parts = [
            self._raw({tuple(map(_minus, m, least)): c // content for m, c in poly.items()})
            for poly in (f, g)
        ]
        return self._raw({least: content}), parts[0], parts[1]

    def _raw(self, terms: dict[Monomial, int], ring: PolyRing | None = None) -> Poly:
        poly = (ring or self.ring).zero
        poly.update(terms)
        return poly

    def _cofactors(self, f: Poly, g: Poly) -> tuple[Poly, Poly, Poly]:
        common, f, g = self._divided(f, g, _least(f, g))
        in_f, in_g = _most(f), _most(g)
        shared = tuple(i for i, (a, b) in enumerate(zip(in_f, in_g, strict=True)) if a and b)
        parts = [*_by_the_rest(f, shared), *_by_the_rest(g, shared)] if shared else []
        if not parts or any(len(part) == 1 for part in parts):
            return common, f, g
        ring = self._ring(shared)
        polys = sorted((self._raw(part, ring) for part in parts), key=len)
        if len(polys) == 2 and all(bool(a) == bool(b) for a, b in zip(in_f, in_g, strict=True)):
            small = [self._raw(_only(p, shared), ring) for p in (f, g)]
            h, p, q = _heuristic(ring, *small)
            return (common * self._lifted(h, shared), self._lifted(p, shared),
                    self._lifted(q, shared))  # fmt: skip
        divisor = polys[0]
        for poly in polys[1:]:
            divisor = _heuristic(ring, divisor, poly)[0]
            if len(divisor) == 1:
                return common, f, g
        h = self._lifted(divisor.primitive()[1], shared)
        return common * h, f.exquo(h), g.exquo(h)

    def _ring(self, places: Monomial) -> PolyRing:
        known = self._rings.get(places)
        if known is None:
            symbols = [self.symbols[i] for i in places]
            known = self._rings[places] = PolyRing(symbols, ZZ, lex)
        return known

    def _lifted(self, poly: Poly, places: Monomial) -> Poly:
        lifted = {}
        for m, c in poly.items():
            whole = [0] * self.ngens
            for i, power in zip(places, m, strict=True):
                whole[i] = power
            lifted[tuple(whole)] = c
        return self._raw(lifted)


def _minus(a: int, b: int) -> int:
    return a - b


def _least(f: Poly, g: Poly) -> Monomial:
    """The monomial that divides every term of both."""
    return tuple(map(min, zip(*f, *g, strict=True)))


def _most(f: Poly) -> Monomial:
    """The highest power of each generator."""
    return tuple(map(max, zip(*f, strict=True)))


def _only(f: Poly, places: Monomial) -> dict[Monomial, int]:
    return {tuple(m[i] for i in places): c for m, c in f.items()}


def _by_the_rest(f: Poly, places: Monomial) -> list[dict[Monomial, int]]:
    """The coefficients of f as a polynomial in the generators outside `places`."""
    parts: dict[Monomial, dict[Monomial, int]] = {}
    chosen = frozenset(places)
    for m, c in f.items():
        rest = tuple(0 if i in chosen else power for i, power in enumerate(m))
        parts.setdefault(rest, {})[tuple(m[i] for i in places)] = c
    return list(parts.values())


def _heuristic(ring: PolyRing, f: Poly, g: Poly) -> tuple[Poly, Poly, Poly]:
    try:
        h, p, q = heugcd(f, g)
    except HeuristicGCDFailed:
        h, p, q = ring.dmp_inner_gcd(f, g)
    return h, p, q
