"""Certificates of specs: verdicts on right and on wrong objectives, and what cannot be measured."""

from __future__ import annotations

import json

import pytest
import torch
from certify_support import GOOD, SPECS, certificate

from flowdsl.certify import certify
from flowdsl.certify.decay import families
from flowdsl.checks import Report, Verdict, check
from flowdsl.checks.certificate import (
    LOSS_REPLACED,
    CertificateReport,
    agreement,
    with_certificate,
)
from flowdsl.diagnostics import render
from flowdsl.pipeline import compiled as compile_spec
from flowdsl.pipeline import load, load_text
from flowdsl.sources import shipped_names

#: Whole specs, again and again: line coverage is measured by the tests of each part.
pytestmark = pytest.mark.untraced

torch.set_num_threads(1)


QUICK = {"rows": 256, "batches": 12}


# --- verdicts on shipped specs ---


@pytest.mark.parametrize("spec", ["flow_matching", "meanflow", "tvm", "shortcut"])
def test_shipped_objectives_are_certified(spec: str) -> None:
    found = certificate(spec)
    assert found.ok, found.render()
    assert {t.outcome for t in found.terms} == {"zero"}
    for term in found.terms:
        for one in term.measurements:
            assert one.z <= 4
            assert one.relative < 2e-4
            assert one.error < 5e-4
    report = with_certificate(check(load(spec), find=load), found)
    assert report.ok, report.render()
    assert {v.status for v in report.of("certificate")} == {"certified"}
    json.dumps(found.as_dict())


def test_alphaflow_is_certified_to_second_order() -> None:
    found = certificate("alphaflow")
    (term,) = found.terms
    assert term.outcome == "decays", found.render()
    assert term.decay is not None
    assert abs(term.decay.order - 2) < 0.75
    by_place = {m.at: m.outcome for m in term.measurements}
    assert by_place["diagonal"] == "zero"  # the curriculum has no part in these rows
    assert by_place["not diagonal, the end of training"] == "zero"
    steps = [m for m in term.measurements if "|alpha|" in m.at]
    assert len(steps) == 2
    assert {m.outcome for m in steps} == {"nonzero"}
    report = with_certificate(check(load("alphaflow"), find=load), found)
    verdict, tied = report.of("certificate")
    assert (verdict.shown, tied.status, report.ok) == ("order 2", "certified", True)


#: Certified above; or ten seconds long and alike to one of them (alphaflow_xl), or to one that is
#: certified here (imf is imf_boundary with another head).
CLOSER = {"alphaflow_xl", "imf", "flow_matching", "meanflow", "tvm", "shortcut", "alphaflow",
          "alphaflow_squared", "trajectory_flow_matching"}  # fmt: skip


@pytest.mark.parametrize("spec", sorted(set(shipped_names()) - CLOSER))
def test_no_shipped_objective_contradicts_its_proof(spec: str) -> None:
    objective = load(spec)
    found = certify(objective, compile_spec, rows=256, batches=8, find=load)
    report = with_certificate(check(objective, find=load), found)
    words = {t.term: agreement(report, t) for t in found.terms}
    assert set(words.values()) <= {"agrees", "not measured"}, found.render()
    assert all(t.reason for t in found.terms)
    assert "disagreement" not in {v.status for v in report.of("certificate")}


def test_a_weight_of_one_over_the_step_is_no_part_of_the_order() -> None:
    """The gradient falls like alpha, as its own scale does: the residual like its square."""
    found = certify(load("alphaflow_squared"), compile_spec)
    (term,) = found.terms
    assert (term.outcome, term.replaced) == ("decays", ())
    assert term.decay is not None
    assert abs(term.decay.order - 2) < 0.5
    report = with_certificate(check(load("alphaflow_squared"), find=load), found)
    assert [v.shown for v in report.of("certificate") if v.term] == ["order 2"]


def test_trajectory_flow_matching_is_refuted_by_both() -> None:
    found = certificate("trajectory_flow_matching")
    assert [t.outcome for t in found.terms] == ["nonzero"]
    assert not found.ok
    report = with_certificate(check(load("trajectory_flow_matching"), find=load), found)
    assert [v.status for v in report.of("certificate")] == ["refuted", "certified"]
    assert report.of("certificate")[0].message.startswith("agrees: the mean gradient does not")
    assert not report.ok


MEAN = """objective mean "t" arXiv:1
path z(t) = (1 - t) * data + t * noise
times t, r ~ sorted(uniform(0, 1))
network u(z, t, r)
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
differentiate t along velocity
target match u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])
loss LOSS
"""


