"""The target, derived: differentiate the map, use what the flow does, and solve for the network.

With the map φ = A z + B N and the start time moving along the flow, the landing point stays,
d/dt[φ] = 0, so

    N = -(A' z + A w + B d/dt[N]) / B',

and with the end time moving, d/ds[φ] = v(φ, s), so N = (v(φ, s) - A' z - B d/ds[N]) / B'. Here ' is
the derivative in the time that moves, and w the direction along which the state moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from flowdsl.calculus.errors import Clock, Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.write import element_expr
from flowdsl.diagnostics import Span, fail
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.derivation import Derivation, Step, negative, oriented, product
from flowdsl.spec.core import (
    ONE,
    Apply,
    Constant,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Number,
    PathState,
    PathVelocity,
    Stop,
    add,
    replace_formals,
    sub,
    walk,
)
from flowdsl.spec.notation import NOWHERE, Notation, times_of
from flowdsl.spec.objective import FlowMap, Objective
from flowdsl.syntax.tree import Call, Derivative, Expression, Name
from flowdsl.truth.cases import Case
from flowdsl.truth.maps import MapNetwork, shape_of, single_call

ZERO_FRACTION = Fraction(0)


def derive(
    objective: Objective, case: Case | None = None, analysis: Analysis | None = None
) -> Derivation:
    """Derive the target of an objective from its map and `differentiate`; `case` fixes the kind of
    row.

    Raises `Undecided` where the map is not linear in one network, or nothing says which time moves.
    """
    analysis = analysis or Analysis(objective, (), Clock(20.0))
    moving = objective.moving
    flow_map = next((m for m in objective.maps.values()), None)
    if moving is None or flow_map is None:
        raise Undecided("a target is derived from a map and `differentiate`")
    formals = [f for f in (flow_map.start, flow_map.end) if isinstance(f, Formal)]
    chosen = next((f for f in formals if f.name == moving.time), None)
    if chosen is None:
        raise Undecided(f"`{moving.time}` is not a time of the map")

    def on_rows(expr: Expr) -> Expr:
        return expr if case is None else case.reduce(expr)

    try:
        return _Deriver(analysis, flow_map, chosen, on_rows).run()
    except Pole:
        raise Undecided("the derivation divides by zero") from None


def derive_if_possible(objective: Objective) -> Derivation | None:
    """The derivation, or None where nothing implies the target."""
    try:
        return derive(objective)
    except Undecided:
        return None


def derive_or_fail(objective: Objective) -> Derivation:
    """The derivation, or a `DiagnosticError` that says why there is none."""
    try:
        return derive(objective)
    except Undecided as undecided:
        raise fail(
            "derive",
            f"no target can be derived for {objective.name}: {undecided.reason}",
            undecided.span,
            hint="a spec with `map` and `differentiate` has one, such as meanflow",
        ) from None


class _Deriver:
    """One derivation: the map's weights, the moving time, and the pieces put together."""

    def __init__(
        self,
        analysis: Analysis,
        flow_map: FlowMap,
        moving: Formal,
        on_rows: Callable[[Expr], Expr],
    ) -> None:
        self.analysis, self.objective = analysis, analysis.objective
        self.flow_map, self.moving, self.on_rows = flow_map, moving, on_rows
        self.own = MapNetwork(analysis.context(), shape_of(flow_map, on_rows))
        self.scalars = analysis.scalars
        written = on_rows(replace_formals(flow_map.body, self._values()))
        self.differences = frozenset(
            n.args for n in walk(written) if isinstance(n, Apply) and n.op == "sub"
        )

    def run(self) -> Derivation:
        values = self._values()
        state = values[self.flow_map.state.name]
        network = self._network(values)
        a, b, slope_a, slope_b = self._weights()
        if not slope_b:
            raise Undecided("the derivative of the map does not contain the network")
        landing = Formal("φ", Kind.STATE)
        start_moves = self.moving == self.flow_map.start
        along = self._along(values) if start_moves else None
        write = self._writer(values)
        derivative = self._derivative(network, along, values, write)
        body = self._sum([(a, state), (b, network)], write)
        terms: list[tuple[Element, Expr]] = [(slope_a, state)]
        if along is not None:
            terms.append((a, along))
        terms += [(slope_b, network), (b, derivative)]
        moved = self._sum(terms, write)
        mapped = self.on_rows(replace_formals(self.flow_map.body, values))
        rest = [(-c / slope_b, e) for c, e in terms if e is not network]
        if not start_moves:
            rest = [(c / slope_b, e) for c, e in self._velocity(values, mapped)] + rest
        rest.sort(key=lambda item: item[1] is derivative)
        target = self._sum(rest, write)
        time = self.moving.name
        speed, speed_there = Formal("speed", Kind.STATE), Formal("speed there", Kind.STATE)
        identity = "eulerian" if start_moves else "lagrangian"
        law = (
            "start moves along the flow: the landing point stays"
            if start_moves
            else "end moves: the landing point moves with the velocity there"
        )
        shown_right = Number(ZERO_FRACTION) if start_moves else speed_there
        phi = Name(NOWHERE, landing.name)
        names: dict[Expr, str | Expression] = {
            mapped: self._map_call(values),
            speed: Derivative(NOWHERE, time, phi),
            speed_there: Call(NOWHERE, "v", (phi, Name(NOWHERE, time))),
            **self._names(),
        }
        notation = replace(self._notation(), names=names, totals={derivative: time})
        unnamed = replace(notation, names={e: n for e, n in names.items() if e != mapped})
        steps = (
            Step("the map", landing, body, unnamed),
            Step(f"{law} ({identity} identity)", speed, shown_right),
            Step("differentiate the map", speed, moved),
            Step("solve for the network", network, target),
        )
        return Derivation(identity, time, network, Stop(target), steps, notation)

    def _notation(self) -> Notation:
        objective = self.objective
        return Notation(self._names(), times_of(objective), objective.moving)

    def _map_call(self, values: dict[str, Expr]) -> Expression:
        """`map(z, t, s)` for the map's body."""
        notation, flow_map = self._notation(), self.flow_map
        times = [values[f.name] if isinstance(f, Formal) else f
                 for f in (flow_map.start, flow_map.end)]  # fmt: skip
        shown = tuple(notation.tree(e) for e in (values[flow_map.state.name], *times))
        return Call(NOWHERE, flow_map.name, shown)

    # pieces

    def _values(self) -> dict[str, Expr]:
        """The formals of the map as the names of the spec stand for."""
        definitions = self.objective.definitions
        values: dict[str, Expr] = {}
        for formal in (self.flow_map.start, self.flow_map.end):
            if isinstance(formal, Formal):
                if formal.name not in definitions:
                    raise Undecided(f"the spec draws no time `{formal.name}`")
                values[formal.name] = self.on_rows(definitions[formal.name])
        start = self.flow_map.start
        time = values[start.name] if isinstance(start, Formal) else start
        values[self.flow_map.state.name] = PathState(
            self.flow_map.path, time, Given("data"), Given("noise")
        )
        return values

    def _network(self, values: dict[str, Expr]) -> Evaluate:
        call = shape_of_call(self.flow_map)
        network = self.on_rows(replace_formals(call, values))
        assert isinstance(network, Evaluate)
        return network

    def _weights(self) -> tuple[Element, Element, Element, Element]:
        """A, B and their derivatives in the moving time."""
        scalars, conditions = self.scalars, self._condition_symbols()
        ends = [scalars.symbol("_0"), scalars.symbol("_1")]
        place = 0 if self.moving == self.flow_map.start else 1
        a, b = self.own.coefficients(ends[0], ends[1], conditions)
        index = scalars.index(f"_{place}")
        return a, b, scalars.derivative(a, index), scalars.derivative(b, index)

    def _condition_symbols(self) -> tuple[tuple[str, object], ...]:
        """A map's scalar conditions as opaque scalars, so that they can be written back."""
        return tuple(
            (name, self.scalars.opaque(("condition", name), name))
            for name, value in self.own.shape.call.conditions
            if isinstance(value, Formal)
        )

    def _writer(self, values: dict[str, Expr]) -> Callable[[Element], Expr]:
        scalars = self.scalars
        leaves: dict[int, Expr] = {}
        for k, formal in enumerate((self.flow_map.start, self.flow_map.end)):
            if isinstance(formal, Formal):
                leaves[scalars.index(f"_{k}")] = values[formal.name]
        call = shape_of_call(self.flow_map)
        for name, element in self._condition_symbols():
            (index,) = scalars.generators_in(element)
            leaves[index] = self.on_rows(dict(call.conditions)[name])

        def leaf(index: int) -> Expr:
            if index in leaves:
                return leaves[index]
            return Constant(scalars.name_of(index))

        return lambda x: element_expr(scalars, x, leaf)

    def _along(self, values: dict[str, Expr]) -> Expr:
        moving = self.objective.moving
        assert moving is not None
        if moving.along is not None:
            return self.on_rows(moving.along)
        state = values[self.flow_map.state.name]
        assert isinstance(state, PathState)
        return PathVelocity(state.path, state.time, state.data, state.noise)

    def _derivative(
        self,
        network: Evaluate,
        along: Expr | None,
        values: dict[str, Expr],
        write: Callable[[Element], Expr],
    ) -> Evaluate:
        """The network differentiated as its arguments move."""
        call = shape_of_call(self.flow_map)
        tangents = [self._tangent(arg, along, values, write) for arg in call.args]
        return Evaluate(network.network, network.head, network.args, network.conditions,
                        (tuple(tangents),))  # fmt: skip

    def _tangent(
        self,
        arg: Expr,
        along: Expr | None,
        values: dict[str, Expr],
        write: Callable[[Element], Expr],
    ) -> Expr | None:
        """How one argument of the network moves: c' z + c w for a state c z."""
        if arg == self.moving:
            return ONE
        if arg == self.flow_map.state:
            return along
        if isinstance(arg, Formal):
            return None
        scalars = self.scalars
        index = scalars.index("_0" if self.moving == self.flow_map.start else "_1")
        if self.objective.kind(arg) is not Kind.STATE:
            slope = scalars.derivative(self._read(arg), index)
            return write(slope) if slope else None
        ends = scalars.symbol("_0"), scalars.symbol("_1")
        scale = self.own.input_scale(*ends, self._condition_symbols())
        drift = scalars.derivative(scale, index)
        if not drift:
            if along is None:
                return None
            state = self.flow_map.state.name
            return self.on_rows(replace_formals(arg, {**values, state: along}))
        moved = [(drift, values[self.flow_map.state.name])]
        return self._sum([*moved, (scale, along)] if along is not None else moved, write)

    def _read(self, arg: Expr) -> Element:
        """A time that the network sees, as a scalar in the map's times."""
        ends = self.scalars.symbol("_0"), self.scalars.symbol("_1")
        return self.own.scalar(arg, *ends, self._condition_symbols())

    def _velocity(self, values: dict[str, Expr], landing: Expr) -> list[tuple[Element, Expr]]:
        """The velocity where the map lands, by its own diagonal there: A' x + B' N(x, s, s)."""
        scalars = self.scalars
        conditions = self._condition_symbols()
        moment, end = scalars.symbol("_0"), scalars.symbol("_1")
        a, b = self.own.coefficients(moment, end, conditions)
        index = scalars.index("_1")
        slopes = [
            scalars.rename(scalars.derivative(x, index), scalars.index("_0"), index) for x in (a, b)
        ]
        assert isinstance(self.flow_map.end, Formal)
        start = self.flow_map.start
        at_end = values[self.flow_map.end.name]
        if not isinstance(start, Formal):  # its network knows no other start than this one
            return [(scalars.one, self._teacher(landing, at_end))]
        there = {**values, self.flow_map.state.name: landing, start.name: at_end}
        return [(slopes[0], landing), (slopes[1], self._network(there))]

    def _teacher(self, landing: Expr, time: Expr) -> Evaluate:
        """The velocity by a frozen network, for a map that starts at one time alone."""
        shown = {"label": Given("label"), **dict(shape_of_call(self.flow_map).conditions)}
        for network in self.objective.networks.values():
            kinds = [kind for _, kind in network.arguments]
            if not network.frozen or len(kinds) != 2 or kinds[0] is not Kind.STATE:
                continue
            if kinds[1] in (Kind.TIME, Kind.SCALAR) and set(network.conditions) <= set(shown):
                conditions = tuple((name, shown[name]) for name in sorted(network.conditions))
                head = next(name for name, kind in network.heads if kind is Kind.STATE)
                return Evaluate(network.name, head, (landing, time), conditions)
        raise Undecided(
            f"the map starts at {self._start_text()} alone, so that its network does not give the "
            "velocity where it lands, and no frozen network does",
            self.flow_map.span,
        )

    def _start_text(self) -> str:
        """The one time at which the map starts, as text."""
        return Notation().text(self.flow_map.start)

    def _sum(self, terms: list[tuple[Element, Expr]], write: Callable[[Element], Expr]) -> Expr:
        """c1 e1 + c2 e2 + … with signs drawn into the sums."""
        total: Expr | None = None
        for c, expr in terms:
            if not c:
                continue
            minus = self.scalars.text(c).startswith("-")
            factor = -c if minus else c
            term = expr
            if factor != 1:
                turned, written = oriented(write(factor), self.differences)
                minus ^= turned
                term = product(written, expr)
            if total is None:
                total = negative(term) if minus else term
            else:
                total = sub(total, term) if minus else add(total, term)
        return Number(ZERO_FRACTION) if total is None else total

    def _names(self) -> dict[Expr, str | Expression]:
        """Names of the spec for the expressions they stand for, on rows of this kind."""
        moving = self.objective.moving
        found: dict[Expr, str | Expression] = {}
        for name, expr in self.objective.definitions.items():
            kind = self.objective.kind(expr)
            whole = moving is not None and moving.along == expr
            if kind in (Kind.TIME, Kind.SCALAR, Kind.LABEL) or whole:
                found[expr] = name
        for expr, shown in list(found.items()):
            found.setdefault(self.on_rows(expr), shown)
        if moving is not None and moving.along is not None and moving.written is not None:
            found.setdefault(self.on_rows(moving.along), moving.written)
        return {e: n for e, n in found.items() if not isinstance(e, Number | PathVelocity)}


def shape_of_call(flow_map: FlowMap) -> Evaluate:
    """The network call of a map, over its formals."""
    return single_call(flow_map, flow_map.body)


def derive_target(objective: Objective, name: str, span: Span) -> tuple[Expr, Expr]:
    """Prediction and target of `target derived`, for the resolver. Raises a DiagnosticError."""
    try:
        found = derive(objective)
    except Undecided as undecided:
        raise fail(
            "derive", f"the target `{name}` cannot be derived: {undecided.reason}", span,
            hint="write the target out, or give a map of two times and say which one moves",
        ) from None  # fmt: skip
    return found.prediction, found.target


def derived_text(analysis: Analysis) -> str:
    """The derived identity, `u(z, t, r) = …`; empty where there is none."""
    try:
        found = derive(analysis.objective, None, analysis)
    except (Undecided, Pole):
        return ""
    target = found.target
    body = target.body if isinstance(target, Stop) else target
    whose = "start" if found.identity == "eulerian" else "end"
    law = f"{found.identity.capitalize()} identity, {whose} time {found.moving}"
    return f"{found.prediction_text} = {found.notation.text(body)}      {law}"
