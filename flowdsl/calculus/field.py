"""Exact rational functions in times, constants and small quantities.

Every scalar is a sympy `FracElement`: always in lowest terms, so equality is structural and there
is no separate zero test. Plain integers never meet an element in a sum: sympy answers `0 - 1` of
the field by an integer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from flowdsl.calculus.errors import Clock, Pole, Undecided
from flowdsl.calculus.quotients import Quotients
from flowdsl.calculus.text import element_text

Element = Any  #: a `Quotient` of one `Scalars` field

ORDER = 5  #: Taylor polynomials in small quantities keep this many orders
SMALLS = 5  #: how many small quantities may be in use at once
LIMIT = 300  #: a scalar with more terms than this is given up
WIDEST = 3000  #: no common divisor is sought of polynomials with more terms than this
SPARE = 14  #: how many transcendental generators an objective may need, unless it says


@dataclass(frozen=True)
class Defined:
    """A generator that stands for `function(argument)`."""

    function: str
    argument: Element | None
    name: str = ""  # of an opaque scalar; that of a function follows from its argument
    inside: frozenset[int] = frozenset()  # the generators in its argument


class Rationals(ABC):
    """A field of rational functions: symbols by name, small quantities, room for functions."""

    def __init__(self, names: Iterable[str], spare: int = SPARE) -> None:
        self.names: list[str] = list(dict.fromkeys(names))
        count = len(self.names) + SMALLS + spare
        self.field = Quotients(f"g{i}" for i in range(count))
        self.one: Element = self.field.one
        self.zero: Element = self.field.zero
        self._index = {name: i for i, name in enumerate(self.names)}
        first = len(self.names)
        self.smalls = tuple(range(first, first + SMALLS))
        self._free = list(range(first + SMALLS, count))
        self._in_use = 0
        self.kept: frozenset[int] = frozenset()  # small quantities that functions keep inside
        self.defined: dict[int, Defined] = {}
        self._found: dict[tuple[str, object], int] = {}
        self._texts: dict[int, str] = {}
        self.roots: list[int] = []
        self.field.watch = self._watch
        self.clock: Clock | None = None  # looked at now and then
        self.truncated = False  # whether a Taylor polynomial stands for a function somewhere

    # generators

    def symbol(self, name: str) -> Element:
        if name not in self._index:
            raise Undecided(f"`{name}` is no scalar of this objective's mathematics")
        return self.field.gens[self._index[name]]

    def index(self, name: str) -> int:
        return self._index[name]

    def has(self, name: str) -> bool:
        return name in self._index

    def generator(self, index: int) -> Element:
        return self.field.gens[index]

    def number(self, value: Fraction | int) -> Element:
        exact = Fraction(value)
        return self.field(exact.numerator) / self.field(exact.denominator)

    def small(self, *, inside: bool = False) -> int:
        """Borrow a small quantity; give it back with `release`, last borrowed first.

        With `inside`, functions keep it in their arguments and are exact in it; else their Taylor
        polynomials stand, which show zeros and poles.
        """
        if self._in_use >= SMALLS:
            raise Undecided("derivatives are nested too deeply")
        self._in_use += 1
        found = self.smalls[self._in_use - 1]
        if inside:
            self.kept = self.kept | {found}
        return found

    def finite_at(self, x: Element, values: Mapping[int, Element]) -> bool:
        """Is x finite where symbols take these values?"""
        denom = self._evaluate(x.denom, values)
        return bool(denom)

    def vanishes_at(self, x: Element, values: Mapping[int, Element]) -> bool:
        """Is x zero where symbols take these values?"""
        return not self._evaluate(x.numer, values)

    def release(self) -> None:
        self._in_use -= 1
        self.kept = self.kept - {self.smalls[self._in_use]}

    def _define(
        self, function: str, key: object, argument: Element | None, name: str = ""
    ) -> Element:
        known = self._found.get((function, key))
        if known is None:
            if not self._free:
                raise Undecided("too many different functions of time")
            known = self._free.pop(0)
            self._found[function, key] = known
            inside = frozenset() if argument is None else frozenset(self.generators_in(argument))
            self.defined[known] = Defined(function, argument, name, inside)
            if function == "sqrt":
                self.roots.append(known)
        return self.field.gens[known]

    def opaque(self, key: object, name: str) -> Element:
        """A scalar of which nothing is known but that equal keys are equal."""
        return self._define("opaque", key, None, name)

    @property
    def opaques(self) -> dict[int, object]:
        """The generators that stand for scalars known by name only, with what they stand for."""
        return {i: key for (function, key), i in self._found.items() if function == "opaque"}

    # inspection

    def generators_in(self, x: Element) -> set[int]:
        """Indices of the generators in x, and of those inside the functions it contains."""
        found = set(self._direct(x))
        for i in tuple(found):
            definition = self.defined.get(i)
            if definition is not None:
                found |= definition.inside
        return found

    def _direct(self, x: Element) -> frozenset[int]:
        """Indices of the generators in x itself."""
        if x.places is None:
            found: set[int] = set()
            for poly in (x.numer, x.denom):
                for monomial in poly:
                    found.update(i for i, power in enumerate(monomial) if power)
            x.places = frozenset(found)
        places: frozenset[int] = x.places
        return places

    def rational(self, x: Element) -> Fraction | None:
        """The number x is, or None when it contains a generator."""
        if any(any(m) for m in x.numer) or any(any(m) for m in x.denom):
            return None
        if not x.numer:
            return Fraction(0)
        n, d = x.numer.LC, x.denom.LC
        return Fraction(int(n.numerator), int(n.denominator)) / Fraction(
            int(d.numerator), int(d.denominator)
        )

    def name_of(self, index: int) -> str:
        if index < len(self.names):
            return self.names[index]
        if index in self.defined:
            if index not in self._texts:
                self._texts[index] = self._name(self.defined[index])
            return self._texts[index]
        return f"e{index - len(self.names)}"

    def _name(self, definition: Defined) -> str:
        if definition.argument is None:
            return definition.name
        text = self.text(definition.argument)
        if definition.function == "tan_half":
            return f"tan({text} / 2)"
        return f"{definition.function}({text})"

    # arithmetic that plain operators do not do

    def normal(self, x: Element) -> Element:
        """The canonical form: no root in a denominator, no power of a root above the first."""
        for w in reversed(self.roots):
            if any(m[w] for m in x.numer) or any(m[w] for m in x.denom):
                square = self.defined[w].argument
                n0, n1 = self._split(x.numer, w, square)
                d0, d1 = self._split(x.denom, w, square)
                root = self.field.gens[w]
                below = d0 * d0 - d1 * d1 * square
                if not below:
                    raise Pole
                x = (n0 * d0 - n1 * d1 * square) / below + (n1 * d0 - n0 * d1) / below * root
        return x

    def _split(self, poly: Any, w: int, square: Element) -> tuple[Element, Element]:
        even: Element = self.zero
        odd: Element = self.zero
        for power in {m[w] for m in poly}:
            terms = {(*m[:w], 0, *m[w + 1 :]): c for m, c in poly.items() if m[w] == power}
            part = self.field(poly.ring.from_dict(terms)) * square ** (power // 2)
            if power % 2:
                odd = odd + part
            else:
                even = even + part
        return even, odd

    def guard(self, x: Element) -> Element:
        """x itself. Raises `Undecided` when it has grown too large, or when time is up."""
        if len(x.numer) + len(x.denom) > LIMIT:
            raise Undecided(f"a scalar with more than {LIMIT} terms")
        if self.clock is not None:
            self.clock.look()
        return x

    def _watch(self, terms: int) -> None:
        """Looked at before common divisors are sought: ends in `Undecided` rather than in a
        hang."""
        if terms > WIDEST:
            raise Undecided(f"a scalar with more than {WIDEST} terms")
        if self.clock is not None:
            self.clock.look()

    def product(self, a: Element, b: Element) -> Element:
        """a b, unless it would be too large."""
        if len(a.numer) * len(b.numer) > 4 * LIMIT or len(a.denom) * len(b.denom) > 4 * LIMIT:
            raise Undecided(f"a scalar with more than {LIMIT} terms")
        total = self.guard(a * b)
        return self.normal(total) if self.roots else total

    def power(self, x: Element, exponent: int) -> Element:
        """x to a whole power, one factor at a time."""
        total = self.one
        for _ in range(exponent):
            total = self.product(total, x)
        return total

    def divide(self, a: Element, b: Element) -> Element:
        if not b:
            raise Pole
        return self.product(a, self.one / b)

    def derivative(self, x: Element, index: int) -> Element:
        """The partial derivative in a generator, functions of it included."""
        total = x.diff(self.field.gens[index])
        for w, definition in self.defined.items():
            argument = definition.argument
            if argument is None or index not in definition.inside:
                continue
            outer = x.diff(self.field.gens[w])
            if outer:
                inner = self.derivative(argument, index)
                total = total + outer * self._slope(w, definition) * inner
        return self.normal(total) if self.roots else total

    @abstractmethod
    def _slope(self, w: int, definition: Defined) -> Element:
        """The derivative of a function in its argument."""

    def valuation(self, x: Element, index: int) -> int:
        """The order of the zero of x where the generator vanishes (negative at a pole)."""
        if not x:
            return 10**6
        return int(min(m[index] for m in x.numer)) - int(min(m[index] for m in x.denom))

    def at_zero(self, x: Element, index: int) -> Element:
        """x where the generator is 0. Raises `Pole` where it has no value."""
        inner = [
            w for w in self._direct(x) if w in self.defined and index in self.defined[w].inside
        ]
        if inner:
            values = {
                w: self.again(self.defined[w], self.at_zero(self.defined[w].argument, index))
                for w in inner
            }
            x = self.divide(self._evaluate(x.numer, values), self._evaluate(x.denom, values))
        numer = {m: c for m, c in x.numer.items() if not m[index]}
        denom = {m: c for m, c in x.denom.items() if not m[index]}
        if not denom:
            raise Pole
        if len(numer) == len(x.numer) and len(denom) == len(x.denom):
            return x
        ring = x.numer.ring
        return self.field.new(ring.from_dict(numer), ring.from_dict(denom))

    @abstractmethod
    def again(self, definition: Defined, argument: Element) -> Element:
        """The function anew, of another argument."""

    def _evaluate(self, poly: Any, values: Mapping[int, Element]) -> Element:
        total: Element = self.zero
        for monomial, c in poly.items():
            kept = tuple(0 if i in values else p for i, p in enumerate(monomial))
            term = self.field(poly.ring.from_dict({kept: c}))
            for i, value in values.items():
                if monomial[i]:
                    term = term * value ** monomial[i]
            total = total + term
        return total

    def rename(self, x: Element, old: int, new: int) -> Element:
        """x with one symbol in the place of another, inside functions too."""
        return self.substitute(x, old, self.field.gens[new])

    def substitute(self, x: Element, index: int, value: Element) -> Element:
        """x with a value in the place of a symbol, inside functions too."""
        values = {index: value}
        for w in self._direct(x):
            definition = self.defined.get(w)
            if definition is not None and index in definition.inside:
                moved = self.substitute(definition.argument, index, value)
                values[w] = self.again(definition, moved)
        return self.divide(self._evaluate(x.numer, values), self._evaluate(x.denom, values))

    # numbers and text

    def numeric(self, x: Element, values: Mapping[int, float]) -> float:
        """x in floating point, given a value for every symbol in it."""

        def value(i: int) -> float:
            definition = self.defined.get(i)
            if definition is None or definition.argument is None:
                return values[i]
            argument = self.numeric(definition.argument, values)
            if definition.function == "tan_half":
                return math.tan(argument / 2)
            return float(getattr(math, definition.function)(argument))

        def polynomial(poly: Any) -> float:
            total = 0.0
            for m, c in poly.items():
                term = int(c.numerator) / int(c.denominator)
                for i, power in enumerate(m):
                    if power:
                        term *= value(i) ** power
                total += term
            return total

        return polynomial(x.numer) / polynomial(x.denom)

    def text(self, x: Element) -> str:
        return element_text(self, x)