@pytest.mark.parametrize(
    ("loss", "proof", "status"),
    [
        ("mse / (1 + norm(velocity))", "biased", "refuted"),
        ("mse * (1 + norm(velocity)^2)", "biased", "refuted"),
        ("mse / (1 + norm(z)^2)", "proved", "certified"),
    ],
)
def test_a_bias_of_the_loss_is_looked_for_in_the_loss(loss: str, proof: str, status: str) -> None:
    """The plain squared error, measured in its place, knows nothing of the weight."""
    objective = load_text(MEAN.replace("LOSS", loss))
    found = certify(objective, compile_spec, **QUICK)
    (term,) = found.terms
    assert (term.outcome, term.replaced) == ("zero", (LOSS_REPLACED,))
    assert term.as_written is not None
    assert (term.as_written.outcome == "nonzero") == (proof == "biased"), found.render()
    report = with_certificate(check(objective), found)
    assert [v.status for v in report.of("unbiased")] == [proof]
    assert agreement(report, term) == "agrees"
    assert [v.status for v in report.of("certificate") if v.term] == [status]


WRONG = {
    "sign": ("meanflow", "guided - (t - r)", "guided + (t - r)"),
    "tangent": ("meanflow", "d/dt[u(z, t, r)]", "d/dt[u(z, t, r) along none]"),
    "point": ("tvm", "slow(map(z, t, s), s, s)", "slow(z, s, s)"),
    "time": ("tvm", "slow(map(z, t, s), s, s)", "slow(map(z, t, s), t, s)"),
    "forgotten w": ("tvm", "stop(w * slow(map", "stop(slow(map"),
    "weights": (
        "shortcut",
        "(first + slow(middle, m, r)) / 2",
        "(first + 2 * slow(middle, m, r)) / 3",
    ),
    "middle": ("shortcut", "(t - m) * first", "(t - r) * first"),
    "guidance": ("meanflow", "(1 - omega - kappa)", "(1 - omega)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_objectives_are_refuted_by_measurement(name: str) -> None:
    spec, old, new = WRONG[name]
    text = (SPECS / f"{spec}.flow").read_text()
    assert old in text
    objective = load_text(text.replace(old, new))
    found = certify(objective, compile_spec)
    term = found.of("target")
    assert term is not None
    assert term.outcome == "nonzero", found.render()
    assert max(m.z for m in term.measurements) >= 10, found.render()
    assert max(m.relative for m in term.measurements) > 0.01
    assert agreement(check(objective, find=load), term) in ("agrees", "measured alone")


CHAIN = """objective chain "the chain rule, as an objective" arXiv:1
path z(t) = (1 - t) * data + t * noise
times t, r ~ sorted(uniform(0, 1)); m = (t + r) / 2
network u(z, t, r)
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
let y = map(z, t, m)
target match d/dz[map(z, t, r) along velocity] to stop({inner})
anchor match u(z, t, t) to velocity
loss mse
"""


RIGHT = "d/dy[map(y, m, r) along d/dz[map(z, t, m) along velocity]]"


SWAPPED = "d/dz[map(z, t, m) along d/dy[map(y, m, r) along velocity]]"


def test_two_jacobians_in_the_wrong_order_are_seen() -> None:
    right, swapped = (
        certify(load_text(CHAIN.format(inner=inner)), compile_spec, rows=256, batches=8)
        for inner in (RIGHT, SWAPPED)
    )
    assert [t.outcome for t in right.terms] == ["zero", "zero"], right.render()
    (one,) = right.terms[0].measurements
    assert one.relative < 1e-3
    term = swapped.of("target")
    assert term is not None
    assert term.outcome == "nonzero", swapped.render()
    # they differ by 3 per cent; a z-score of four batches alone would say more than it knows
    assert term.measurements[0].z >= 4, swapped.render()


# --- what ties the flow to the data ---


def test_a_term_that_holds_for_every_flow_ties_nothing() -> None:
    found = certificate("tvm")
    assert [t.ties for t in found.terms] == [False, True]
    assert found.tied
    text = (SPECS / "tvm.flow").read_text()
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("anchor"))
    objective = load_text(kept)
    alone = certify(objective, compile_spec, **QUICK)
    assert alone.tied is False
    report = with_certificate(check(objective, find=load), alone)
    last = report.of("certificate")[-1]
    assert (last.status, last.message.split(":")[0]) == ("unanchored", "agrees")
    # a proof that says otherwise is contradicted, loudly
    proof = Report("o", "", (Verdict("anchored", "proved", "m", "target"),))
    joined = with_certificate(proof, alone)
    assert joined.of("certificate")[-1].status == "disagreement"
    assert any("contradict each other" in render(d) for d in joined.diagnostics)


CONSISTENCY = """objective consistency "t" arXiv:1
path z(t) = (1 - t) * data + t * noise
times t ~ uniform(0.7, 1); gap ~ uniform(0, 0.7); s = t - gap
network f(z, t)
map z(t) -> z(0) = z + t * f(z, t)
target match map(z, t, 0) to stop(map(z(s), s, 0))
loss mse
"""


def test_consistency_training_falls_with_the_gap_of_its_times() -> None:
    """A step that is drawn is scaled down: a bias of second order."""
    found = certify(load_text(CONSISTENCY), compile_spec, rows=512, batches=16)
    (term,) = found.terms
    assert term.outcome == "decays", found.render()
    assert term.decay is not None
    assert term.decay.small == "(t - s)"
    assert 1.25 < term.decay.order < 2.75
    report = with_certificate(check(load_text(CONSISTENCY)), found)
    assert [v.shown for v in report.of("certificate") if v.term] == ["order 2"]


@pytest.mark.parametrize(
    ("spec", "small"),
    [("consistency_training", "(t - s)"), ("consistency_trajectory", "(t - u)")],
)
def test_levels_of_one_draw_are_brought_closer_whatever_else_is_drawn(
    spec: str, small: str
) -> None:
    objective = load(spec)
    first = next(families(objective, objective.terms[0]))
    assert first.small == small


def test_times_drawn_by_themselves_are_not_brought_closer() -> None:
    """Their distance is whatever the laws make it, for the proof and for the measurement."""
    text = CONSISTENCY.replace("t ~ uniform(0.7, 1); gap ~ uniform(0, 0.7); s = t - gap",
                               "t, s ~ sorted(uniform(0, 1))")  # fmt: skip
    found = certify(load_text(text), compile_spec, rows=512, batches=16)
    assert found.terms[0].outcome == "nonzero", found.render()
    report = with_certificate(check(load_text(text)), found)
    assert [v.status for v in report.of("identity")] == ["refuted"]
    assert "disagreement" not in {v.status for v in report.of("certificate")}


# --- what cannot be measured ---

PLAIN = """objective plain "t" arXiv:1
path z(t) = (1 - t) * data + t * noise
times t, r ~ sorted(uniform(0, 1)); noise' ~ normal(0, 1)
network {network}
map {map}
differentiate t along velocity
target {target}
loss mse
"""


@pytest.mark.parametrize(
    ("network", "map_", "target", "reason"),
    [
        (
            "u(z, t, r)",
            "z(t) -> z(r) = z - (t - r) * (u(z, t, r) + u(z, r, t))",
            "match u(z, t, r) to velocity",
            "more than once",
        ),
        (
            "u(z, t, r)",
            "z(t) -> z(r) = z - (t - r) * u(z, t, r)",
            "match u(z(t | data = map(noise, 1, 0)), t, r) to velocity",
            "generated samples",
        ),
        (
            "u(z, t, r); a(z) -> scalar",
            "z(t) -> z(r) = z - (t - r) * u(z, t, r)",
            "minimise a(z)",
            "no identity",
        ),
    ],
)
def test_what_cannot_be_certified_says_why(
    network: str, map_: str, target: str, reason: str
) -> None:
    text = PLAIN.format(network=network, map=map_, target=target)
    found = certify(load_text(text), compile_spec, **QUICK)
    assert found.ok
    assert {t.outcome for t in found.terms} == {"not measured"}
    assert any(reason in t.reason for t in found.terms), found.render()
    shown = with_certificate(check(load_text(text)), found).of("certificate")
    assert {v.status for v in shown} == {"not applicable"}
    assert all("not measured" in v.message for v in shown)


def test_a_spec_beyond_the_certificate_does_not_crash_it() -> None:
    found = certify(load(str(GOOD / "free_flow.flow")), compile_spec, **QUICK)
    assert {t.outcome for t in found.terms} == {"not measured"}


def test_a_term_on_generated_samples_leaves_those_on_data_measured() -> None:
    """What such a term alone teaches, and what is only minimised, need not be known for them."""
    text = (SPECS / "flow_matching.flow").read_text()
    text = text.replace("t ~ uniform(0, 1)", "t ~ uniform(0, 1); noise' ~ normal(0, 1)")
    text = text.replace("network ", "network a(z) -> scalar; fake(z, t); ", 1)
    text = text.replace(
        "to velocity",
        """to velocity
critic match fake(x, t) to velocity(x)
    minimise a(x)""",
    ).replace("target ", "let x = z(t | data = stop(v(noise', t)))\ntarget ", 1)
    found = certify(load_text(text), compile_spec, **QUICK)
    assert [t.outcome for t in found.terms] == ["zero", "not measured", "not measured"]
    assert found.terms[1].reason == "a path state is made of generated samples"


def test_a_network_with_a_pole_is_not_measured() -> None:
    text = (SPECS / "meanflow.flow").read_text()
    wrong = text.replace("= z - (t - r) * u(z, t, r)", "= 2 * z - (t - r) * u(z, t, r)")
    found = certify(load_text(wrong), compile_spec, **QUICK)
    assert [t.outcome for t in found.terms] == ["not measured"]
    assert "finite" in found.terms[0].reason


def test_certificates_are_reproducible() -> None:
    objective = load("flow_matching")
    one, other = (certify(objective, compile_spec, **QUICK) for _ in range(2))

    def told(report: CertificateReport) -> list[tuple[str, float, float]]:
        return [(m.outcome, m.z, m.relative) for t in report.terms for m in t.measurements]

    assert told(one) == told(other)
    assert told(one) != told(certify(objective, compile_spec, **QUICK, seed=5))
