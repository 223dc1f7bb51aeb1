"""How to sample from what an objective learns: the jump of its map, and the marginal velocity.

The velocity is the map's diagonal, d/dr of `map(z, t, r)` at r = t; without a map, the path is
solved for it from what the network is regressed on: with z = a data + b noise and a prediction of p
data + q noise, both conditional means follow, and so does that of a' data + b' noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from flowdsl.ir.algebra import Linear, linear_in, slope, solve_velocity
from flowdsl.ir.graph import Graph, Node, Output
from flowdsl.ir.lower import Lowering
from flowdsl.ir.ranges import evaluate, of_draw
from flowdsl.passes.fold import fold
from flowdsl.spec.core import (
    Apply,
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
    assume,
    replace_formals,
    transform,
    walk,
)
from flowdsl.spec.objective import FlowMap, Objective, Term


@dataclass(frozen=True)
class Sampler:
    """One function for sampling: its graph has one output, over the givens `state`, `times` and the
    conditions.
    """

    name: str
    graph: Graph
    state: str
    times: tuple[str, ...]
    local: dict[str, str]
    conditions: tuple[tuple[str, Fraction], ...]
    meaning: str

    @property
    def uses_label(self) -> bool:
        return any(self.graph[at].detail == "label" for at in self.graph.used)


def samplers(objective: Objective) -> list[Sampler]:
    """The functions with which one can sample from what this objective learns."""
    found = []
    flow = objective.maps.get("map")
    if flow is not None and _is_jump(flow):
        found.append(_jump(objective, flow))
    velocity = _velocity(objective)
    if velocity is not None:
        found.append(velocity)
    return found


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
    """Scalar conditions of networks, with the expression that the loss passes and the value when
    sampling.

    A drawn condition takes the value it has on special rows, if there is one (`lo = 0 on
    diagonal`), else the lower end of its law's support.
    """
    found: dict[str, tuple[Expr, Fraction]] = {}
    roots = [term.loss for term in objective.terms] + [m.body for m in objective.maps.values()]
    for root in roots:
        for node in walk(root):
            if not isinstance(node, Evaluate) or objective.networks[node.network].frozen:
                continue
            for name, value in node.conditions:
                if name != "label" and name not in found and not _is_fixed(value):
                    default = _default(objective, value)
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


def decided(expr: Expr, truth: bool) -> Expr:
    """The expression on rows where every drawn condition has this truth value."""
    facts: dict[Expr, bool] = {
        node: truth for node in walk(expr) if isinstance(node, Draw) and node.kind is Kind.TRUTH
    }
    return assume(expr, facts)


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
) -> Sampler | None:
    """The sampler of a body over formals, with drawn rows undone and conditions as keywords."""
    conditions = sampling_conditions(objective)
    keywords = {value: key for key, (value, _) in conditions.items()}
    body = transform(body, lambda e: Formal(keywords[e], Kind.SCALAR) if e in keywords else e)
    body = transform(decided(body, False), lambda e: e.body if isinstance(e, Stop) else e)
    if any(isinstance(node, Draw) and node.name != "noise" for node in walk(body)):
        return None
    formals = {state.name: Node("given", (), Kind.STATE, Level.ROW, state.name)}
    for time, _ in times:
        formals[time.name] = Node("given", (), Kind.TIME, Level.ROW, time.name)
    for key in conditions:
        formals[key] = Node("given", (), Kind.SCALAR, Level.ROW, key)
    lowering = Lowering(objective, formals)
    graph = fold(lowering.builder.finish([Output(name, lowering.expr(body))]))
    used = {str(graph[at].detail) for at in graph.used if graph[at].op == "given"}
    return Sampler(
        name,
        graph,
        "z",
        tuple(shown for _, shown in times),
        {state.name: "z", **{time.name: shown for time, shown in times}},
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


def _velocity(objective: Objective) -> Sampler | None:
    flow = objective.maps.get("map")
    if flow is not None:
        if not (_is_jump(flow) and isinstance(flow.start, Formal) and isinstance(flow.end, Formal)):
            return None
        rate = slope(flow.body, flow.end)
        if rate is None:
            return None
        body = replace_formals(rate, {flow.end.name: flow.start})
        return _made(objective, "velocity", body, flow.state, ((flow.start, "time"),), _VELOCITY)
    for term in objective.terms:
        sampler = _regression(objective, term)
        if sampler is not None:
            return sampler
    return None


def _regression(objective: Objective, term: Term) -> Sampler | None:
    """The velocity from a term that regresses a network on data, noise or velocity."""
    seen = [
        node
        for node in walk(term.prediction)
        if isinstance(node, Evaluate) and not node.directions and _learned(objective, node.network)
    ]
    if term.target is None or not seen:
        return None
    states = [a for a in walk(seen[0]) if isinstance(a, PathState)]
    if not states:
        return None
    point = states[0]
    path = objective.paths[point.path]
    ends = frozenset({point.data, point.noise})
    where = objective.expand_path(point)
    rate = objective.expand_path(PathVelocity(point.path, point.time, point.data, point.noise))
    aimed = transform(decided(term.target, False), lambda e: e.body if isinstance(e, Stop) else e)
    target = linear_in(objective.expand_path(aimed), ends)
    forms = linear_in(where, ends), linear_in(rate, ends)
    state, time = Formal("z", Kind.STATE), Formal(path.time, Kind.TIME)
    if forms[0] is None or forms[1] is None:
        return None
    predicted: Expr = term.prediction
    if target is None and not any(isinstance(n, PathVelocity) for n in walk(aimed)):
        return None
    body = predicted
    if target is not None and not _same(objective, target, forms[1]):
        body = solve_velocity(point, predicted, forms[0], forms[1], target, point.data, point.noise)
    here = transform(point, lambda e: time if e == point.time else e)
    body = transform(body, lambda e: time if e == point.time else e)
    body = transform(body, lambda e: state if e == here else e)
    if any(isinstance(node, PathState | PathVelocity) for node in walk(body)):
        return None
    return _made(objective, "velocity", body, state, ((time, "time"),), _VELOCITY)


def _learned(objective: Objective, name: str) -> bool:
    network = objective.networks[name]
    return not network.frozen and network.average_of is None


def _same(objective: Objective, a: Linear, b: Linear) -> bool:
    """Whether two linear forms are the same, as far as folding shows."""
    for symbol in {**a, **b}:
        difference = Apply("sub", (a.get(symbol, Number(Fraction(0))),
                                   b.get(symbol, Number(Fraction(0)))))  # fmt: skip
        lowering = Lowering(objective)
        graph = fold(lowering.builder.finish([Output("d", lowering.expr(difference))]))
        node = graph[graph.outputs[0].loss]
        if node.op != "number" or node.value != 0:
            return False
    return True


def ends_of(objective: Objective) -> tuple[float, float]:
    """The times at which the path is data, and noise: where the other's coefficient vanishes."""
    path = next(iter(objective.paths.values()), None)
    if path is None:
        return 0.0, 1.0
    data, noise = Formal("data", Kind.STATE), Formal("noise", Kind.STATE)
    forms = linear_in(path.body, frozenset({data, noise}))
    if forms is None:
        return 0.0, 1.0
    times = {}
    for symbol, other, fallback in ((data, noise, 0.0), (noise, data, 1.0)):
        zeros = [at for at in _CANDIDATES if _vanishes(objective, forms.get(other), path.time, at)]
        times[symbol] = zeros[0] if zeros else fallback
    return times[data], times[noise]


#: Where paths of the field begin and end: linear ones at 0 and 1, trigonometric ones at 0 and pi /
#: 2.
_CANDIDATES = (0.0, 1.0, 1.5707963267948966)


def _vanishes(objective: Objective, coefficient: Expr | None, time: str, at: float) -> bool:
    if coefficient is None:
        return True
    value = evaluate(coefficient, {time: at}, objective)
    return value is not None and abs(value) < 1e-12
