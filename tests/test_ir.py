"""The graph: lowering, the oracle against formulas by hand, gradient, rows, cost, pictures."""

from __future__ import annotations

import xml.dom.minidom
from dataclasses import replace
from fractions import Fraction

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowdsl.diagnostics import DiagnosticError
from flowdsl.emit import compile_objective
from flowdsl.emit.ends import ends_of
from flowdsl.emit.sampling import samplers
from flowdsl.ir.boolean import holds, minimise
from flowdsl.ir.cells import analyse
from flowdsl.ir.cost import PLAIN, RULES, cost
from flowdsl.ir.gradient import gradient
from flowdsl.ir.graph import Builder, Graph, MalformedGraph, Node, Output, rewrite, verify
from flowdsl.ir.interpret import MEANING, Interpreter
from flowdsl.ir.lower import lower
from flowdsl.ir.odds import draw_cdf
from flowdsl.ir.picture import dot, svg
from flowdsl.ir.ranges import of_draw, of_nodes
from flowdsl.ir.rowsets import count_of
from flowdsl.ir.shares import static_shares
from flowdsl.ir.text import graph_text
from flowdsl.passes import run_passes
from flowdsl.spec.core import Kind, Level
from flowdsl.spec.operations import OPERATIONS
from tests import objectives
from tests.compiler_support import DTYPE, batch, interpreted, networks

EVERY = sorted(objectives.ALL)


def passes_of(graph: Graph) -> list[str]:
    return sorted(f"{graph[c].op} {graph[c].call.network}" for c in graph.calls())


def test_every_operation_has_a_meaning_in_the_oracle() -> None:
    assert set(MEANING) | {"true", "false"} == set(OPERATIONS)


def test_lowering_is_naive_but_computes_what_is_named_once() -> None:
    assert passes_of(lower(objectives.meanflow())) == ["call u", "call u", "call u", "derivative u"]
    # the landing point of TVM is written out twice, so it is evaluated twice
    assert passes_of(lower(objectives.tvm())) == [
        "call F", "call F", "call F", "call slow", "call slow", "derivative F",
    ]  # fmt: skip


def test_equal_nodes_are_one_and_names_do_not_tell_them_apart() -> None:
    builder = Builder(objectives.meanflow())
    one = builder.number(1)
    a = builder.apply("add", one, builder.number(2))
    b = builder.apply("add", one, builder.number(2), name="three")
    assert a == b
    assert builder.nodes[a].name == "three"
    assert builder.number(Fraction(2, 2)) == one


@pytest.mark.parametrize(
    "damage",
    [
        lambda n: replace(n, inputs=(n.inputs[0], 10_000)),
        lambda n: replace(n, inputs=n.inputs[:1]),
        lambda n: replace(n, kind=Kind.LABEL),
        lambda n: replace(n, op="nonsense"),
    ],
)
def test_verify_refuses_damaged_graphs(damage: object) -> None:
    graph = lower(objectives.meanflow())
    at = next(i for i, n in enumerate(graph.nodes) if n.op == "sub")
    nodes = list(graph.nodes)
    nodes[at] = damage(nodes[at])  # type: ignore[operator]
    with pytest.raises(MalformedGraph):
        verify(Graph(graph.objective, tuple(nodes), graph.outputs))


def test_rewriting_with_the_identity_changes_nothing() -> None:
    for name in EVERY:
        graph = lower(objectives.ALL[name]())
        again = rewrite(graph, lambda builder, node, old: builder.add(node))
        assert again.nodes == graph.nodes
        assert again.outputs == graph.outputs


def test_oracle_agrees_with_meanflow_written_by_hand() -> None:
    objective = objectives.meanflow(0.2, 0.92, 0.1, 0.8)
    nets = networks(objective)
    data, label = batch()
    draws = compile_objective(objective).draw(data)
    u, noise = nets["u"], draws["noise"]
    t, diagonal, dropped = draws["t"], draws["diagonal"], draws["dropped"]
    r = torch.where(diagonal, t, draws["r"])
    shown = torch.where(dropped, -1, label)
    z = (1 - t)[:, None] * data + t[:, None] * noise
    velocity = noise - data
    mixed = (
        0.2 * velocity + 0.92 * u(z, t, t, label=shown)
        + (1 - 0.2 - 0.92) * u(z, t, t, label=torch.full_like(label, -1))
    )  # fmt: skip
    plain = dropped | (t < 0.1) | (t > 0.8)
    guided = torch.where(plain[:, None], velocity, mixed).detach()
    h = 1e-6
    ahead = u(z + h * guided, t + h, r, label=shown)
    behind = u(z - h * guided, t - h, r, label=shown)
    change = (ahead - behind) / (2 * h)
    target = (guided - (t - r)[:, None] * change).detach()
    square = (u(z, t, r, label=shown) - target).square().sum(1)
    expected = (square / (square + 0.01).detach()).mean()
    found = interpreted(lower(objective), nets, data, draws, label)
    assert found.terms["target"] == pytest.approx(expected.item(), rel=1e-8)
    for net in nets.values():
        net.zero_grad()
    expected.backward()
    for name, parameter in u.named_parameters():
        torch.testing.assert_close(
            found.gradients[f"u.{name}"], parameter.grad, rtol=1e-6, atol=1e-9
        )


