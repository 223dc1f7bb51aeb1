"""Objectives that are right by construction, composed at random: none may be objected to, and one
slip in the target written out may not pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from flowdsl import pipeline
from flowdsl.certify import certify
from flowdsl.checks import Report, check
from flowdsl.checks.certificate import with_certificate
from flowdsl.diagnostics import DiagnosticError
from flowdsl.emit import compile_objective
from flowdsl.ir.lower import lower
from flowdsl.pipeline import load_text, parse
from flowdsl.spec.objective import Objective
from flowdsl.syntax.layout import read_source
from tests.compiler_support import batch, error, interpreted, networks, outcome
from tests.mutation_fates import beside, same
from tests.mutations import Mutant, mutants_of
from tests.right_objectives import right_specs, written_out

#: Whole specs, again and again: line coverage is measured by the tests of each part.
pytestmark = pytest.mark.untraced

FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def failing(report: Report) -> list[str]:
    return [f"{v.check} {v.shown}: {v.reason}" for v in report.verdicts if not v.ok]


@settings(FIXED, max_examples=30)
@given(right_specs())
def test_right_objectives_are_accepted(text: str) -> None:
    assert not failing(check(load_text(text))), text


def slips(text: str) -> list[Mutant]:
    """The spec, its target written out, with one change of that target."""
    tree = parse(read_source(text.encode(), "random"))
    return [m for m in mutants_of("random", tree) if m.section == "target"]


@settings(FIXED, max_examples=12)
@given(right_specs(), st.integers(0, 10**6))
def test_a_slip_in_a_target_written_out_does_not_pass(spec: str, which: int) -> None:
    text = written_out(spec)
    right = load_text(text)
    assert not failing(check(right)), text
    found = slips(text)
    slip = found[which % len(found)]
    try:
        wrong = load_text(slip.text)
    except DiagnosticError:
        return  # not read: killed with a sentence
    report = check(wrong)
    bad = failing(report)
    if not bad:
        assert is_equivalent(right, wrong, report), f"{slip.name}\n{text}"
    else:
        assert any(v.status != "undecided" for v in report.verdicts if not v.ok), slip.name
    event("killed" if bad else "equivalent")


def is_equivalent(right: Objective, wrong: Objective, report: Report) -> bool:
    """The same gradient for every network; or no residual on any sample, stopped or not."""
    if same(right, wrong) or beside(right, wrong)[0]:
        return True
    exact = "the residual is zero for every sample"
    return all(v.message == exact for v in report.of("unbiased") if v.term == "target")


@settings(FIXED, max_examples=6)
@given(right_specs())
def test_their_losses_compute_what_the_graph_says(spec: str) -> None:
    objective = load_text(spec)
    nets, (data, label) = networks(objective), batch(16)
    loss = compile_objective(objective)
    draws = loss.draw(data, generator=torch.Generator().manual_seed(2))
    value, terms = loss(nets, data, draws=draws, label=label, progress=0.5, step=50, steps=100)
    expected = interpreted(lower(objective), nets, data, draws, label, 0.5)
    assert error(outcome(terms, value, nets), expected) < 1e-10


@settings(FIXED, max_examples=3)
@given(right_specs())
def test_their_losses_are_stationary_at_the_truth(spec: str) -> None:
    objective = load_text(spec)
    report = check(objective)
    joined = with_certificate(report, certify(objective, pipeline.compiled))
    shown = [v.status for v in joined.of("certificate")]
    assert "disagreement" not in shown, joined.render()
    assert "certified" in shown, joined.render()
