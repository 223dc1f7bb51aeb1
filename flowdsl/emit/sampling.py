"""How to sample from what an objective learns: the jump of its map, and the marginal velocity.

The velocity is the map's diagonal, d/dr of `map(z, t, r)` at r = t; without a map, the path is
solved for it from what the network is regressed on (`regression`). Beside these stand what a
sampler must know of the path: its states, and the times through which it leads.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from flowdsl.emit.ends import first_path, sampling_clock
from flowdsl.emit.inner import INNER, OUTER, TIME, Inner, inner_of
from flowdsl.emit.regression import STATE, decided, regression
from flowdsl.ir.algebra import slope
from flowdsl.ir.graph import Graph, Node, Output
from flowdsl.ir.lower import Lowering
from flowdsl.ir.ranges import of_draw
from flowdsl.passes.fold import fold
from flowdsl.spec.core import (
    Constant,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Level,
    Number,
    PathState,
    PathVelocity,
    Stop,
    replace_formals,
    transform,
    walk,
)
from flowdsl.spec.objective import FlowMap, Objective


@dataclass(frozen=True)
class Sampler:
    """One function for sampling: its graph has one output, over the givens `states`, `times` and
    the conditions. `local` are the names that givens of the graph have in the file.
    """

    name: str
    graph: Graph
    states: tuple[str, ...]
    times: tuple[str, ...]
    local: dict[str, str]
    conditions: tuple[tuple[str, Fraction], ...]
    meaning: str
    calls: bool = True  # whether it calls networks, and so takes them and the label

    @property
    def state(self) -> str:
        return self.states[0] if self.states else ""

    @property
    def uses_label(self) -> bool:
        return any(self.graph[at].detail == "label" for at in self.graph.used)


def samplers(objective: Objective) -> list[Sampler]:
    """The functions with which one can sample from what this objective learns."""
    found = []
    flow = objective.maps.get("map")
    if flow is not None and _is_jump(flow):
        found.append(_jump(objective, flow))
    inner = inner_of(objective)
    found += _velocities(objective, flow) if inner is None else _inner(objective, inner)
    return [*found, *_of_path(objective)]


def predicts_velocity(objective: Objective) -> bool:
    """Whether the velocity is what a network returns, and was not solved for."""
    solved = None if objective.maps.get("map") or inner_of(objective) else regression(objective)
    return solved is None or solved.direct


def learns_map(objective: Objective) -> bool:
    """Whether samples are made by jumps of a learned map, not by integrating a velocity."""
    flow = objective.maps.get("map")
    return flow is not None and _is_jump(flow)


def _is_jump(flow: FlowMap) -> bool:
    """Maps over a state and times only: what a sampler can call."""
    allowed = {flow.state, flow.start, flow.end}
    return all(
        node in allowed
        for node in walk(flow.body)
        if isinstance(node, Formal | PathState | PathVelocity)
    ) and not any(
        node in (Given("data"), Given("noise"))
        or (isinstance(node, Draw) and node.kind in (Kind.TIME, Kind.STATE))
        for node in walk(flow.body)
    )


def sampling_conditions(objective: Objective) -> dict[str, tuple[Expr, Fraction]]:
    """Scalar conditions of networks, with the expression that the map passes (the loss, where no
    map does) and the value when sampling.

    What `sample` says comes first. Else a drawn condition takes the value it has on special rows,
    if there is one (`lo = 0 on diagonal`), else the lower end of its law's support.
    """
    said = dict(objective.sampler)
    found: dict[str, tuple[Expr, Fraction]] = {}
    roots = [m.body for m in objective.maps.values()] + [term.loss for term in objective.terms]
    for root in roots:
        for node in walk(root):
            if not isinstance(node, Evaluate) or objective.networks[node.network].frozen:
                continue
            for name, value in node.conditions:
                is_number = objective.kind(value) in (Kind.SCALAR, Kind.TIME)
                if not is_number or name in found or _is_fixed(value):
                    continue
                told = said.get(name)
                default = _default(objective, value) if told is None else _exact(objective, told)
                if default is not None:
                    found[name] = (value, default)
    return found


def _is_fixed(value: Expr) -> bool:
    return isinstance(value, Number) or not any(isinstance(n, Draw | Constant) for n in walk(value))


def _default(objective: Objective, value: Expr) -> Fraction | None:
    for truth in (False, True):
        plain = decided(value, truth)
        if not any(isinstance(node, Draw) for node in walk(plain)):
            return _exact(objective, plain)
    draws = [node for node in walk(decided(value, False)) if isinstance(node, Draw)]
    low, _ = of_draw(draws[0].name, objective)
    return Fraction(repr(low)) if abs(low) != float("inf") else Fraction(0)


def _exact(objective: Objective, expr: Expr) -> Fraction | None:
    lowering = Lowering(objective)
    graph = fold(
        lowering.builder.finish([Output("value", lowering.expr(_values(objective, expr)))])
    )
    node = graph[graph.outputs[0].loss]
    return node.value if node.op == "number" else None


def _values(objective: Objective, expr: Expr) -> Expr:
    return transform(
        expr,
        lambda e: Number(objective.constants[e.name]) if isinstance(e, Constant) else e,
    )


def _made(
    objective: Objective,
    name: str,
    body: Expr,
    state: Formal,
    times: tuple[tuple[Formal, str], ...],
    meaning: str,
    more: tuple[Formal, ...] = (),
) -> Sampler | None:
    """The sampler of a body over formals, with drawn rows undone and conditions as keywords.

    `more` are states beside the first.
    """
    conditions = sampling_conditions(objective)
    keywords = {value: key for key, (value, _) in conditions.items()}
    body = transform(body, lambda e: Formal(keywords[e], Kind.SCALAR) if e in keywords else e)
    body = transform(decided(body, False), lambda e: e.body if isinstance(e, Stop) else e)
    if any(isinstance(node, Draw) and node.name != "noise" for node in walk(body)):
        return None
    states = {state.name: "y" if more else "z", **{other.name: "z" for other in more}}
    formals = {name: Node("given", (), Kind.STATE, Level.ROW, name) for name in states}
    for time, _ in times:
        formals[time.name] = Node("given", (), Kind.TIME, Level.ROW, time.name)
    for key in conditions:
        formals[key] = Node("given", (), Kind.SCALAR, Level.ROW, key)
    lowering = Lowering(objective, formals)
    graph = _folded(lowering, name, body)
    used = {str(graph[at].detail) for at in graph.used if graph[at].op == "given"}
    return Sampler(
        name,
        graph,
        tuple(states.values()),
        tuple(shown for _, shown in times),
        {**states, **{time.name: shown for time, shown in times}},
        tuple((key, value) for key, (_, value) in conditions.items() if key in used),
        meaning,
    )


def _jump(objective: Objective, flow: FlowMap) -> Sampler:
    times = [(flow.start, "start"), (flow.end, "end")]
    formals = tuple((t, shown) if isinstance(t, Formal) else (Formal(f"_{shown}", Kind.TIME), shown)
                    for t, shown in times)  # fmt: skip
    sampler = _made(
        objective,
        "jump",
        flow.body,
        flow.state,
        formals,
        "The flow map: where a state z at time `start` lies at time `end`; times are (batch,).",
    )
    assert sampler is not None
    return sampler


_VELOCITY = "The velocity dz/dt that is learnt, at a state z and time (batch,)."
_DENOISED = "The mean of the data, given that the path is at a state z at time (batch,)."
_INNER = "The inner flow map under the state z at `time`: where y at `start` lies at `end`."
_OUTCOME = "The data of the path, from the end y of the inner flow and the state z at `time`."
_PATH = "The path: the state between data and noise at a time (batch,)."
_CLOCK = "The time at which a sampler stands, from its start (progress 0) to its end (1)."


def _velocities(objective: Objective, flow: FlowMap | None) -> list[Sampler]:
    """The velocity; and the data, where the network predicts neither map nor velocity."""
    if flow is not None:
        if not (_is_jump(flow) and isinstance(flow.start, Formal) and isinstance(flow.end, Formal)):
            return []
        rate = slope(flow.body, flow.end)
        if rate is None:
            return []
        body = replace_formals(rate, {flow.end.name: flow.start})
        found = [_made(objective, "velocity", body, flow.state, ((flow.start, "time"),), _VELOCITY)]
        return [sampler for sampler in found if sampler is not None]
    solved = regression(objective)
    if solved is None:
        return []
    times = ((solved.time, "time"),)
    found = [_made(objective, "velocity", solved.velocity, STATE, times, _VELOCITY)]
    if not solved.direct:
        found.append(_made(objective, "denoised", solved.data, STATE, times, _DENOISED))
    return [sampler for sampler in found if sampler is not None]


def _inner(objective: Objective, inner: Inner) -> list[Sampler]:
    """The inner map, and the data that its end and the outer state imply."""
    flow = inner.flow
    ends = [(flow.start, "start"), (flow.end, "end")]
    times = [(t, shown) for t, shown in ends if isinstance(t, Formal)]
    body = inner.body
    jump = _made(objective, "inner", body, INNER, (*times, (TIME, "time")), _INNER, (OUTER,))
    data = _made(objective, "outcome", inner.data, INNER, ((TIME, "time"),), _OUTCOME, (OUTER,))
    return [] if jump is None or data is None else [jump, data]


def _of_path(objective: Objective) -> list[Sampler]:
    """The states of the path, and the sampler's times where `sample` says them."""
    path = first_path(objective)
    if path is None or any(isinstance(node, Draw) for node in walk(path.body)):
        return []
    formals = {
        **{end: Node("given", (), Kind.STATE, Level.ROW, end) for end in ("data", "noise")},
        path.time: Node("given", (), Kind.TIME, Level.ROW, path.time),
    }
    graph = _folded(Lowering(objective, formals), "path", path.body)
    local = {path.time: "time"}
    found = [Sampler("path", graph, ("data", "noise"), ("time",), local, (), _PATH, calls=False)]
    clock = sampling_clock(objective)
    if clock is not None:
        graph = _folded(Lowering(objective), "clock", clock)
        found.append(Sampler("clock", graph, (), ("progress",), {}, (), _CLOCK, calls=False))
    return found


def _folded(lowering: Lowering, name: str, body: Expr) -> Graph:
    return fold(lowering.builder.finish([Output(name, lowering.expr(body))]))
