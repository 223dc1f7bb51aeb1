"""Derivatives that join the prediction: when they do, that nothing changes, and what is saved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowdsl.emit import compile_objective
from flowdsl.ir.cost import RULES, cost
from flowdsl.ir.gradient import gradient
from flowdsl.ir.graph import Builder, Graph, Node, rewrite
from flowdsl.ir.lower import lower
from flowdsl.passes import run_passes
from flowdsl.passes.beside import beside
from flowdsl.passes.run import PHASE_PASSES
from flowdsl.spec.core import ONE, Evaluate, Expr, Stop, add, mul, number, select, sub
from flowdsl.spec.objective import LawCall, Objective, Term
from tests import objectives
from tests.compiler_support import Outcome, batch, error, interpreted, networks, outcome
from tests.objectives import law, velocity, z

EXACT = 1e-12
T, R = objectives.time("t"), objectives.time("r")
DIAGONAL = objectives.rows("diagonal")
END = select(DIAGONAL, T, R)
LABEL = (("label", objectives.LABEL),)


def call(end: Expr, state: Expr | None = None) -> Evaluate:
    return Evaluate("u", "u", (z(T) if state is None else state, T, end), LABEL)


def average(diagonal: LawCall, along: Expr, *, more: Expr | None = None) -> Objective:
    """Match u(z, t, r) to a target with its derivative along a direction."""
    d = objectives.Draft("average")
    d.draw("diagonal", diagonal)
    d.draw("t r", law("sorted", law("uniform", 0, 1)))
    d.network("u", "z t r", "label")
    change = Evaluate("u", "u", (z(T), T, END), LABEL, ((along, ONE, None),))
    target = Stop(sub(velocity(T), mul(sub(T, END), change)))
    prediction = call(END) if more is None else add(call(END), more)
    return d.objective(
        Term("target", "target", prediction, target, objectives.mse(prediction, target))
    )


DIRECTIONS = {
    "the velocity": velocity(T),
    "the network": call(T),
    "the prediction off the diagonal": call(END),
    "the prediction, moved": add(call(END), velocity(T)),
    "the prediction on the diagonal": select(DIAGONAL, call(END), velocity(T)),
}


def passes(graph: Graph) -> list[str]:
    """The network passes as `op share` in order of share."""
    cells_of = sorted((graph[at].op, graph[at].rows is not None) for at in graph.calls())
    return [f"{op} on rows" if rows else op for op, rows in cells_of]


def optimised(objective: Objective) -> Graph:
    return run_passes(lower(objective)).phases[0].graph


@pytest.mark.parametrize(
    ("diagonal", "direction", "expected"),
    [
        (law("share", 0.75), "the velocity", ["beside on rows", "call on rows"]),
        (law("share", 0), "the velocity", ["beside"]),
        (law("share", 0), "the network", ["beside", "call"]),
        (law("share", 0.75), "the network", ["beside on rows", "call on rows", "call on rows"]),
        # their number is unknown: few rows are differentiated apart, many together with all
        (law("bernoulli", 0.9), "the velocity", ["call", "derivative on rows"]),
        (law("bernoulli", 0.2), "the velocity", ["beside"]),
        # the direction is known after the prediction only
        (law("share", 0.75), "the prediction off the diagonal", ["call", "derivative on rows"]),
        (law("share", 0.75), "the prediction, moved", ["call", "derivative on rows"]),
        (law("share", 0), "the prediction, moved", ["call", "derivative"]),
        # ... but not where it is needed
        (law("share", 0.75), "the prediction on the diagonal", ["beside on rows", "call on rows"]),
    ],
)  # fmt: skip
def test_when_a_derivative_joins(diagonal: LawCall, direction: str, expected: list[str]) -> None:
    objective = average(diagonal, DIRECTIONS[direction])
    graph = optimised(objective)
    assert passes(graph) == expected
    assert same_as_written(objective, graph) < EXACT


def same_as_written(objective: Objective, graph: Graph) -> float:
    """How far value and gradients of a graph, and of the emitted text, are from the naive ones."""
    nets, (data, label) = networks(objective), batch(24)
    loss = compile_objective(objective)
    draws = loss.draw(data, generator=torch.Generator().manual_seed(5))
    expected = interpreted(lower(objective), nets, data, draws, label)
    found: list[Outcome] = [interpreted(graph, nets, data, draws, label)]
    for _ in range(2):  # the first call of the text checks the derivative, the second trusts it
        value, terms = loss(nets, data, draws=draws, label=label)
        found.append(outcome(terms, value, nets))
    return max(error(f, expected) for f in found)


def test_what_is_saved() -> None:
    objective = average(law("share", 0.75), velocity(T))
    joined = cost(optimised(objective))
    assert joined.total == pytest.approx(3 + 0.25 * RULES.tangent)
    apart = lower(objective)
    for each in PHASE_PASSES:
        apart = apart if each.apply is beside else each.apply(apart)
    assert cost(apart).total == pytest.approx(3 + 0.25 * RULES.derivative)
    everywhere = cost(optimised(average(law("share", 0), velocity(T))))
    assert everywhere.total == pytest.approx(3 + RULES.tangent)


def test_two_heads_join() -> None:
    graph = optimised(objectives.ALL["imf"]())
    assert sorted(graph[at].op for at in graph.calls()) == ["beside", "call", "call", "call"]
    assert same_as_written(objectives.ALL["imf"](), graph) < EXACT


def test_it_is_done_once() -> None:
    for name in objectives.ALL:
        for phase in run_passes(lower(objectives.ALL[name]())).phases:
            assert beside(phase.graph) == phase.graph


def test_the_derivative_carries_no_gradient() -> None:
    graph = optimised(average(law("share", 0), velocity(T)))
    flow = gradient(graph)
    by_op = {graph[at].op: at for at in graph.used}
    assert flow.learns(by_op["primal"]) == {"u"}
    assert flow.carries[by_op["tangent"]] == frozenset()


def test_another_call_at_the_same_point_shares_it_too() -> None:
    """A prediction that reads the network twice at one point: one pass for all three."""
    objective = average(law("share", 0), velocity(T), more=mul(number(2), call(END)))
    graph = optimised(objective)
    assert passes(graph) == ["beside"]
    assert same_as_written(objective, graph) < EXACT


def _recorded(graph: Graph) -> Graph:
    """Let gradient flow through the derivative."""

    def rule(builder: Builder, node: Node, old: int) -> int:
        return builder.add(replace(node, op="dual") if node.op == "beside" else node)

    return rewrite(graph, rule)


def _exchanged(graph: Graph) -> Graph:
    """Read the derivative for the value."""

    def rule(builder: Builder, node: Node, old: int) -> int:
        return builder.add(replace(node, op="tangent") if node.op == "primal" else node)

    return rewrite(graph, rule)


def _still(graph: Graph) -> Graph:
    """Read the value for the derivative."""

    def rule(builder: Builder, node: Node, old: int) -> int:
        return builder.add(replace(node, op="primal") if node.op == "tangent" else node)

    return rewrite(graph, rule)


@pytest.mark.parametrize("slip", [_recorded, _exchanged, _still])
def test_slips_are_seen(slip: object) -> None:
    objective = objectives.meanflow()
    assert callable(slip)
    nets, (data, label) = networks(objective), batch(24)
    draws = compile_objective(objective).draw(data, generator=torch.Generator().manual_seed(5))
    expected = interpreted(lower(objective), nets, data, draws, label)
    found = interpreted(slip(optimised(objective)), nets, data, draws, label)
    assert error(found, expected) > 1e-6
