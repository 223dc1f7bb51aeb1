"""Scalars of the calculus as text in the notation of a spec: factored, with sines and cosines put
back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sympy import QQ
from sympy.polys.rings import PolyRing

Element = Any

Name = Callable[[int], str]


class Named(Protocol):
    """A field whose generators have names, some of which stand for functions."""

    @property
    def defined(self) -> Mapping[int, Any]: ...

    @property
    def field(self) -> Any: ...

    def name_of(self, index: int) -> str: ...


def element_text(scalars: Named, x: Element) -> str:
    """The scalar as a person would write it: factored, lowest terms, `2 * (t - r) / (1 - t)`."""
    angles = {
        i: d.argument
        for i, d in scalars.defined.items()
        if d.function == "tan_half" and _occurs(x, i)
    }
    if not angles:
        return _quotient(x.numer, x.denom, scalars.name_of)
    ring, names = _circle_ring(scalars, angles)
    numer = _circle(x.numer, ring, angles, scalars)
    denom = _circle(x.denom, ring, angles, scalars)
    numer, denom = _same_power(numer, denom, ring)
    return _quotient(numer, denom, lambda i: names.get(i) or scalars.name_of(i))


def _occurs(x: Element, index: int) -> bool:
    return any(m[index] for m in x.numer) or any(m[index] for m in x.denom)


def _circle_ring(scalars: Named, angles: Mapping[int, Element]) -> tuple[Any, dict[int, str]]:
    """A ring with cos and sin of each angle after the field's own generators, and their names."""
    count = len(scalars.field.gens)
    names: dict[int, str] = {}
    for k, argument in enumerate(angles.values()):
        text = element_text(scalars, argument)
        names[count + 2 * k] = f"cos({text})"
        names[count + 2 * k + 1] = f"sin({text})"
    return PolyRing([f"g{i}" for i in range(count + 2 * len(angles))], QQ), names


