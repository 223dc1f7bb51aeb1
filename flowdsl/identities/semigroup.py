"""Two maps in a row are one, and so are their Jacobians by the chain rule."""

from __future__ import annotations

from flowdsl.calculus.state import Calculus, MapAtom, State
from flowdsl.identities.identity import Identity


def _whole(atom: object, whose: MapAtom) -> MapAtom | None:
    """`atom` as a map of the same field that no time derivative has touched."""
    if isinstance(atom, MapAtom) and atom.field == whose.field and atom.orders == (0, 0):
        return atom
    return None


def _rule(calculus: Calculus, atom: MapAtom) -> State | None:
    if atom.orders != (0, 0):
        return None
    match atom.directions:
        case ():
            inner = _whole(atom.point.only(), atom)
            if inner is not None and not inner.directions and inner.end == atom.start:
                return calculus.flow(atom.field, inner.point, inner.start, atom.end)
        case (direction,):
            inner = _whole(direction, atom)
            if inner is not None and len(inner.directions) == 1 and _lands(calculus, inner, atom):
                turned = [calculus.single(inner.directions[0])]
                return calculus.flow(atom.field, inner.point, inner.start, atom.end, turned)
        case (first, second):
            one, two = _whole(first, atom), _whole(second, atom)
            if one is not None and two is not None and _same_jacobian(one, two):
                return _second_order(calculus, atom, one, two)
    return None


def _lands(calculus: Calculus, inner: MapAtom, outer: MapAtom) -> bool:
    """Does the inner map end where and when the outer one starts? Tested on normal forms."""
    if inner.end != outer.start:
        return False
    return calculus.flow(inner.field, inner.point, inner.start, inner.end) == outer.point


def _same_jacobian(one: MapAtom, two: MapAtom) -> bool:
    return (
        len(one.directions) == len(two.directions) == 1
        and (one.point, one.start, one.end) == (two.point, two.start, two.end)
    )  # fmt: skip


def _second_order(calculus: Calculus, outer: MapAtom, one: MapAtom, two: MapAtom) -> State | None:
    """D²f[J g a, J g b] = D²(f ∘ g)[a, b] - J f[D²g[a, b]]."""
    if not _lands(calculus, one, outer):
        return None
    pair = [calculus.single(one.directions[0]), calculus.single(two.directions[0])]
    whole = calculus.flow(outer.field, one.point, one.start, outer.end, pair)
    bent = calculus.flow(outer.field, one.point, one.start, one.end, pair)
    return whole - calculus.flow(outer.field, outer.point, outer.start, outer.end, [bent])


IDENTITY = Identity(
    name="semigroup",
    title="Semigroup",
    statement="φ(φ(x, t, s), s, r) = φ(x, t, r), and J φ by the chain rule",
    source="uniqueness of solutions; Frans et al. 2024, One Step Diffusion via Shortcut Models",
    acts="a map applied where another one lands, at the time it lands, is one map",
    residual=lambda flow, x, t, s: (
        flow.map(flow.map(x, t, s), s, 0.5 * s) - flow.map(x, t, 0.5 * s)
    ),
    map_rule=_rule,
)
