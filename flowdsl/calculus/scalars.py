"""Scalars of the calculus: rational functions, and functions of them.

Transcendental functions are further generators of the field, with one generator per angle,

    p = tan(x / 2),   cos x = (1 - p^2) / (1 + p^2),   sin x = 2 p / (1 + p^2),

so that the Pythagorean relation holds by construction, and one per root, with w^2 reduced on sight.
*Small* generators (the distance to a border, the parameter of an expansion) are not inside a
function: there its Taylor polynomial stands instead, exact up to `ORDER`, which shows zeros and
poles. The step of a derivative is, unless the derivative is taken where a map's network has no
weight: then the function is exact in it, and nothing grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import ORDER, Defined, Element, Rationals


class Scalars(Rationals):
    """The field of one objective, with its functions."""

    def _slope(self, w: int, definition: Defined) -> Element:
        own = self.field.gens[w]
        match definition.function:
            case "tan_half":
                return (self.one + own**2) / 2
            case "sqrt":
                return self.one / (own + own)
            case "exp":
                return own
            case "log" if definition.argument is not None:
                return self.one / definition.argument
            case "atan" if definition.argument is not None:
                return self.one / (self.one + definition.argument**2)
        raise Undecided(f"the derivative of {definition.function} is not known")

    def again(self, definition: Defined, argument: Element) -> Element:
        match definition.function:
            case "tan_half":
                return self.tan_half(argument)
            case "sqrt":
                return self.sqrt(argument)
            case "exp":
                return self.exp(argument)
            case "log":
                return self.log(argument)
        return self.atan(argument)

    def substitute(self, x: Element, index: int, value: Element) -> Element:
        base = self._at_rest(value)
        step = value - base
        inside = {w for w, d in self.defined.items() if d.argument is not None}
        if not step or not self.generators_in(x) & inside:
            return super().substitute(x, index, value)
        self.truncated = True
        total, slope, power = self.zero, x, self.one
        for k in range(ORDER + 1):
            there = super().substitute(slope, index, base)
            total = total + there * power / math.factorial(k)
            slope, power = self.derivative(slope, index), power * step
        return total

    def _at_rest(self, x: Element) -> Element:
        """x where small quantities are 0: the point about which functions are expanded."""
        for i in self.smalls:
            if i not in self.kept:
                x = self.at_zero(x, i)
        return x

    def _taylor(self, x: Element, slopes: Callable[[Element], list[Element]]) -> Element:
        base = self._at_rest(x)
        step = x - base
        coefficients = slopes(base)
        if not step:
            return coefficients[0]
        self.truncated = True
        total: Element = self.zero
        for k, c in reversed(list(enumerate(coefficients))):
            total = total * step + c / math.factorial(k)
        return total

    def tan_half(self, x: Element) -> Element:
        """tan(x / 2) of x free of small quantities; sums of symbols by the addition formula."""
        if not x:
            return self.zero
        if x.denom == 1 and len(x.numer) > 1:
            parts = [self.field(x.numer.ring.from_dict({m: c})) for m, c in x.numer.items()]
            total = self.tan_half(parts[0])
            for part in parts[1:]:
                other = self.tan_half(part)
                total = self.divide(total + other, self.one - total * other)
            return total
        factor = self.rational(self.field(x.numer.LC)) if x.denom == 1 else None
        if factor is not None and factor.denominator == 1 and factor != 1:
            unit = self.tan_half(x / self.number(abs(factor)) * (1 if factor > 0 else -1))
            total = unit
            for _ in range(abs(factor.numerator) - 1):
                total = self.divide(total + unit, self.one - total * unit)
            return total if factor > 0 else -total
        return self._define("tan_half", x, x)

    def _circle(self, base: Element) -> tuple[Element, Element]:
        p = self.tan_half(base)
        below = self.one + p**2
        return (self.one - p**2) / below, (p + p) / below

    def cos(self, x: Element) -> Element:
        def slopes(base: Element) -> list[Element]:
            c, s = self._circle(base)
            return ([c, -s, -c, s] * 2)[: ORDER + 1]

        return self._taylor(x, slopes)

    def sin(self, x: Element) -> Element:
        def slopes(base: Element) -> list[Element]:
            c, s = self._circle(base)
            return ([s, c, -s, -c] * 2)[: ORDER + 1]

        return self._taylor(x, slopes)

    def exp(self, x: Element) -> Element:
        def slopes(base: Element) -> list[Element]:
            value = self._exp(base)
            return [value] * (ORDER + 1)

        return self._taylor(x, slopes)

    def _exp(self, x: Element) -> Element:
        """Sums become products and whole multiples powers, so that exp(a) exp(-a) is 1."""
        if not x:
            return self.one
        if x.denom != 1:
            return self._define("exp", x, x)
        total: Element = self.one
        for m, c in x.numer.items():
            power = int(c.numerator)
            unit = self.field(x.numer.ring.from_dict({m: 1}))
            known = self._logarithm(unit)
            if known is None:
                known = self._define("exp", unit, unit)
            total = total * known**power
        return total

    def _logarithm(self, x: Element) -> Element | None:
        """Of what x is the logarithm, if it is one."""
        for i in self._direct(x):
            definition = self.defined.get(i)
            if definition is not None and definition.function == "log" and x == self.generator(i):
                return definition.argument
        return None

    def log(self, x: Element) -> Element:
        def slopes(base: Element) -> list[Element]:
            if base == 1:
                value = self.zero
            elif not base:
                raise Pole
            else:
                value = self._define("log", base, base)
            signs = [math.factorial(k - 1) * (-1) ** (k - 1) for k in range(1, ORDER + 1)]
            return [value, *(s / base**k for k, s in enumerate(signs, 1))]

        return self._taylor(x, slopes)

    def sqrt(self, x: Element) -> Element:
        def slopes(base: Element) -> list[Element]:
            if not base:
                raise Pole
            w = self._root(base)
            values, factor = [w], Fraction(1)
            for k in range(ORDER):
                factor *= Fraction(1, 2) - k
                values.append(self.number(factor) * w / base ** (k + 1))
            return values

        return self.zero if not x else self._taylor(x, slopes)

    def _root(self, x: Element) -> Element:
        value = self.rational(x)
        if value is not None and value > 0:
            n, d = math.isqrt(value.numerator), math.isqrt(value.denominator)
            if n * n == value.numerator and d * d == value.denominator:
                return self.number(Fraction(n, d))
        return self._define("sqrt", x, x)

    def atan(self, x: Element) -> Element:
        def slopes(base: Element) -> list[Element]:
            value = self._define("atan", base, base) if base else base
            square, below = base**2, self.one / (self.one + base**2)
            tops = [self.one, -base * 2, square * 6 - 2, (base - base**3) * 24,
                    (square**2 * 5 - square * 10 + 1) * 24]  # fmt: skip
            return [value, *(top * below**k for k, top in enumerate(tops, 1))]

        return self._taylor(x, slopes)