def _circle(
    poly: Any, ring: Any, angles: Mapping[int, Element], scalars: Named
) -> tuple[Any, tuple[int, ...]]:
    """The polynomial divided by (1 + p^2)^k, in cos and sin; and the k of each angle."""
    count = len(scalars.field.gens)
    powers = tuple(-(-max(m[i] for m in poly) // 2) for i in angles)
    total = ring.zero
    for m, c in poly.items():
        term = ring.from_dict({(*(0 if i in angles else p for i, p in enumerate(m)),
                                *([0] * (2 * len(angles)))): c})  # fmt: skip
        for k, i in enumerate(angles):
            cos, sin = ring.gens[count + 2 * k], ring.gens[count + 2 * k + 1]
            half, odd = divmod(m[i], 2)
            if odd:
                term = term * sin / 2
            term = term * ((1 - cos) / 2) ** half * ((1 + cos) / 2) ** (powers[k] - half - odd)
        total = total + term
    for k in range(len(angles)):
        cos, sin = ring.gens[count + 2 * k], ring.gens[count + 2 * k + 1]
        total = total.rem([sin**2 + cos**2 - 1])
    return total, powers


def _same_power(
    numer: tuple[Any, tuple[int, ...]], denom: tuple[Any, tuple[int, ...]], ring: Any
) -> tuple[Any, Any]:
    """Account for different powers of 1 + p^2 = 2 / (1 + cos) above and below."""
    above, below = numer[0], denom[0]
    first = len(ring.gens) - 2 * len(numer[1])
    for k, (a, b) in enumerate(zip(numer[1], denom[1], strict=True)):
        half = (1 + ring.gens[first + 2 * k]) / 2
        if a > b:
            below = below * half ** (a - b)
        elif b > a:
            above = above * half ** (b - a)
    top, bottom = above.cancel(below)
    return top, bottom


def _quotient(numer: Any, denom: Any, name: Name) -> str:
    if not numer:
        return "0"
    above, below = factored(numer, name), factored(denom, name)
    ratio = QQ(above[0]) / QQ(below[0])
    top, bottom = list(above[1]), list(below[1])
    if ratio < 0:
        for part in (top, bottom):
            turned = next((k for k, f in enumerate(part) if f.turned), None)
            if ratio < 0 and turned is not None:
                part[turned] = Factor(part[turned].turned)
                ratio = -ratio
    sign = "-" if ratio < 0 else ""
    n, d = abs(int(ratio.numerator)), int(ratio.denominator)
    if n != 1 or not top:
        top.insert(0, Factor(str(n)))
    if d != 1:
        bottom.insert(0, Factor(str(d)))
    text = sign + " * ".join(f.text for f in top)
    if not bottom:
        return text if len(top) > 1 or sign else _strip(text)
    under = " * ".join(f.text for f in bottom)
    return f"{text} / ({under})" if len(bottom) > 1 else f"{text} / {under}"


def _strip(text: str) -> str:
    """`(t - r)` standing alone needs no brackets."""
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        return text[1:-1]
    return text


@dataclass(frozen=True)
class Factor:
    """The text of a factor, and that of its negative where the two read equally well (1 - t)."""

    text: str
    turned: str = ""


def factored(poly: Any, name: Name) -> tuple[Any, list[Factor]]:
    """The numeric factor of a polynomial, and its other factors."""
    if len(poly) == 1:
        ((monomial, c),) = poly.items()
        return c, [Factor(text) for text in _monomial(monomial, name)]
    c, factors = poly.factor_list() if len(poly) < 60 else (QQ(1), [(poly, 1)])
    texts: list[Factor] = []
    for factor, power in factors:
        if len(factor) == 1:
            ((monomial, unit),) = factor.items()
            c = c * unit**power
            texts = [Factor(text) for text in _monomial(monomial, name, power)] + texts
            continue
        flip, body, turned = _sum(factor, name)
        if flip and power % 2:
            c = -c
        if power > 1:
            texts.append(Factor(f"({body})^{power}"))
        else:
            texts.append(Factor(f"({body})", f"({turned})" if turned else ""))
    return c, texts


def _monomial(monomial: tuple[int, ...], name: Name, power: int = 1) -> list[str]:
    return [
        name(i) + (f"^{p * power}" if p * power > 1 else "") for i, p in enumerate(monomial) if p
    ]


def _sum(poly: Any, name: Name) -> tuple[bool, str, str]:
    """The sum, positive term first; whether its sign was changed for that; and its negative."""
    constant = [mc for mc in poly.items() if not any(mc[0])]
    ordered = constant + sorted((mc for mc in poly.items() if any(mc[0])), reverse=True)
    below = sum(c < 0 for _, c in ordered)
    flip = 2 * below > len(ordered) or (
        2 * below == len(ordered) and not constant and ordered[0][1] < 0
    )
    if flip:
        ordered = [(m, -c) for m, c in ordered]
    mixed = constant and any(c < 0 for _, c in ordered) and any(c > 0 for _, c in ordered)
    turned = _written([(m, -c) for m, c in ordered], name) if mixed else ""
    return flip, _written(ordered, name), turned


def _written(ordered: list[tuple[tuple[int, ...], Any]], name: Name) -> str:
    if ordered[0][1] < 0:
        ordered = [mc for mc in ordered if mc[1] > 0] + [mc for mc in ordered if mc[1] < 0]
    text = ""
    for m, c in ordered:
        sign = ("-" if c < 0 else "") if not text else (" - " if c < 0 else " + ")
        text += sign + _term(m, abs(c), name)
    return text


def _term(monomial: tuple[int, ...], c: Any, name: Name) -> str:
    parts = _monomial(monomial, name)
    n, d = int(c.numerator), int(c.denominator)
    if n != 1 or not parts:
        parts.insert(0, str(n))
    return " * ".join(parts) + (f" / {d}" if d != 1 else "")
