"""States of the calculus: linear combinations of atoms, in normal form from the moment they are
made.

A state is a finite map {atom: scalar}; it is zero iff the map is empty. An atom is a symbol, a flow
map, a velocity, or a function about which nothing is known, each with any number of state
derivatives taken in directions that are themselves single atoms: multilinearity is used up when an
atom is made, so J[2 a + 3 b] never appears unexpanded. Jacobians do not commute, and nothing here
lets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from flowdsl.calculus.errors import Clock
from flowdsl.calculus.field import Element
from flowdsl.calculus.scalars import Scalars

#: Whose flow: the kind ("flow", "hat", "data", "zero") and the conditions under which it is meant.
Field = tuple[str, tuple[tuple[str, object], ...]]


class State:
    """A vector: {atom: coefficient}, no zero coefficients, hash computed once."""

    __slots__ = ("_hash", "scalars", "terms")

    def __init__(self, scalars: Scalars, terms: dict[Atom, Element]) -> None:
        self.scalars = scalars
        self.terms = terms
        self._hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self.terms.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, State) and self.terms == other.terms)

    def __bool__(self) -> bool:
        return bool(self.terms)

    def __add__(self, other: State) -> State:
        if not other.terms:
            return self
        terms = dict(self.terms)
        for atom, c in other.terms.items():
            old = terms.get(atom)
            total = c if old is None else old + c
            if old is not None:
                self.scalars.guard(total)
                if self.scalars.roots:
                    total = self.scalars.normal(total)
            if total:
                terms[atom] = total
            else:
                terms.pop(atom, None)
        return State(self.scalars, terms)

    def __neg__(self) -> State:
        return State(self.scalars, {atom: -c for atom, c in self.terms.items()})

    def __sub__(self, other: State) -> State:
        return self + (-other)

    def scaled(self, factor: Element) -> State:
        """The state times a scalar."""
        if not factor:
            return State(self.scalars, {})
        if factor == 1:
            return self
        product = self.scalars.product
        products = {atom: product(c, factor) for atom, c in self.terms.items()}
        return State(self.scalars, {atom: c for atom, c in products.items() if c})

    def over(self, divisor: Element) -> State:
        """The state divided by a scalar that is not zero."""
        return self.scaled(self.scalars.divide(self.scalars.one, divisor))

    def only(self) -> Atom | None:
        """The atom this state is, when it is exactly one atom with coefficient 1."""
        if len(self.terms) != 1:
            return None
        ((atom, c),) = self.terms.items()
        return atom if c == 1 else None

    def atoms(self) -> Iterator[Atom]:
        """Every atom in it, those inside base points and directions included."""
        for atom in self.terms:
            yield atom
            yield from atom.inside()


@dataclass(frozen=True, eq=False)
class Atom:
    """What a state is a combination of. Interned: two equal atoms are the same object."""

    serial: int

    @property
    def parts(self) -> tuple[State, tuple[Element, ...], tuple[Atom, ...]] | None:
        """Base point, times and directions; None for a symbol."""
        return None

    @property
    def whose(self) -> Field:
        """Which flow, or which function; empty for a symbol."""
        return "", ()

    @property
    def given(self) -> list[State]:
        """The states by which a flow is conditioned that are none of the row's own."""
        return [value for _, value in self.whose[1] if isinstance(value, State)]

    def inside(self) -> Iterator[Atom]:
        """The atoms in the base point, in the directions, and in what conditions the flow."""
        if self.parts is not None:
            point, _, directions = self.parts
            yield from point.atoms()
            for state in self.given:
                yield from state.atoms()
            for direction in directions:
                yield direction
                yield from direction.inside()


@dataclass(frozen=True, eq=False)
class Symbol(Atom):
    """A state that is not taken apart: x, the centred noise ξ, a fresh noise, a constant."""

    name: str


@dataclass(frozen=True, eq=False)
class MapAtom(Atom):
    """The flow map φ(point, start, end) with k state derivatives in `directions`.

    `orders` counts partial derivatives in start and end that no identity has turned into something
    else.
    """

    field: Field
    point: State
    start: Element
    end: Element
    directions: tuple[Atom, ...]
    orders: tuple[int, int]

    @property
    def whose(self) -> Field:
        return self.field

    @property
    def parts(self) -> tuple[State, tuple[Element, ...], tuple[Atom, ...]]:
        return self.point, (self.start, self.end), self.directions


@dataclass(frozen=True, eq=False)
class VelocityAtom(Atom):
    """The velocity at (point, time): `order` time derivatives, and state derivatives in
    `directions`."""

    field: Field
    point: State
    time: Element
    order: int
    directions: tuple[Atom, ...]

    @property
    def whose(self) -> Field:
        return self.field

    @property
    def parts(self) -> tuple[State, tuple[Element, ...], tuple[Atom, ...]]:
        return self.point, (self.time,), self.directions


