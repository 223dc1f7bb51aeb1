"""Differentiation, values at zero, Laurent series and expectation of states.

Everything is a derivative in one *small* generator e of the field: to differentiate a network along
a tangent, put its arguments at `P + e dP`, `t + e dt` and take the coefficient of e. The same
series gives the value on a border, where a division 0 / 0 stands, and the leading order of a
residual in a curriculum's parameter.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import factorial

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import ORDER, Element
from flowdsl.calculus.state import (
    Atom,
    Calculus,
    FunctionAtom,
    MapAtom,
    State,
    Symbol,
    VelocityAtom,
)


@dataclass
class Series:
    """Derivatives and coefficients in any generator, with what was computed kept."""

    calculus: Calculus
    _depends: dict[Atom, frozenset[int]] = field(default_factory=dict)
    _slopes: dict[tuple[Atom, int], State] = field(default_factory=dict)
    _zeros: dict[tuple[Atom, int], State] = field(default_factory=dict)
    _chains: dict[tuple[State, int], list[State]] = field(default_factory=dict)

    def depends(self, atom: Atom) -> frozenset[int]:
        """The generators inside an atom."""
        known = self._depends.get(atom)
        if known is None:
            found: set[int] = set()
            if atom.parts is not None:
                point, times, directions = atom.parts
                for time in times:
                    found |= self.calculus.scalars.generators_in(time)
                found |= self.generators_in(point)
                for direction in directions:
                    found |= self.depends(direction)
            known = self._depends[atom] = frozenset(found)
        return known

    def generators_in(self, state: State) -> set[int]:
        found: set[int] = set()
        for atom, c in state.terms.items():
            found |= self.calculus.scalars.generators_in(c)
            found |= self.depends(atom)
        return found

    def derivative(self, state: State, e: int) -> State:
        """The total derivative in the generator e."""
        scalars, calculus = self.calculus.scalars, self.calculus
        total = calculus.zero
        plain = {}
        for atom, c in state.terms.items():
            slope = scalars.derivative(c, e)
            if slope:
                plain[atom] = slope
            if e in self.depends(atom):
                total = total + self._slope(atom, e).scaled(c)
        return total + State(scalars, plain)

    def _slope(self, atom: Atom, e: int) -> State:
        known = self._slopes.get((atom, e))
        if known is None:
            known = self._slopes[atom, e] = self._differentiate(atom, e)
        return known

    def _differentiate(self, atom: Atom, e: int) -> State:
        assert atom.parts is not None
        calculus, scalars = self.calculus, self.calculus.scalars
        point, times, atoms = atom.parts
        directions = [calculus.single(a) for a in atoms]
        total = calculus.zero
        for k, time in enumerate(times):
            speed = scalars.derivative(time, e)
            if speed:
                total = total + self._in_time(atom, k).scaled(speed)
        moved = self.derivative(point, e)
        if moved:
            total = total + calculus.again(atom, point, times, [*directions, moved])
        for k, direction in enumerate(atoms):
            if e in self.depends(direction):
                turned = [*directions[:k], self._slope(direction, e), *directions[k + 1 :]]
                total = total + calculus.again(atom, point, times, turned)
        return total

    def _in_time(self, atom: Atom, k: int) -> State:
        """The partial derivative in the k-th time: by an identity, or one order higher."""
        calculus = self.calculus
        match atom:
            case VelocityAtom(_, whose, point, time, order, atoms):
                directions = [calculus.single(a) for a in atoms]
                return calculus.velocity(whose, point, time, directions, order + 1)
            case FunctionAtom(_, whose, point, times, orders, atoms):
                raised = (*orders[:k], orders[k] + 1, *orders[k + 1 :])
                directions = [calculus.single(a) for a in atoms]
                return calculus.function(whose, point, times, directions, raised)
            case MapAtom():
                for rule in calculus.rules:
                    ask = rule.start_derivative if k == 0 else rule.end_derivative
                    found = ask(calculus, atom) if atom.orders == (0, 0) else None
                    if found is not None:
                        return found
                start, end = atom.orders
                return calculus.flow(
                    atom.field, atom.point, atom.start, atom.end,
                    [calculus.single(a) for a in atom.directions],
                    (start + 1, end) if k == 0 else (start, end + 1),
                )  # fmt: skip
        raise AssertionError(type(atom).__name__)

    def at_zero(self, state: State, e: int) -> State:
        """The state where the generator is 0. Raises `Pole` where it has no value."""
        scalars = self.calculus.scalars
        total = self.calculus.zero
        kept = {}
        for atom, c in state.terms.items():
            value = scalars.at_zero(c, e)
            if not value:
                continue
            if e in self.depends(atom):
                total = total + self._zero(atom, e).scaled(value)
            else:
                kept[atom] = value
        return total + State(scalars, kept)

    def _zero(self, atom: Atom, e: int) -> State:
        known = self._zeros.get((atom, e))
        if known is None:
            assert atom.parts is not None
            point, times, atoms = atom.parts
            directions = [
                self._zero(a, e) if e in self.depends(a) else self.calculus.single(a) for a in atoms
            ]
            known = self._zeros[atom, e] = self.calculus.again(
                atom,
                self.at_zero(point, e),
                tuple(self.calculus.scalars.at_zero(time, e) for time in times),
                directions,
            )
        return known

    def coefficient(self, state: State, e: int, order: int) -> State:
        """The coefficient of e^order in the Laurent series about e = 0."""
        scalars = self.calculus.scalars
        lowest = min((scalars.valuation(c, e) for c in state.terms.values()), default=0)
        pole = max(0, -lowest)
        count = pole + order
        if count < 0:
            return self.calculus.zero
        if scalars.truncated and count >= ORDER:
            raise Undecided(f"an expansion to order {count} was needed; {ORDER - 1} is the highest")
        chain = self._chains.setdefault((state, e), [])
        if not chain:
            chain.append(state.scaled(scalars.generator(e) ** pole) if pole else state)
        while len(chain) <= count:
            chain.append(self.derivative(chain[-1], e))
        try:
            value = self.at_zero(chain[count], e)
        except Pole as pole_inside:
            raise Undecided("a pole inside a base point") from pole_inside
        return value.scaled(scalars.number(1) / factorial(count))

    def without(self, state: State, names: frozenset[str]) -> State:
        """The state where the named symbols are zero."""
        return self.weakened(state, names, self.calculus.scalars.zero)

    def weakened(self, state: State, names: frozenset[str], factor: Element) -> State:
        """The state where the named symbols are a multiple of themselves."""
        calculus = self.calculus
        known: dict[Atom, State] = {}

        def visit(atom: Atom) -> State:
            if atom not in known:
                if isinstance(atom, Symbol):
                    own = calculus.single(atom)
                    known[atom] = own.scaled(factor) if atom.name in names else own
                else:
                    assert atom.parts is not None
                    point, times, atoms = atom.parts
                    turned = [visit(a) for a in atoms]
                    name, conditions = atom.whose
                    given = tuple((k, whole(v) if isinstance(v, State) else v)
                                  for k, v in conditions)  # fmt: skip
                    known[atom] = calculus.again(atom, whole(point), times, turned, (name, given))
            return known[atom]

        def whole(inner: State) -> State:
            total = calculus.zero
            for atom, c in inner.terms.items():
                total = total + visit(atom).scaled(c)
            return total

        return whole(state)

    def lowest(self, state: State, e: int) -> int:
        """The lowest order at which the Laurent series may start."""
        scalars = self.calculus.scalars
        return min(0, *(scalars.valuation(c, e) for c in state.terms.values())) if state else 0


Counts = frozenset[tuple[str, int]]


def counts(atom: Atom, noises: frozenset[str]) -> Counts | None:
    """How often each centred noise occurs as a factor; None when one is inside a base point."""
    if isinstance(atom, Symbol):
        return frozenset({(atom.name, 1)}) if atom.name in noises else frozenset()
    assert atom.parts is not None
    point, _, directions = atom.parts
    if any(isinstance(a, Symbol) and a.name in noises
           for state in (point, *atom.given) for a in state.atoms()):  # fmt: skip
        return None
    total: Counter[str] = Counter()
    for direction in directions:
        own = counts(direction, noises)
        if own is None:
            return None
        total.update(dict(own))
    return frozenset(total.items())


def survives(found: Counts) -> bool:
    """May a product with these factors have a mean? The noises are centred and independent of each
    other, so one that occurs once takes the mean with it."""
    return all(count > 1 for _, count in found)


@dataclass(frozen=True)
class Parts:
    """A state by the noises in it.

    `mean` has none, the mean of `linear` is 0 because some noise occurs once, `higher` has
    covariances; `inside` holds the terms in which the noise sits in a base point, so that its
    degree has no meaning.
    """

    mean: State
    linear: State
    higher: State
    inside: State

    @property
    def affine(self) -> bool:
        """Is the state's mean that of its noiseless part?"""
        return not self.higher and not self.inside

    @property
    def expected(self) -> State:
        """What the mean of the state is made of, where nothing is inside."""
        return self.mean + self.higher


def parts(state: State, noises: frozenset[str]) -> Parts:
    """Sort the terms of a state by the noises in them."""
    bins: dict[str, dict[Atom, object]] = {"mean": {}, "linear": {}, "higher": {}, "inside": {}}
    for atom, c in state.terms.items():
        found = counts(atom, noises)
        if found is None:
            name = "inside"
        elif not found:
            name = "mean"
        else:
            name = "higher" if survives(found) else "linear"
        bins[name][atom] = c
    return Parts(**{name: State(state.scalars, terms) for name, terms in bins.items()})
