"""The passes: value and gradients stay, cost falls, and broken passes are caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import flowdsl
from flowdsl import pipeline
from flowdsl.diagnostics import DiagnosticError
from flowdsl.emit import compile_objective
from flowdsl.ir.cost import PLAIN, cost
from flowdsl.ir.gradient import gradient
from flowdsl.ir.graph import Builder, Graph, Node, rewrite
from flowdsl.ir.lower import lower
from flowdsl.passes import run_passes
from flowdsl.passes.common import common
from flowdsl.passes.decide import decide
from flowdsl.passes.duals import duals
from flowdsl.passes.fold import fold
from flowdsl.passes.options import OPTIONAL, Options
from flowdsl.passes.phases import phases
from flowdsl.passes.reuse import reuse
from flowdsl.passes.rows import rows
from flowdsl.passes.run import COMMON_PASSES, PHASE_PASSES, protocol
from flowdsl.passes.stops import stops
from flowdsl.spec.core import (
    ONE,
    ZERO,
    Apply,
    Draw,
    Evaluate,
    Expr,
    Kind,
    Level,
    Null,
    Stop,
    Training,
    add,
    mul,
    number,
    select,
    sub,
)
from flowdsl.spec.objective import Objective, Term
from tests import objectives
from tests.compiler_support import (
    batch,
    error,
    interpreted,
    networks,
    outcome,
    phase_at,
)

EVERY = sorted(objectives.ALL)
EXACT = 1e-12
PROGRESS = (0.0, 0.4, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("name", EVERY)
def test_each_pass_leaves_value_and_gradients(name: str) -> None:
    objective = objectives.ALL[name]()
    nets, (data, label) = networks(objective), batch(24)
    draws = compile_objective(objective).draw(data, generator=torch.Generator().manual_seed(5))
    naive = lower(objective)

    def check(graph: Graph, progress: float, what: str) -> None:
        expected = interpreted(naive, nets, data, draws, label, progress)
        found = interpreted(graph, nets, data, draws, label, progress)
        assert error(found, expected) < EXACT, what

    graph = naive
    for each in COMMON_PASSES:
        graph = each.apply(graph)
        check(graph, 0.4, each.name)
    split = phases(graph)
    for progress in PROGRESS:
        chosen = phase_at(replace(run_passes(naive), common=graph, phases=split), progress)
        check(chosen, progress, "phases")
        for each in PHASE_PASSES:
            chosen = each.apply(chosen)
            check(chosen, progress, f"{each.name} at {progress}")


#: Objective, passes before and after, cost before and after (in the cheapest and dearest phase).
GAINS = {
    "flow_matching": (1, 1, 3.0, 3.0),
    "meanflow": (4, 4, 8.0, 4.425),
    "alphaflow": (5, 4, 9.0, 5.575),
    "tvm": (6, 4, 17.0, 11.20),
    "imf": (5, 4, 11.0, 4.50),
}


@pytest.mark.parametrize("name", sorted(GAINS))
def test_what_optimisation_gains(name: str) -> None:
    before, after, dear, cheap = GAINS[name]
    naive = lower(objectives.ALL[name]())
    program = run_passes(naive)
    assert len(naive.calls()) == before
    assert cost(naive, PLAIN).total == pytest.approx(dear)
    worst = max(program.phases, key=lambda p: cost(p.graph).total).graph
    assert len(worst.calls()) == after
    assert cost(worst).total == pytest.approx(cheap, abs=0.01)
    assert protocol(program).count("\n") == len(program.steps)


def test_zero_coefficients_drop_evaluations() -> None:
    graph = fold(lower(objectives.meanflow(1, 0)))
    assert len(graph.calls()) == 2  # the prediction and its derivative
    assert len(fold(lower(objectives.meanflow(3, 0))).calls()) == 3


def test_constants_that_decide_are_numbers_and_others_stay() -> None:
    names = {n.detail for n in fold(lower(objectives.meanflow())).nodes if n.op == "constant"}
    assert names == {"kappa"}  # omega = 1, lo = 0 and hi = 1 decide
    guided = fold(lower(objectives.meanflow(0.2, 0.92, 0.1, 0.8)))
    names = {n.detail for n in guided.nodes if n.op == "constant"}
    assert names == {"omega", "kappa"}  # comparisons with lo and hi decide on rows


def test_decide_uses_the_supports() -> None:
    comparisons = [n for n in decide(fold(lower(objectives.meanflow()))).nodes if n.op == "gt"]
    assert comparisons == []
    guided = decide(fold(lower(objectives.ALL["meanflow_guided"]())))
    assert [n.op for n in guided.nodes if n.op in ("lt", "gt")] == ["gt"]  # t > 0.8 stays


def test_common_finds_equal_passes() -> None:
    graph = lower(objectives.tvm())
    assert (len(graph.calls()), len(common(graph).calls())) == (6, 5)


@pytest.mark.parametrize("name", EVERY)
def test_passes_without_gradient_keep_no_graph(name: str) -> None:
    graph = stops(common(fold(lower(objectives.ALL[name]()))))
    flow = gradient(graph)
    for at in graph.calls():
        assert graph[at].call.record == bool(flow.learns(at))


def test_stop_moves_to_the_border() -> None:
    graph = stops(common(fold(lower(objectives.meanflow()))))
    (stop,) = [n for n in graph.nodes if n.op == "stop"]
    assert graph[stop.inputs[0]].op == "sum_squares"  # stop(error + c) is stop(error) + c


def test_reuse_reads_the_prediction_on_diagonal_rows() -> None:
    graph = stops(common(decide(fold(lower(objectives.meanflow())))))
    after = reuse(graph)
    new = [n for n in after.nodes if n.op == "select" and after[n.inputs[1]].op == "stop"]
    assert len(new) == 1
    assert after[new[0].inputs[0]].detail == "diagonal"
    assert cost(rows(after)).total < cost(rows(graph)).total - 0.5


def test_rows_are_static_for_shares_and_never_dynamic_for_learning_passes() -> None:
    for name in EVERY:
        for phase in run_passes(lower(objectives.ALL[name]())).phases:
            for at in phase.graph.calls():
                node = phase.graph[at]
                if node.rows is not None and node.call.record:
                    assert phase.graph[node.rows].detail is not None
    graph = run_passes(lower(objectives.meanflow())).phases[0].graph
    assert all(n.detail is not None for n in graph.nodes if n.op == "rows")


def test_live_derivative_gives_its_primal() -> None:
    graph = run_passes(lower(objectives.tvm())).phases[0].graph
    assert sorted(graph[c].op for c in graph.calls()) == ["call", "call", "call", "dual"]
    assert duals(graph) == graph
    # under `stop` there is no such pair: that derivative would be recorded for nothing
    graph = run_passes(lower(objectives.meanflow())).phases[0].graph
    assert all(graph[c].op != "dual" for c in graph.calls())


def test_phases_of_a_curriculum() -> None:
    program = run_passes(lower(objectives.alphaflow()))
    assert [p.name for p in program.phases] == ["alpha_is_0", "alpha_is_1", "otherwise"]
    ops = {p.name: sorted(p.graph[c].op for c in p.graph.calls()) for p in program.phases}
    assert ops["alpha_is_0"] == ["beside", "call", "call", "call"]
    assert ops["alpha_is_1"] == ["call", "call", "call"]
    assert ops["otherwise"] == ["call"] * 4
    decided = run_passes(lower(objectives.curvature()))
    assert [p.name for p in decided.phases] == ["progress_above_0_5", "otherwise"]


def test_derivatives_have_names() -> None:
    with pytest.raises(DiagnosticError, match='did you mean "finite_difference"'):
        run_passes(lower(objectives.tvm()), Options(derivative="finite_differences"))


def test_finite_differences_are_not_fused() -> None:
    program = run_passes(lower(objectives.tvm()), Options(derivative="finite_difference"))
    assert all(n.op != "dual" for n in program.phases[0].graph.nodes)


@pytest.mark.parametrize("name", ["meanflow", "alphaflow", "tvm", "imf"])
def test_each_pass_can_be_left_out(name: str) -> None:
    """The loss stays the same, and is never cheaper."""
    objective = objectives.ALL[name]()
    nets, (data, label) = networks(objective), batch(24)
    draws = compile_objective(objective).draw(data, generator=torch.Generator().manual_seed(5))
    naive = lower(objective)
    everything = run_passes(naive)
    for left_out in OPTIONAL:
        program = run_passes(naive, Options(without=(left_out,)))
        assert all(step.name != left_out for step in program.steps if left_out != "phases")
        for progress in (0.0, 1.0):
            graph = phase_at(program, progress)
            expected = interpreted(naive, nets, data, draws, label, progress)
            found = interpreted(graph, nets, data, draws, label, progress)
            assert error(found, expected) < EXACT, left_out
            assert cost(graph).total >= cost(phase_at(everything, progress)).total - 1e-9, left_out
    with pytest.raises(DiagnosticError, match='no pass "row"'):
        Options(without=("row",))


@pytest.mark.parametrize("name", EVERY)
def test_fixed_shapes(name: str) -> None:
    objective = objectives.ALL[name]()
    nets, (data, label) = networks(objective), batch(24)
    draws = compile_objective(objective).draw(data, generator=torch.Generator().manual_seed(5))
    naive = lower(objective)
    for phase in run_passes(naive, Options(fixed_shapes=True)).phases:
        assert all(n.detail is not None for n in phase.graph.nodes if n.op == "rows")
    assert "nonzero" not in compile_objective(objective, fixed_shapes=True).source
    loss = compile_objective(objective, fixed_shapes=True)
    for progress in (0.0, 1.0):
        expected = interpreted(naive, nets, data, draws, label, progress)
        value, terms = loss(nets, data, draws=draws, label=label, progress=progress)
        assert error(outcome(terms, value, nets), expected) < EXACT


# Mutations: a pass that is wrong in one place must be noticed by the comparison above.


def _wrong_rows(graph: Graph) -> Graph:
    """Run passes on the complement of their rows."""

    def rule(builder: Builder, node: Node, old: int) -> int:
        if node.op == "rows":
            return builder.add(
                replace(node, inputs=(builder.apply("not", node.inputs[0]),), detail=None)
            )
        return builder.add(node)

    return rewrite(graph, rule)


def _no_stop(graph: Graph) -> Graph:
    """Let gradient through."""
    return rewrite(graph, lambda b, node, old: node.inputs[0] if node.op == "stop" else b.add(node))


def _all_stopped(graph: Graph) -> Graph:
    """Keep no graph anywhere."""

    def rule(builder: Builder, node: Node, old: int) -> int:
        if node.op in ("call", "derivative", "dual"):
            node = replace(node, detail=replace(node.call, record=False))
        return builder.add(node)

    return rewrite(graph, rule)


def _live(graph: Graph) -> Graph:
    """Keep a graph everywhere, and let gradient through."""

    def rule(builder: Builder, node: Node, old: int) -> int:
        if node.op in ("call", "derivative", "dual"):
            node = replace(node, detail=replace(node.call, record=True))
        return node.inputs[0] if node.op == "stop" else builder.add(node)

    return rewrite(graph, rule)


def _other_branch(graph: Graph) -> Graph:
    """Exchange the branches of selections of states."""

    def rule(builder: Builder, node: Node, old: int) -> int:
        if node.op == "select" and node.kind is Kind.STATE:
            c, a, b = node.inputs
            node = replace(node, inputs=(c, b, a))
        return builder.add(node)

    return rewrite(graph, rule)


@pytest.mark.parametrize(
    ("name", "mutation"),
    [
        ("meanflow", _wrong_rows),
        ("meanflow", _no_stop),
        ("meanflow", _other_branch),
        ("meanflow", _all_stopped),
        ("tvm", _live),
        ("tvm", _all_stopped),
        ("alphaflow", _other_branch),
        ("imf", _wrong_rows),
    ],
)
def test_mutated_passes_are_caught(name: str, mutation: Callable[[Graph], Graph]) -> None:
    objective = objectives.ALL[name]()
    nets, (data, label) = networks(objective), batch(24)
    draws = compile_objective(objective).draw(data, generator=torch.Generator().manual_seed(5))
    naive = lower(objective)
    graph = mutation(phase_at(run_passes(naive), 0.0))
    found = interpreted(graph, nets, data, draws, label)
    assert error(found, interpreted(naive, nets, data, draws, label)) > 1e-6


# Random objectives.

T, R = objectives.time("t"), objectives.time("r")
ON, IN = objectives.rows("on"), objectives.rows("inside")
S = select(ON, T, R)
FLAG = Draw("flag", Kind.TRUTH, Level.STEP)
PROGRESS_SNAP = Apply("snap", (sub(mul(number(2), Training("progress")), number(0.5)), number(0.1)))

conditions = st.recursive(
    st.sampled_from(
        [
            ON,
            IN,
            FLAG,
            Apply("lt", (T, number(0.4))),
            Apply("ge", (T, number(0.4))),
            Apply("gt", (T, R)),
            Apply("eq", (PROGRESS_SNAP, ZERO)),
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda a: Apply("not", (a,)), inner),
        st.builds(lambda a, b: Apply("and", (a, b)), inner, inner),
        st.builds(lambda a, b: Apply("or", (a, b)), inner, inner),
    ),
    max_leaves=3,
)
scalars = st.recursive(
    st.sampled_from([ZERO, ONE, number(0.5), number(-1), T, S, R, PROGRESS_SNAP]),
    lambda inner: st.one_of(
        st.builds(add, inner, inner),
        st.builds(sub, inner, inner),
        st.builds(mul, inner, inner),
        st.builds(select, conditions, inner, inner),
        st.builds(lambda a: Apply("sin", (a,)), inner),
    ),
    max_leaves=4,
)
times = st.sampled_from([T, S, R, ZERO])
labels = st.sampled_from([objectives.LABEL, Null(), select(IN, Null(), objectives.LABEL)])
leaves = st.sampled_from([objectives.z(T), objectives.velocity(T), objectives.NOISE])


def _call(state: Expr, a: Expr, b: Expr, label: Expr) -> Expr:
    return Evaluate("u", "u", (state, a, b), (("label", label),))


def _change(state: Expr, a: Expr, b: Expr, label: Expr, along: Expr, rate: Expr) -> Expr:
    return Evaluate("u", "u", (state, a, b), (("label", label),), ((along, rate, None),))


states = st.recursive(
    st.one_of(leaves, st.builds(_call, leaves, times, times, labels)),
    lambda inner: st.one_of(
        st.builds(add, inner, inner),
        st.builds(sub, inner, inner),
        st.builds(mul, scalars, inner),
        st.builds(select, conditions, inner, inner),
        st.builds(Stop, inner),
        st.builds(_call, inner, times, times, labels),
        st.builds(_change, inner, times, times, labels, inner, scalars),
    ),
    max_leaves=6,
)


def _random(prediction: Expr, target: Expr, scale: Expr, on: Expr | None) -> Objective:
    d = objectives.Draft("random")
    d.draw("on", objectives.law("share", 0.5))
    d.draw("inside", objectives.law("share", 0.5), on=ON)
    d.draw("flag", objectives.law("batch_bernoulli", 0.5))
    d.draw("t r", objectives.law("sorted", objectives.law("uniform", 0, 1)))
    d.network("u", "z t r", "label")
    loss = mul(scale, objectives.mse(prediction, target))
    return d.objective(Term("target", "target", prediction, target, loss, rows=on))


@settings(
    max_examples=100,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take minutes
)
@example(  # equal network values must not cancel where only one of them is evaluated
    mul(
        select(
            Apply("or", (Apply("lt", (T, number(0.4))), FLAG)),
            sub(ONE, ONE),
            select(Apply("not", (ON,)), ONE, T),
        ),
        _call(objectives.z(T), R, T, objectives.LABEL),
    ),
    _call(objectives.z(T), S, T, select(IN, Null(), objectives.LABEL)),
    ONE,
    None,
    3,
)
@example(  # a choice inside the first branch of a choice
    objectives.NOISE,
    _call(objectives.z(T), R, T, objectives.LABEL),
    select(
        Apply("eq", (PROGRESS_SNAP, ZERO)),
        select(Apply("not", (Apply("eq", (PROGRESS_SNAP, ZERO)),)), PROGRESS_SNAP, R),
        add(T, number(-1)),
    ),
    None,
    1,
)
@given(states, states, scalars, st.one_of(st.none(), conditions), st.integers(0, 10**6))
def test_random_objectives(
    prediction: Expr, target: Expr, scale: Expr, on: Expr | None, seed: int
) -> None:
    objective = _random(prediction, target, scale, on)
    nets, (data, label) = networks(objective), batch(8, seed=seed)
    fast = compile_objective(objective)
    plain = compile_objective(objective, optimize=False)
    draws = fast.draw(data, generator=torch.Generator().manual_seed(seed + 1))
    naive = lower(objective)
    for progress in (0.1, 0.5, 1.0):
        expected = interpreted(naive, nets, data, draws, label, progress)
        for loss in (plain, fast):
            value, terms = loss(nets, data, draws=draws, label=label, progress=progress)
            assert error(outcome(terms, value, nets), expected) < 1e-11


JUDGED = """objective x
path z(t) = (1 - t) * data + t * noise
times t ~ uniform(0.1, 0.9)
network G(z, t); teacher(z, t) -> v, inside features frozen; judge(features) -> scalar
let made = noise + G(noise, t)
target match made to stop(v(made, t))
       fool: minimise softplus(-judge(inside(made, t)))
       catch: minimise softplus(judge(inside(stop(made), t)))
"""


def test_a_call_at_x_is_not_one_at_stop_x() -> None:
    """Their values are the same, and one value will do only where no gradient leaves the call.

    Of a frozen network with two heads, one is read under `stop` and gradient flows through the
    other.
    """
    objective = pipeline.load_text(JUDGED)
    nets, (data, _) = networks(objective), batch()
    found = []
    for optimize in (False, True):
        loss = flowdsl.loads(JUDGED).compile(optimize=optimize)
        draws = loss.draw(data, generator=torch.Generator().manual_seed(2))
        value, terms = loss(nets, data, draws=draws)
        found.append(outcome(terms, value, nets))
    plain, optimised = found
    assert optimised.terms == pytest.approx(plain.terms, rel=1e-12)
    for name, slope in plain.gradients.items():
        torch.testing.assert_close(optimised.gradients[name], slope, rtol=1e-10, atol=1e-14)