def test_gradient_reaches_the_learned_networks_only() -> None:
    graph = lower(objectives.tvm())
    flow = gradient(graph)
    learners = {name for at in graph.used for name in flow.learns(at)}
    assert learners == {"F"}
    for at in graph.calls():
        if graph[at].call.network == "slow":
            assert not flow.learns(at)
    # players: the critic's term reaches `fake` only, the student's terms reach F only
    graph = lower(objectives.distillation())
    flow = gradient(graph)
    by_term = {o.term: flow.carries[o.loss] for o in graph.outputs}
    assert by_term == {
        "target": frozenset({"F"}), "correction": frozenset({"F"}), "critic": frozenset({"fake"}),
    }  # fmt: skip


def test_demand_of_rows() -> None:
    graph = run_passes(lower(objectives.meanflow())).common
    cells = analyse(graph)
    shares = {}
    for at in graph.calls():
        call = graph[at].call
        null = any(graph[i].op == "null" for i in graph[at].inputs)
        key = graph[at].op + (" null" if null else " diagonal" if call.directions == () and (
            graph[at].inputs[1] == graph[at].inputs[2]) else "")  # fmt: skip
        shares[key] = cells.share(cells.demand[at])
    assert shares["call"] == pytest.approx(1)
    assert shares["derivative"] == pytest.approx(0.25)  # nothing where r = t
    assert shares["call null"] == pytest.approx(0.9)  # nothing where the label is dropped
    assert shares["call diagonal"] == pytest.approx(0.9)


def test_cells_know_what_is_drawn_on_other_rows_only() -> None:
    graph = run_passes(lower(objectives.meanflow())).common
    cells = analyse(graph)
    names = [str(graph[a].detail) for a in cells.atoms]
    diagonal, dropped = names.index("diagonal"), names.index("dropped")
    assert not any(c >> dropped & 1 and not c >> diagonal & 1 for c in cells.cases)
    outside = sum(1 << k for k, c in enumerate(cells.cases) if not c >> diagonal & 1)
    count = count_of(graph, cells, outside)
    assert count is not None
    assert {name: multiple for multiple, name in count.parts} == {None: 1, "diagonal": -1}


def test_two_shares_that_overlap_by_chance_have_no_count() -> None:
    draft = objectives.Draft("two")
    draft.draw("a", objectives.law("share", 0.5))
    draft.draw("b", objectives.law("share", 0.5))
    draft.draw("t", objectives.law("uniform", 0, 1))
    draft.network("u", "z t")
    t = objectives.time("t")
    both = objectives.Apply("and", (objectives.rows("a"), objectives.rows("b")))
    prediction = objectives.Evaluate("u", "u", (objectives.z(t), t))
    loss = objectives.error(prediction, objectives.velocity(t))
    term = objectives.Term("target", "target", prediction, objectives.velocity(t), loss, rows=both)
    graph = lower(draft.objective(term))
    cells = analyse(graph)
    demand = cells.demand[graph.calls()[0]]
    assert cells.share(demand) == pytest.approx(0.25)
    assert count_of(graph, cells, demand) is None


@given(st.integers(1, 5).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.sampled_from([0, 1, 2]), min_size=2**n,
                                             max_size=2**n))))  # fmt: skip
def test_minimised_conditions_hold_exactly_where_they_must(drawn: tuple[int, list[int]]) -> None:
    atoms, kinds = drawn
    wanted = [c for c, k in enumerate(kinds) if k == 1]
    others = [c for c, k in enumerate(kinds) if k == 2]
    cubes = minimise(atoms, wanted, others)
    assert all(any(holds(cube, c) for cube in cubes) for c in wanted)
    assert not any(holds(cube, c) for cube in cubes for c in others)


def test_shares_are_static_where_the_batch_size_tells() -> None:
    shares = static_shares(objectives.meanflow())
    assert (shares["dropped"].numerator, shares["dropped"].denominator) == (2, 15)
    assert shares["dropped"].on == "diagonal"
    assert static_shares(objectives.tvm()) == {}
    assert static_shares(objectives.curvature())["second"].on_others


