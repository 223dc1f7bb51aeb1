"""What the network of a map computes when training has succeeded: the map, solved for it.

A map `A(t, s) z + B(t, s) N(c z, …)` with the flow φ in its place gives N = (φ - A z) / B. On the
border, where B is 0, the quotient's Laurent series is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flowdsl.calculus.context import Conditions, Context, numbers_in
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Call, Reader
from flowdsl.calculus.preimage import preimage
from flowdsl.calculus.state import State
from flowdsl.spec.core import (
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Level,
    Null,
    Number,
    transform,
    walk,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import FlowMap
from flowdsl.truth.learnt import hidden_time

Landing = Callable[[Conditions, State, Element, Element], State]


@dataclass(frozen=True)
class Shape:
    """How one map uses its network: the call inside it, and its body with that call's conditions
    named."""

    flow_map: FlowMap
    call: Evaluate
    body: Expr

    @property
    def has_end(self) -> bool:
        return isinstance(self.flow_map.end, Formal)

    @property
    def has_start(self) -> bool:
        return isinstance(self.flow_map.start, Formal)


def shape_of(flow_map: FlowMap, on_rows: Callable[[Expr], Expr]) -> Shape:
    """The shape of a map on the rows that `on_rows` reduces an expression to.

    A condition that is an expression (a guidance scale) becomes a formal: in `map(…)` evaluated at
    another scale every occurrence of it changes, inside the network and out. Raises `Undecided`
    unless the map evaluates one network once.
    """
    call = single_call(flow_map, flow_map.body)
    if call.directions:
        raise Undecided("the map contains a derivative", flow_map.span)
    named = {
        value: Formal(name, Kind.SCALAR)
        for name, value in call.conditions
        if not isinstance(value, Number | Null | Given | Evaluate)
        and level_of(value) is not Level.STEP
    }
    arguments = set(call.args)
    body = on_rows(
        transform(
            flow_map.body,
            lambda node: named[node] if node in named and node not in arguments else node,
        )
    )
    return Shape(flow_map, single_call(flow_map, body), body)


def single_call(flow_map: FlowMap, body: Expr) -> Evaluate:
    """The one network call of a map; networks that only give it features are not counted."""
    calls = {node for node in walk(body) if isinstance(node, Evaluate)}
    calls -= {n for call in calls for _, v in call.conditions for n in walk(v)
              if isinstance(n, Evaluate)}  # fmt: skip
    if len(calls) != 1:
        raise Undecided("the map evaluates its network more than once, or never", flow_map.span)
    return calls.pop()


class _Probe:
    """Stands for the network while a map's coefficients are read."""

    def value(self, call: Call) -> State:
        raise AssertionError("the probe is asked for its symbol")


class _ShapeReader(Reader):
    """Reads a map's body with the symbols Z and N for its state and its network."""

    def _evaluate(self, node: Evaluate, live: bool) -> State:
        return self.context.calculus.symbol("N")


