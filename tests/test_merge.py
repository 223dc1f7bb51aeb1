"""Evaluations of one network in one call: the same loss and gradients, within the rows allowed."""

from __future__ import annotations

import re

import pytest
import torch
from typer.testing import CliRunner

import flowdsl
from flowdsl import pipeline
from flowdsl.cli import app
from flowdsl.diagnostics import DiagnosticError
from flowdsl.ir.graph import Graph
from flowdsl.ir.lower import lower
from flowdsl.ir.together import made
from flowdsl.passes.options import Options
from flowdsl.spec.objective import Objective
from tests.compiler_support import batch, error, interpreted, networks, outcome

ROWS = 40
#: What is left to merge: guidance, a teacher's, that of two heads, and averages.
MERGED = {
    "meanflow": {"u": 1},
    "alphaflow": {"u": 1},
    "free_flow": {"teacher": 2},
    "imf": {"net": 1},
    "tvm": {"slow": 1},
    "uaimf": {"u": 1},
}

#: The calls of u and those of slow could each be one, but not both pairs: each waits for the other.
CROSSING = """\
objective crossing  "Evaluations that wait for one another"
path          z(t) = (1 - t) * data + t * noise
times         t ~ uniform(0, 1)
network       u(z, t); slow = ema(u, decay = 0.9)
target        match u(z(t), t) to stop(u(z(t) + slow(z(t), t), t) + slow(z(t) + u(-z(t), t), t))
"""


def graph_of(objective: Objective, merge: float | None, progress: int = -1) -> Graph:
    return pipeline.optimised(objective, Options(merge=merge)).phases[progress].graph


def merged(graph: Graph) -> list[tuple[int, ...]]:
    return [group for group in made(graph) if len(group) > 1]


@pytest.mark.parametrize("name", MERGED)
def test_the_same_loss_from_fewer_calls(name: str) -> None:
    objective = pipeline.load(name)
    nets, (data, label) = networks(objective), batch(ROWS)
    losses = [pipeline.compiled(objective, Options(merge=m)) for m in (None, 4.0)]
    draws = losses[0].draw(data, generator=torch.Generator().manual_seed(4))
    found, calls, rows = [], [], []
    for loss in losses:
        for net in nets.values():
            net.calls = 0
            net.rows.clear()
        value, terms = loss(nets, data, draws=draws, label=label, progress=0.5)
        found.append(outcome(terms, value, nets))
        calls.append({role: net.calls for role, net in nets.items()})
        rows.append({role: sum(net.rows) for role, net in nets.items()})
    assert error(*found) < 1e-12
    assert {r: n - calls[1][r] for r, n in calls[0].items() if n > calls[1][r]} == MERGED[name]
    assert rows[0] == rows[1]


def test_against_the_formula_as_written() -> None:
    """The interpreter makes each evaluation by itself."""
    objective = pipeline.load("meanflow")
    nets, (data, label) = networks(objective), batch(ROWS)
    loss = pipeline.compiled(objective, Options(merge=2.0))
    draws = loss.draw(data, generator=torch.Generator().manual_seed(4))
    value, terms = loss(nets, data, draws=draws, label=label)
    expected = interpreted(lower(objective), nets, data, draws, label)
    assert error(outcome(terms, value, nets), expected) < 1e-12


@pytest.mark.parametrize(("limit", "calls"), [(1.0, 4), (1.14, 4), (1.16, 3), (2.0, 3)])
def test_no_call_of_more_rows_than_allowed(limit: float, calls: int) -> None:
    """Guidance is asked for on 25 % and 90 % of the rows."""
    objective = pipeline.load("meanflow")
    assert len(made(graph_of(objective, limit))) == calls
    nets, (data, label) = networks(objective), batch(ROWS)
    pipeline.compiled(objective, Options(merge=limit))(nets, data, label=label)
    assert nets["u"].calls == calls + 1  # this network takes two for a value and its derivative
    assert max(nets["u"].rows) <= limit * ROWS


def test_what_waits_for_another_is_not_merged_with_it() -> None:
    objective = flowdsl.loads(CROSSING).typed
    graph = graph_of(objective, 9.0)
    (group,) = merged(graph)
    assert len(group) == 2
    assert not any(a in graph[b].inputs for a in group for b in group)
    nets, (data, label) = networks(objective), batch(8)
    loss = pipeline.compiled(objective, Options(merge=9.0))
    draws = loss.draw(data)
    value, terms = loss(nets, data, draws=draws, label=label)
    expected = interpreted(lower(objective), nets, data, draws, label)
    assert error(outcome(terms, value, nets), expected) < 1e-12


def test_a_player_computes_its_own_terms_only() -> None:
    """No call serves two players, in any shipped objective."""
    several = [n for n in flowdsl.shipped() if pipeline.load(n).players]
    assert several
    for name in several:
        for phase in pipeline.optimised(pipeline.load(name), Options(merge=9.0)).phases:
            graph = phase.graph
            readers = {at: {o.term for o in graph.outputs if at in _needed(graph, o.loss)}
                       for at in graph.calls()}  # fmt: skip
            assert all(readers[at] == readers[group[0]] for group in made(graph) for at in group)


def _needed(graph: Graph, root: int) -> set[int]:
    found, stack = set[int](), [root]
    while stack:
        at = stack.pop()
        if at not in found:
            found.add(at)
            stack.extend(graph[at].inputs)
    return found


def test_shown_and_off_unless_asked_for() -> None:
    objective = flowdsl.load("meanflow")
    assert "in_one_call" not in objective.emit()
    with pytest.raises(DiagnosticError, match="merge must be at least 1"):
        objective.emit(merge=0.5)
    run = CliRunner().invoke(app, ["compile", "meanflow", "--emit", "graph", "--merge", "2"])
    assert run.exit_code == 0
    assert "meanflow: 46 values, 3 network passes" in run.output
    assert len(re.findall(r"no graph, in call 1 ", run.output)) == 2
    before, after = (int(re.search(rf"^{word} .*?(\d+) +\S+ F$", run.output, re.M)[1])  # type: ignore[index]
                     for word in ("duals", "merge"))  # fmt: skip
    assert (before, after) == (4, 3)