def test_ranges_follow_the_laws() -> None:
    tvm = objectives.tvm()
    assert of_draw("s", tvm) == (0.0, 1.0)
    graph = lower(objectives.alphaflow())
    ranges = of_nodes(graph)
    named = {n.name: ranges[i] for i, n in enumerate(graph.nodes) if n.name}
    assert named["alpha"] == (0.0, 1.0)
    assert of_draw("omega", objectives.imf()) == (1.0, 8.0)


def test_distribution_functions_of_sorted_draws() -> None:
    meanflow = objectives.meanflow()
    first, second = draw_cdf("t", meanflow), draw_cdf("r", meanflow)
    assert first is not None
    assert second is not None
    p = 0.6554217  # of logit_normal(-0.4, 1) at 1/2
    assert first(0.5) == pytest.approx(p**2, abs=1e-6)
    assert second(0.5) == pytest.approx(1 - (1 - p) ** 2, abs=1e-6)


def test_cost_in_forward_passes() -> None:
    flow_matching = cost(lower(objectives.flow_matching()))
    assert (flow_matching.forwards, flow_matching.backward) == (1, 2)
    naive = cost(lower(objectives.meanflow()), PLAIN)
    # three passes and a derivative on all rows; gradient runs back through the prediction only
    assert (naive.forwards, naive.derivatives, naive.backward) == (3, 3, 2)
    better = cost(run_passes(lower(objectives.meanflow(1, 0))).phases[0].graph)
    # one pass gives prediction and derivative where it is needed
    assert (better.forwards, better.backward) == (1, 2)
    assert better.derivatives == pytest.approx(0.25 * RULES.tangent)


def test_dominators_and_network() -> None:
    graph = lower(objectives.meanflow())
    network = graph.network()
    assert nx.is_directed_acyclic_graph(network)
    nearest = graph.dominators()
    loss = graph.outputs[0].loss
    assert nearest[loss] == -1
    stop = next(i for i, n in enumerate(graph.nodes) if n.name == "target")
    derivative = next(i for i in graph.calls() if graph[i].op == "derivative")
    seen = derivative
    while seen not in (stop, -1):
        seen = nearest[seen]
    assert seen == stop  # all influence of the derivative passes through the target


@pytest.mark.parametrize("name", EVERY)
def test_listings_and_pictures(name: str) -> None:
    graph = run_passes(lower(objectives.ALL[name]())).phases[-1].graph
    listing = graph_text(graph)
    assert listing.count("F\n") + listing.count("F (") >= len(graph.calls())
    assert "cost " in listing
    picture = svg(graph)
    boxes = xml.dom.minidom.parseString(picture).getElementsByTagName("rect")
    assert len(boxes) == len(graph.used) + len(graph.outputs)
    assert dot(graph).count(" -> ") == sum(len(graph[i].inputs) for i in graph.used) + len(
        graph.outputs
    )


def test_unknown_constants_are_named() -> None:
    with pytest.raises(DiagnosticError, match='did you mean "omega"'):
        lower(objectives.meanflow(), {"omgea": 2})
    with pytest.raises(DiagnosticError, match="has no loss of its own"):
        lower(replace(objectives.meanflow(), terms=()))


def test_many_occurrences_are_shared_after_all() -> None:
    objective = objectives.meanflow()
    term = objective.terms[0]
    deep = term.loss
    for _ in range(40):  # written out, 2^40 evaluations
        deep = objectives.add(deep, deep)
    graph = lower(replace(objective, terms=(replace(term, loss=deep),)))
    assert len(graph.calls()) < 1000


def test_the_path_tells_which_end_is_data() -> None:
    assert ends_of(objectives.meanflow()) == (0.0, 1.0)


def test_velocity_of_a_map_is_its_diagonal() -> None:
    for name in ("meanflow", "tvm", "imf"):
        names = [s.name for s in samplers(objectives.ALL[name]())]
        assert names == ["jump", "velocity", "path"]
        velocity = samplers(objectives.ALL[name]())[1].graph
        assert [velocity[c].op for c in velocity.calls()] == ["call"]  # no derivative is left


def test_nodes_know_their_level() -> None:
    graph = lower(objectives.alphaflow())
    alpha = next(n for n in graph.nodes if n.name == "alpha")
    assert alpha.level is Level.STEP
    assert graph.is_python(graph.nodes.index(alpha))


def test_interpreter_refuses_what_it_does_not_know() -> None:
    interpreter = Interpreter(lower(objectives.meanflow()), {}, torch.zeros(2, 3, dtype=DTYPE), {})
    with pytest.raises(KeyError):
        interpreter.node(Node("nonsense", (), Kind.SCALAR, Level.ROW), [])


def test_outputs_keep_their_rows() -> None:
    graph = lower(objectives.tvm())
    assert [o.rows is None for o in graph.outputs] == [False, True]
    assert isinstance(graph.outputs[0], Output)
