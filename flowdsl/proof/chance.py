"""What the randomness of a row does to its gradient.

Given what the network sees, a row's gradient is slope * 2 <variation, residual>. Its mean is not
that of its noiseless part where two factors share a noise: where gradient flows through what
multiplies the conditional velocity, and where a number made of the sample (the norm of its
velocity) multiplies the residual. `sizes` finds such numbers, `surviving` the products that keep a
mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.expand import Counts, counts
from flowdsl.calculus.interpret import Reader
from flowdsl.calculus.state import Atom, State, Symbol
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.show import ratio
from flowdsl.spec.core import Apply, Draw, Expr, Given, Kind, PathState, PathVelocity, children
from flowdsl.spec.operations import OPERATIONS
from flowdsl.truth.sample import NOISES

UNKNOWN = frozenset({"?"})  #: of a number that may share any noise


@dataclass(frozen=True)
class Size:
    """A number made of the sample: which noises are in it, and whether it is a function of the
    row's own residual alone."""

    expr: Expr
    noises: frozenset[str]
    own: bool

    @property
    def text(self) -> str:
        return self.expr.span.text if self.expr.span is not None else "a number of the sample"


def sizes(study: Study, base: PathState) -> dict[int, Size]:
    """The random numbers among the coefficients of a study, by their generator."""
    scalars = study.context.scalars
    used = {
        i
        for state in (study.residual, study.variation)
        for c in state.terms.values()
        for i in scalars.generators_in(c)
    }
    found = {}
    for index, key in scalars.opaques.items():
        if index in used and isinstance(key, Expr):
            size = measured(study, base, key)
            if size.noises:
                found[index] = size
    return found


def measured(study: Study, base: PathState, expr: Expr) -> Size:
    """What is random in a number, with every network at the truth."""
    noises: set[str] = set()
    own = True
    for node in reductions(expr):
        here = _noises_of(study, base, node)
        noises |= here
        if here:
            own = own and _is_own(study, node)
    return Size(expr, frozenset(noises), own and bool(noises))


def reductions(expr: Expr) -> list[Apply]:
    """The outermost reductions of states to numbers; means over the batch are left out, which do
    not depend on the row."""
    if isinstance(expr, Apply):
        shape = OPERATIONS[expr.op].shape
        if shape == "batch":
            return []
        if shape == "reduction":
            return [expr]
    return [node for child in children(expr) for node in reductions(child)]


def _noises_of(study: Study, base: PathState, node: Apply) -> set[str]:
    found: set[str] = set()
    for arg in node.args:
        state = _read(study, arg)
        if state is None:
            if varies(arg, base):
                found |= UNKNOWN
            continue
        for atom in state.atoms():
            if isinstance(atom, Symbol) and atom.name in NOISES:
                found.add(atom.name)
    return found


def _read(study: Study, expr: Expr) -> State | None:
    reader = Reader(study.context, study.networks, study.row)
    try:
        return reader.state(expr, False)
    except (Undecided, Pole):
        return None


def _is_own(study: Study, node: Apply) -> bool:
    """Is this the size of a multiple of the residual?"""
    states = [_read(study, arg) for arg in node.args]
    return all(s is not None and ratio(study.residual, s) is not None for s in states)


def varies(node: Expr, base: PathState) -> bool:
    """Does anything in a tree vary when the row's state is known?"""
    if node == base:
        return False
    if isinstance(node, Apply) and OPERATIONS[node.op].shape == "batch":
        return False
    if isinstance(node, PathVelocity | PathState) or node in (Given("data"), Given("noise")):
        return True
    if isinstance(node, Draw) and node.kind is Kind.STATE:
        return True
    return any(varies(child, base) for child in children(node))


# products


@dataclass(frozen=True)
class Covariance:
    """The parts of a variation and of a residual whose product keeps a mean.

    `sizes` are the numbers of the sample without which it would have none.
    """

    variation: State
    residual: State
    sizes: tuple[Size, ...] = ()


