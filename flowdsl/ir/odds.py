"""How many rows a condition keeps, as well as the laws tell: for cost estimates, and to rule out
what cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flowdsl.ir.graph import Graph
from flowdsl.ir.ranges import Interval, of_nodes
from flowdsl.ir.shares import exact
from flowdsl.prelude.laws import LAWS
from flowdsl.spec.core import COMPARISONS, Kind, Level
from flowdsl.spec.objective import LawCall, Objective

#: A comparison about which nothing is known.
EVEN = 0.5
#: What holds on a set of measure zero only.
SELDOM = 1e-6
Cdf = Callable[[float], float]
_MIRROR = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


def weights(graph: Graph, atoms: Sequence[int], cases: Sequence[int]) -> list[float]:
    """An estimate of each case's share of the batch; 0 where it contradicts itself."""
    ranges = of_nodes(graph)
    found = [_weight(graph, ranges, atoms, case) for case in cases]
    total = sum(found)
    return [w / total for w in found] if total > 0 else [1 / len(cases)] * len(cases)


def _weight(graph: Graph, ranges: Sequence[Interval], atoms: Sequence[int], case: int) -> float:
    weight = 1.0
    bounds: dict[int, list[tuple[str, float]]] = {}
    for i, at in enumerate(atoms):
        holds = bool(case >> i & 1)
        node = graph[at]
        if node.op == "draw":
            weight *= _drawn(graph, atoms, case, str(node.detail), holds)
            continue
        bound = _bound(graph, ranges, at, holds)
        if bound is None:
            weight *= _ordered(graph, ranges, at, holds)
        else:
            bounds.setdefault(bound[0], []).append(bound[1:])
    for at, limits in bounds.items():
        weight *= _between(graph, at, limits)
    return weight


def _drawn(graph: Graph, atoms: Sequence[int], case: int, name: str, holds: bool) -> float:
    """The probability of a drawn condition, given that it may hold at all."""
    draw = graph.objective.draws[name]
    line = draw.lines[0]
    p = exact(graph.objective, line.law.args[0]) if line.law.args else None
    chance = EVEN if p is None else min(1.0, max(0.0, float(p)))
    if line.rows is not None and not holds:
        # outside its rows it never holds; those cases must not lose weight to it
        for at, rows in graph.implies:
            if graph[at].detail == name and _value(graph, atoms, case, rows) is False:
                return 1.0
    return chance if holds else 1 - chance


def _value(graph: Graph, atoms: Sequence[int], case: int, at: int) -> bool | None:
    if at in atoms:
        return bool(case >> list(atoms).index(at) & 1)
    node = graph[at]
    inputs = [_value(graph, atoms, case, i) for i in node.inputs]
    match node.op:
        case "not":
            return None if inputs[0] is None else not inputs[0]
        case "and" | "or":
            absorbing = node.op == "or"
            return absorbing if absorbing in inputs else None if None in inputs else not absorbing
        case "true" | "false":
            return node.op == "true"
    return None


def _bound(
    graph: Graph, ranges: Sequence[Interval], at: int, holds: bool
) -> tuple[int, str, float] | None:
    """A comparison of a value with a number, as (value, relation, number)."""
    node = graph[at]
    if node.op not in COMPARISONS:
        return None
    relation = node.op if holds else _NEGATED[node.op]
    a, b = node.inputs
    for value, number, name in ((a, b, relation), (b, a, _MIRROR[relation])):
        low, high = ranges[number]
        if low == high and graph[number].level is Level.CONSTANT:
            return value, name, low
    return None


def _ordered(graph: Graph, ranges: Sequence[Interval], at: int, holds: bool) -> float:
    """The probability of a comparison of two values: certain where their difference has a sign."""
    node = graph[at]
    relation = node.op if holds else _NEGATED[node.op]
    low, high = _difference(graph, ranges, *node.inputs)
    if low >= 0 or high <= 0:
        likely = ("gt", "ge", "ne") if low >= 0 else ("lt", "le", "ne")
        return 1 - SELDOM if relation in likely else SELDOM
    return EVEN


def _difference(graph: Graph, ranges: Sequence[Interval], a: int, b: int) -> Interval:
    """The interval of a - b; sums that share a part cancel it."""
    parts: dict[int, int] = {}

    def collect(at: int, sign: int) -> None:
        node = graph[at]
        if node.op in ("add", "sub"):
            collect(node.inputs[0], sign)
            collect(node.inputs[1], sign if node.op == "add" else -sign)
        else:
            parts[at] = parts.get(at, 0) + sign

    collect(a, 1)
    collect(b, -1)
    low = high = 0.0
    for at, times in parts.items():
        if times:
            ends = (times * ranges[at][0], times * ranges[at][1])
            low, high = low + min(ends), high + max(ends)
    return low, high


def _between(graph: Graph, at: int, limits: list[tuple[str, float]]) -> float:
    """The probability that a value satisfies all these bounds."""
    low, high = -math.inf, math.inf
    open_low = open_high = False
    for relation, number in limits:
        if relation in ("gt", "ge", "eq") and number >= low:
            open_low = relation == "gt" or (open_low and number == low)
            low = number
        if relation in ("lt", "le", "eq") and number <= high:
            open_high = relation == "lt" or (open_high and number == high)
            high = number
    if low > high or (low == high and (open_low or open_high)):
        return 0.0
    node = graph[at]
    cdf = None
    if node.op == "draw" and node.kind in (Kind.TIME, Kind.SCALAR):
        cdf = draw_cdf(str(node.detail), graph.objective)
    if cdf is None:
        return EVEN ** len(limits)
    return max(cdf(high) - cdf(low), SELDOM)


def draw_cdf(name: str, objective: Objective) -> Cdf | None:
    """The distribution function of a draw by its first line, where it is known."""
    draw = objective.draws.get(name)
    if draw is None:
        return None
    line = draw.lines[0]
    if line.law.law != "sorted":
        return law_cdf(line.law, objective)
    laws = [law_cdf(a, objective) for a in line.law.args if isinstance(a, LawCall)]
    first, second = laws[0], laws[-1]
    if first is None or second is None:
        return None
    larger = line.names.index(name) == 0
    if larger:
        return lambda x: first(x) * second(x)
    return lambda x: 1 - (1 - first(x)) * (1 - second(x))


def law_cdf(law: LawCall, objective: Objective) -> Cdf | None:
    """The distribution function of a law with constant parameters."""
    row = LAWS.get(law.law)
    if row is None or row.cdf is None:
        return None
    values = [exact(objective, a) for a in law.args]
    if any(v is None for v in values):
        return None
    numbers = [float(v) for v in values if v is not None]
    distribution = row.cdf

    def cdf(x: float) -> float:
        if math.isinf(x):
            return float(x > 0)
        return distribution(*numbers, x)

    return cdf