@dataclass
class MapNetwork:
    """The network of a map: reads (A, B, c) at times, and solves for the network."""

    context: Context
    shape: Shape
    _known: dict[object, tuple[Element, Element]] = field(default_factory=dict)

    def _reader(self, start: Element, end: Element, conditions: Conditions) -> _ShapeReader:
        formals: dict[str, Element | State] = dict(numbers_in(conditions))
        flow_map = self.shape.flow_map
        formals[flow_map.state.name] = self.context.calculus.symbol("Z")
        for formal, time in ((flow_map.start, start), (flow_map.end, end)):
            if isinstance(formal, Formal):
                formals[formal.name] = time
        return _ShapeReader(self.context, _Probe(), None, formals)

    def coefficients(
        self, start: Element, end: Element, conditions: Conditions
    ) -> tuple[Element, Element]:
        """A and B of the map `A z + B N` between two times."""
        key = (start, end, conditions, self.context.scalars.kept)
        known = self._known.get(key)
        if known is None:
            value = self._reader(start, end, conditions).state(self.shape.body)
            known = self._known[key] = (self._of(value, "Z"), self._of(value, "N"))
            if len(value.terms) > sum(1 for c in known if c):
                raise Undecided("the map is not linear in its network", self.shape.flow_map.span)
        return known

    def _of(self, value: State, name: str) -> Element:
        atom = self.context.calculus.symbol(name).only()
        return value.terms.get(atom, self.context.scalars.zero) if atom else None

    def input_scale(self, start: Element, end: Element, conditions: Conditions) -> Element:
        """c of the network's state argument `c z`."""
        value = self._reader(start, end, conditions).state(self.shape.call.args[self._state_place])
        scale = self._of(value, "Z")
        if len(value.terms) != 1 or not scale:
            raise Undecided("the network reads something else than the state", self.shape.call.span)
        return scale

    def scalar(self, expr: Expr, start: Element, end: Element, conditions: Conditions) -> Element:
        """A scalar of the map's body between two times."""
        return self._reader(start, end, conditions).scalar(expr)

    @property
    def _state_place(self) -> int:
        network = self.context.objective.networks[self.shape.call.network]
        return next(k for k, (_, kind) in enumerate(network.arguments) if kind is Kind.STATE)

    def times_of(
        self,
        arguments: Sequence[Element],
        conditions: Conditions,
        moment: Element | None = None,
    ) -> tuple[Element, Element]:
        """The map's start and end at which its network would see these times.

        Where they do not tell, the start is `moment`, the time of the state that the network sees.
        """
        scalars, flow_map = self.context.scalars, self.shape.flow_map
        place = self._state_place
        beside = self.context.beside(self.shape.call.network) | {place}
        shown = [arg for k, arg in enumerate(self.shape.call.args) if k not in beside]
        names = [f.name for f in (flow_map.start, flow_map.end) if isinstance(f, Formal)]
        found: dict[str, Element] = {}
        rows: list[tuple[list[Element], Element]] = []
        probes = {name: scalars.symbol(f"_{k}") for k, name in enumerate(names)}
        formals: dict[str, Element | State] = {
            **numbers_in(conditions),
            **probes,
        }
        reader = _ShapeReader(self.context, _Probe(), None, formals)
        for expr, value in zip(shown, arguments, strict=True):
            if isinstance(expr, Formal) and expr.name in names and expr.name not in found:
                found[expr.name] = value
                continue
            read = reader.scalar(expr)
            told = self._inverted(names, read, value, moment)
            if told is not None:
                found.setdefault(*told)
                continue
            slopes = [scalars.derivative(read, scalars.index(f"_{k}")) for k in range(len(names))]
            rest = read
            for k in range(len(names)):
                rest = scalars.at_zero(rest, scalars.index(f"_{k}"))
            if any(scalars.generators_in(s) & {scalars.index(f"_{k}") for k in range(len(names))}
                   for s in slopes):  # fmt: skip
                raise Undecided("the times a network sees are no affine function of the map's",
                                self.shape.call.span)  # fmt: skip
            rows.append((slopes, value - rest))
        self._solve(names, found, rows)
        if len(found) < len(names) and moment is not None and self.shape.has_start:
            self.context.notes.add(hidden_time(self.shape.call.network))
            found[names[0]] = moment
            self._solve(names, found, rows)
        if len(found) < len(names):
            raise Undecided(
                f"{self.shape.call.network} does not see enough to tell the map's times apart",
                self.shape.call.span,
            )
        ends = []
        for formal in (flow_map.start, flow_map.end):
            if isinstance(formal, Formal):
                ends.append(found[formal.name])
            else:
                ends.append(reader.scalar(formal))
        return ends[0], ends[1]

    def _inverted(
        self, names: list[str], read: Element, value: Element, moment: Element | None
    ) -> tuple[str, Element] | None:
        """The one time of the map that a network sees through a function of it, if so it is."""
        scalars = self.context.scalars
        inside = scalars.generators_in(read)
        seen = [k for k in range(len(names)) if scalars.index(f"_{k}") in inside]
        if len(seen) != 1:
            return None
        hints = () if moment is None else (moment,)
        time = preimage(scalars, read, scalars.index(f"_{seen[0]}"), value, hints)
        return None if time is None else (names[seen[0]], time)

    def _solve(
        self,
        names: list[str],
        found: dict[str, Element],
        rows: list[tuple[list[Element], Element]],
    ) -> None:
        """Gauss' elimination, one unknown at a time."""
        progress = True
        while len(found) < len(names) and progress:
            progress = False
            for slopes, value in rows:
                unknown = [k for k, n in enumerate(names) if n not in found and slopes[k]]
                if len(unknown) == 1:
                    (k,) = unknown
                    known = sum(
                        (slopes[j] * found[n] for j, n in enumerate(names) if n in found),
                        self.context.scalars.zero,
                    )
                    found[names[k]] = self.context.scalars.divide(value - known, slopes[k])
                    progress = True
                    break

    def solve(self, call: Call, landing: Landing) -> State:
        """The network's value for which the map lands where `landing` says."""
        start, end = self.times_of(call.times, call.conditions, call.moment)
        _, b = self.coefficients(start, end, call.conditions)
        if not b:
            return self._border(call, start, end, landing)
        scalars = self.context.scalars
        kept = scalars.kept
        if self._vanishes_at_rest(b):  # a derivative on the border: its step must show the pole
            scalars.kept = frozenset()
        try:
            return self._quotient(call, start, end, landing)
        finally:
            scalars.kept = kept

    def _vanishes_at_rest(self, b: Element) -> bool:
        """Is the network's weight zero where the steps of derivatives are?"""
        scalars = self.context.scalars
        for step in scalars.kept:
            b = scalars.at_zero(b, step)
        return not b

    def _quotient(self, call: Call, start: Element, end: Element, landing: Landing) -> State:
        a, b = self.coefficients(start, end, call.conditions)
        point = call.point.over(self.input_scale(start, end, call.conditions))
        return (landing(call.conditions, point, start, end) - point.scaled(a)).over(b)

    def _border(self, call: Call, start: Element, end: Element, landing: Landing) -> State:
        """The limit where the network has no weight in the map, from times nearby."""
        context = self.context
        e = context.scalars.small()
        try:
            step = context.scalars.generator(e)
            by_end = context.calculus.active("lagrangian") or context.calculus.active("tangent")
            by_end = by_end or not context.calculus.active("eulerian")
            if self.shape.has_end and (by_end or not self.shape.has_start):
                end = end + step
            else:
                start = start + step
            _, b = self.coefficients(start, end, call.conditions)
            if not b:
                raise Undecided("the map never uses its network", self.shape.flow_map.span)
            near = self._quotient(call, start, end, landing)
            if context.series.lowest(near, e) < 0 and context.series.coefficient(near, e, -1):
                raise Undecided("the network has a pole on the diagonal", self.shape.flow_map.span)
            return context.series.coefficient(near, e, 0)
        finally:
            context.scalars.release()