def surviving(variation: State, residual: State, known: Mapping[int, Size]) -> Covariance | None:
    """E <variation, residual>, or None when every product of two terms has the mean zero."""
    scalars = variation.scalars
    moves: dict[Atom, object] = {}
    rests: dict[Atom, object] = {}
    blamed: dict[Size, None] = {}
    for a, c in variation.terms.items():
        for b, d in residual.terms.items():
            pair = _together(counts(a, NOISES), counts(b, NOISES))
            if pair is None:
                raise Undecided("the gradient depends on the conditional velocity's place")
            own = [known[i] for x in (c, d) for i in scalars.generators_in(x) if i in known]
            single = {name for name, count in pair.items() if count == 1}
            shared = [s for s in own if s.noises & (single | UNKNOWN)]
            left = single - {n for s in shared for n in s.noises}
            if not pair or (left and not any(s.noises & UNKNOWN for s in shared)):
                continue
            moves[a], rests[b] = c, d
            blamed.update(dict.fromkeys(shared))
    if not moves:
        return None
    return Covariance(State(scalars, moves), State(scalars, rests), tuple(blamed))


def _together(one: Counts | None, other: Counts | None) -> Counter[str] | None:
    if one is None or other is None:
        return None
    return Counter(dict(one)) + Counter(dict(other))


def covariance(study: Study, known: Mapping[int, Size]) -> Covariance | None:
    """What is left of a row's mean gradient where the mean residual is zero.

    A network that learns at a place which depends on the noise is expanded to first order in the
    noise: for some network, and some data, that is not zero.
    """
    series, scalars = study.context.series, study.context.scalars
    try:
        return surviving(study.variation, study.residual, known)
    except Undecided:
        if study.parts.inside:
            raise
    weak = scalars.small()
    try:
        near = series.weakened(study.variation, NOISES, scalars.generator(weak))
        first = series.coefficient(near, weak, 0) + series.coefficient(near, weak, 1)
    finally:
        scalars.release()
    found = surviving(first, study.residual, known)
    if found is None:
        raise Undecided("the gradient depends on the conditional velocity's place")
    return found


@dataclass(frozen=True)
class Slope:
    """The mean gradient in a small quantity: its order, and what it is made of there."""

    order: int
    leading: Covariance


def mean_gradient(
    analysis: Analysis, study: Study, known: Mapping[int, Size], highest: int
) -> Slope | None:
    """The leading order of E <variation, residual> in the small quantity of a study."""
    series, e = study.context.series, analysis.small
    moves = _Coefficients(study, study.variation, e)
    rests = _Coefficients(study, study.residual, e)
    low = series.lowest(study.variation, e), series.lowest(study.residual, e)
    for total in range(sum(low), highest + 1):
        found = [
            one
            for i in range(low[0], total - low[1] + 1)
            if (one := _mean(moves.at(i), rests.at(total - i), known)) is not None
        ]
        if found:
            return Slope(total, _sum(found))
    return None


def _mean(variation: State, residual: State, known: Mapping[int, Size]) -> Covariance | None:
    """All of E <variation, residual>, the means of the two included."""
    plain_moves = _plain(variation)
    plain_rests = _plain(residual)
    found = surviving(variation, residual, known)
    if not plain_moves or not plain_rests:
        return found
    if found is None:
        return Covariance(plain_moves, plain_rests)
    return _sum([found, Covariance(plain_moves, plain_rests)])


def _plain(state: State) -> State:
    """The terms without noise."""
    kept = {a: c for a, c in state.terms.items() if counts(a, NOISES) == frozenset()}
    return State(state.scalars, kept)


def _sum(found: Iterable[Covariance]) -> Covariance:
    moves: dict[Atom, object] = {}
    rests: dict[Atom, object] = {}
    blamed: dict[Size, None] = {}
    for one in found:
        moves.update(one.variation.terms)
        rests.update(one.residual.terms)
        blamed.update(dict.fromkeys(one.sizes))
        scalars = one.variation.scalars
    return Covariance(State(scalars, moves), State(scalars, rests), tuple(blamed))


@dataclass
class _Coefficients:
    """The coefficients of a state's series, each computed once."""

    study: Study
    state: State
    e: int

    def __post_init__(self) -> None:
        self._known: dict[int, State] = {}

    def at(self, order: int) -> State:
        if order not in self._known:
            series = self.study.context.series
            self._known[order] = series.coefficient(self.state, self.e, order)
        return self._known[order]