@dataclass(frozen=True, eq=False)
class FunctionAtom(Atom):
    """An unknown function (an untrained network, a test function) with its derivatives."""

    name: Field
    point: State
    times: tuple[Element, ...]
    orders: tuple[int, ...]
    directions: tuple[Atom, ...]

    @property
    def whose(self) -> Field:
        return self.name

    @property
    def parts(self) -> tuple[State, tuple[Element, ...], tuple[Atom, ...]]:
        return self.point, self.times, self.directions


class Rule(Protocol):
    """An identity, as the calculus uses it. Each function answers None where it has nothing to
    say."""

    @property
    def name(self) -> str: ...

    def on_map(self, calculus: Calculus, atom: MapAtom) -> State | None:
        """Rewrites a flow map at the moment it is made."""

    def start_derivative(self, calculus: Calculus, atom: MapAtom) -> State | None:
        """The partial derivative in the start time."""

    def end_derivative(self, calculus: Calculus, atom: MapAtom) -> State | None:
        """The partial derivative in the end time."""


class Calculus:
    """Makes states and atoms. Holds the rules in force; nothing is shared between two of them."""

    def __init__(self, scalars: Scalars, rules: Sequence[Rule], clock: Clock) -> None:
        self.scalars = scalars
        scalars.clock = clock
        self.rules = tuple(rules)
        self.clock = clock
        self._known: dict[object, Atom] = {}
        self.zero = State(scalars, {})

    def active(self, name: str) -> bool:
        return any(rule.name == name for rule in self.rules)

    def _intern(self, key: object, make: Callable[[int], Atom]) -> Atom:
        found = self._known.get(key)
        if found is None:
            self.clock.look()
            found = self._known[key] = make(len(self._known))
        return found

    def single(self, atom: Atom) -> State:
        return State(self.scalars, {atom: self.scalars.one})

    def symbol(self, name: str) -> State:
        return self.single(self._intern(("symbol", name), lambda n: Symbol(n, name)))

    def expand(
        self, directions: Sequence[State], make: Callable[[tuple[Atom, ...]], State]
    ) -> State:
        """Multilinearity: `make` on every choice of one atom per direction, with coefficients."""
        if not directions:
            return make(())
        total = self.zero
        for choice in product(*(d.terms.items() for d in directions)):
            coefficient = self.scalars.one
            for _, c in choice:
                coefficient = coefficient * c
            atoms = tuple(sorted((a for a, _ in choice), key=lambda a: a.serial))
            total = total + make(atoms).scaled(coefficient)
        return total

    def flow(
        self,
        field: Field,
        point: State,
        start: Element,
        end: Element,
        directions: Sequence[State] = (),
        orders: tuple[int, int] = (0, 0),
    ) -> State:
        """The flow map of a field, or its derivative, reduced by the rules in force."""
        return self.expand(
            directions, lambda atoms: self._flow(field, point, start, end, atoms, orders)
        )

    def _flow(
        self,
        field: Field,
        point: State,
        start: Element,
        end: Element,
        directions: tuple[Atom, ...],
        orders: tuple[int, int],
    ) -> State:
        if field[0] == "zero":
            if orders != (0, 0) or len(directions) > 1:
                return self.zero
            return self.single(directions[0]) if directions else point
        key = ("map", field, point, start, end, directions, orders)
        known = self._known.get(key)
        if known is not None:
            return self.single(known)
        candidate = MapAtom(-1, field, point, start, end, directions, orders)
        for rule in self.rules:
            reduced = rule.on_map(self, candidate)
            if reduced is not None:
                return reduced
        return self.single(
            self._intern(key, lambda n: MapAtom(n, field, point, start, end, directions, orders))
        )

    def velocity(
        self,
        field: Field,
        point: State,
        time: Element,
        directions: Sequence[State] = (),
        order: int = 0,
    ) -> State:
        """The marginal velocity of a field, or its derivative."""
        if field[0] == "zero":
            return self.zero

        def make(atoms: tuple[Atom, ...]) -> State:
            key = ("velocity", field, point, time, order, atoms)
            return self.single(
                self._intern(key, lambda n: VelocityAtom(n, field, point, time, order, atoms))
            )

        return self.expand(directions, make)

    def function(
        self,
        name: Field,
        point: State,
        times: tuple[Element, ...],
        directions: Sequence[State] = (),
        orders: tuple[int, ...] | None = None,
    ) -> State:
        """An unknown function, or its derivative."""
        powers = orders or (0,) * len(times)

        def make(atoms: tuple[Atom, ...]) -> State:
            key = ("function", name, point, times, powers, atoms)
            return self.single(
                self._intern(key, lambda n: FunctionAtom(n, name, point, times, powers, atoms))
            )

        return self.expand(directions, make)

    def again(
        self,
        atom: Atom,
        point: State,
        times: tuple[Element, ...],
        directions: Sequence[State],
        whose: Field | None = None,
    ) -> State:
        """The same kind of atom at another place, or of another flow, reduced afresh."""
        whose = atom.whose if whose is None else whose
        match atom:
            case MapAtom():
                return self.flow(whose, point, times[0], times[1], directions, atom.orders)
            case VelocityAtom():
                return self.velocity(whose, point, times[0], directions, atom.order)
            case FunctionAtom():
                return self.function(whose, point, times, directions, atom.orders)
        return self.single(atom)
