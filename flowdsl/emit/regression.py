"""What a one-time regression has learnt, solved from what the network predicts.

With z = a data + b noise and a prediction of p data + q noise, both conditional means follow, and
so does that of any a' data + b' noise: the velocity, or the data themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from flowdsl.ir.algebra import Linear, linear_in, solve
from flowdsl.ir.graph import Output
from flowdsl.ir.lower import Lowering
from flowdsl.passes.fold import fold
from flowdsl.spec.core import (
    ONE,
    Apply,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Kind,
    Number,
    PathState,
    PathVelocity,
    Stop,
    assume,
    transform,
    walk,
)
from flowdsl.spec.objective import Objective, Term

STATE = Formal("z", Kind.STATE)


@dataclass(frozen=True)
class Regression:
    """The conditional means of velocity and data at a state `STATE` and a formal time.

    `direct` is true where the network predicts the velocity itself.
    """

    time: Formal
    velocity: Expr
    data: Expr
    direct: bool


def regression(objective: Objective) -> Regression | None:
    """The first term that regresses a learned network on data, noise or velocity, solved.

    Networks that learn under `critic` serve the others; nothing is sampled from them.
    """
    for term in objective.terms:
        found = None if term.group == "critic" else _of_term(objective, term)
        if found is not None:
            return found
    return None


def _of_term(objective: Objective, term: Term) -> Regression | None:
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
    ends = frozenset({point.data, point.noise})
    where = linear_in(objective.expand_path(point), ends)
    velocity = PathVelocity(point.path, point.time, point.data, point.noise)
    rate = linear_in(objective.expand_path(velocity), ends)
    aimed = transform(decided(term.target, False), lambda e: e.body if isinstance(e, Stop) else e)
    target = linear_in(objective.expand_path(aimed), ends)
    if where is None or rate is None:
        return None
    if target is None and not any(isinstance(n, PathVelocity) for n in walk(aimed)):
        return None
    known = target or rate  # a velocity that guidance has changed is predicted as the velocity is
    direct = target is None or _same(objective, known, rate)

    def mean(wanted: Linear) -> Expr:
        return solve(point, term.prediction, where, wanted, known, point.data, point.noise)

    time = Formal(objective.paths[point.path].time, Kind.TIME)
    here = transform(point, lambda e: time if e == point.time else e)

    def over_formals(body: Expr) -> Expr | None:
        body = transform(body, lambda e: time if e == point.time else e)
        body = transform(body, lambda e: STATE if e == here else e)
        return None if any(isinstance(n, PathState | PathVelocity) for n in walk(body)) else body

    learnt = over_formals(term.prediction if direct else mean(rate))
    data = over_formals(mean({point.data: ONE}))
    return None if learnt is None or data is None else Regression(time, learnt, data, direct)


def decided(expr: Expr, truth: bool) -> Expr:
    """The expression on rows where every drawn condition has this truth value."""
    facts: dict[Expr, bool] = {
        node: truth for node in walk(expr) if isinstance(node, Draw) and node.kind is Kind.TRUTH
    }
    return assume(expr, facts)


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
