"""Targets that the calculus writes: as on paper, and the same as those that papers print."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowdsl.calculus.errors import Clock
from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.state import State
from flowdsl.checks import check
from flowdsl.diagnostics import DiagnosticError
from flowdsl.identities import IDENTITIES
from flowdsl.pipeline import load_text
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.derive import derive
from flowdsl.proof.show import ratio

RULES = tuple(IDENTITIES.values())

GOOD = Path(__file__).parent / "good"


def draft(name: str) -> str:
    return (GOOD / f"{name}.flow").read_text()


# scalars inside functions


def test_a_symbol_is_replaced_inside_functions() -> None:
    for function in ("sin", "cos", "exp", "log", "sqrt", "atan"):
        scalars = Scalars(["t", "s"])
        t, s = scalars.symbol("t"), scalars.symbol("s")
        apply = getattr(scalars, function)
        x = apply(t * t + 1) / (t + scalars.number(2))
        moved = scalars.substitute(x, scalars.index("t"), s * 3)
        assert moved == apply(s * s * 9 + 1) / (s * 3 + scalars.number(2)), function
        assert scalars.rename(x, scalars.index("t"), scalars.index("s")) == apply(s * s + 1) / (
            s + scalars.number(2)
        )


def test_a_symbol_is_replaced_by_one_that_moves() -> None:
    scalars = Scalars(["t"])
    t, index = scalars.symbol("t"), scalars.small()
    moved = scalars.substitute(scalars.sin(t * 2), scalars.index("t"), t + scalars.generator(index))
    slope = scalars.at_zero(scalars.derivative(moved, index), index)
    assert slope == scalars.cos(t * 2) * 2


# what networks see


def test_a_network_that_sees_a_duration() -> None:
    found = derive(load_text(draft("imf")))
    assert found.prediction_text == "u(z, t - r)"
    assert found.target_text == "stop(own - (t - r) * d/dt[u(z, t - r)])"
    assert r"\frac{d}{dt}\left[u(z, t - r)\right]" in found.latex


def test_a_network_that_sees_a_scaled_state() -> None:
    found = derive(load_text(draft("scm")))
    assert found.target_text == (
        "stop(-sin(t) / (sd * cos(t)) * z + velocity / sd - sin(t) / cos(t) * d/dt[F(z / sd, t)])"
    )


def test_a_direction_is_shown_as_it_was_written() -> None:
    found = derive(load_text(draft("decoupled_meanflow")))
    assert found.target_text == ("stop(guided(z, t, velocity) - (t - r) * d/dt[u(z, t, r)])")


# the derived target and the published one

SCM = """objective scm_like "sCM" arXiv:2410.11081
constants     sd = 0.5
path          z(t) = cos(t) * data + sin(t) * sd * noise
times         t ~ uniform(0.1, 1.4)
network       F(x, t)
map           z(t) -> z(0) = cos(t) * z - sin(t) * sd * F(z / sd, t)
differentiate t along velocity
target        {target}
loss          error
"""
SCM_PUBLISHED = (  # Lu and Song 2024, eq. 7: dF is (velocity - F) / tan t, and the state's share
    "match F(z / sd, t) to stop(velocity / sd - sin(t) / cos(t) * (z / sd + d/dt[F(z / sd, t)]))"
)


def differences(one: str, other: str) -> tuple[State, State]:
    """By how much residuals and variations of two specs differ, for every network."""
    mine, yours = (Analysis(load_text(text), RULES, Clock(20.0)) for text in (one, other))
    mine.share_with(yours)
    studies = [a.study(next(iter(a.all_cases())), "free", frozenset()) for a in (mine, yours)]
    left, right = studies
    return left.residual - right.residual, left.variation - right.variation


def test_continuous_consistency_is_derived_as_published() -> None:
    derived, published = (SCM.format(target=t) for t in ("derived", SCM_PUBLISHED))
    residual, variation = differences(derived, published)
    assert not residual
    assert not variation
    wrong = SCM_PUBLISHED.replace("velocity / sd - sin", "velocity / sd + sin")
    assert differences(derived, SCM.format(target=wrong))[0]
    (verdict,) = check(load_text(derived)).of("identity")
    assert (verdict.status, verdict.identities) == ("proved", (("eulerian",),))


MEANFLOW = """objective mean_like "MeanFlow" arXiv:2505.13447
path          z(t) = (1 - t) * data + t * noise
times         t, r ~ sorted(uniform(0, 1))
network       u(z, t, r)
map           z(t) -> z(r) = z - (t - r) * u(z, t, r)
differentiate t along velocity
target        {target}
loss          error
"""
IMF = """objective imf_like "improved MeanFlow" arXiv:2512.02012
path          z(t) = (1 - t) * data + t * noise
times         t, r ~ sorted(uniform(0, 1))
network       net(z, h) -> u, v
map           z(t) -> z(r) = z - (t - r) * u(z, t - r)
differentiate t along v(z, 0)
target        average: {target}
              instant: match v(z, t - r) to stop(velocity)
loss          error
"""
TVM = """objective tvm_like "Terminal Velocity Matching" arXiv:2511.19797
constants     w = 2
path          z(t) = (1 - t) * data + t * noise
times         t, s ~ sorted(uniform(0, 1))
network       F(z, t, s)
map           z(t) -> z(s) = z + (s - t) * w * F(z, t, s)
differentiate s
target        {target}
loss          error
"""
FREE_FLOW = """objective free_like "Free FlowMap" arXiv:2511.19428
path          z(t) = (1 - t) * data + t * noise
times         s ~ uniform(0, 1)
network       F(z, s); teacher(z, t) frozen
map           z(1) -> z(s) = z(1) + (s - 1) * F(z(1), s)
differentiate s
target        {target}
loss          error
"""
INNER = """objective inner_like "Transition Matching: the inner map" arXiv:2601.09881
path          z(t) = (1 - t) * data + t * noise
              y(s) = (1 - s) * (noise - data) + s * noise'
times         t ~ uniform(0, 1); s, r ~ sorted(uniform(0, 1)); noise' ~ normal(0, 1)
network       backbone(z, t) -> features; head(y, s, r | features)
map           inner: y(s) -> y(r) = y + (r - s) * (y - {head}) / s
differentiate s along velocity(y(s))
target        {target}
loss          error
"""
HEAD = "head(y(s), s, r | features = backbone(z, t))"
INNER = INNER.replace("{head}", HEAD.replace("y(s)", "y"))
PUBLISHED = {
    "MeanFlow": (MEANFLOW, "match u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])"),
    "iMF": (IMF, "match u(z, t - r) + (t - r) * stop(d/dt[u(z, t - r)]) to stop(v(z, 0))"),
    "TVM": (
        TVM,
        "match w * F(z, t, s) + stop((s - t) * w * d/ds[F(z, t, s)]) "
        "to stop(w * F(map(z, t, s), s, s))",
    ),
    "sCM": (SCM, SCM_PUBLISHED),
    "Free FlowMap": (
        FREE_FLOW,
        "match F(noise, s) to "
        "stop(F(noise, s) - (d/ds[map(noise, 1, s)] - teacher(map(noise, 1, s), s)))",
    ),
    "Transition Matching": (
        INNER,
        f"match {HEAD} to stop(y(s) - s * velocity(y(s)) - s * (s - r) / r * d/ds[{HEAD}])",
    ),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_derived_target_is_the_published_one(method: str) -> None:
    """Equal residual for every network, up to the factor by which the equation was divided."""
    text, published = PUBLISHED[method]
    factor, variation = ratios(text.format(target="derived"), text.format(target=published))
    assert factor is not None
    assert variation is not None
    wrong = published.replace("to stop(", "to stop(2 * ", 1)
    assert ratios(text.format(target="derived"), text.format(target=wrong))[0] is None
    found = check(load_text(text.format(target="derived")), only=["identity"])
    assert {v.status for v in found.of("identity")} <= {"proved", "note"}


def ratios(one: str, other: str) -> tuple[object, object]:
    """The factors between residuals and between variations of two specs; None where there is no
    single one."""
    mine, yours = (Analysis(load_text(text), RULES, Clock(20.0)) for text in (one, other))
    mine.share_with(yours)
    left, right = (a.study(next(iter(a.all_cases())), "free", frozenset()) for a in (mine, yours))
    return ratio(left.residual, right.residual), ratio(left.variation, right.variation)


def test_the_inner_map_as_printed_is_no_flow_map() -> None:
    """With (s - r) in the place of (r - s) the right target is not what the map implies."""
    printed = INNER.replace("(r - s) * (y - head", "(s - r) * (y - head")
    target = "match " + HEAD + " to stop(y(s) - s * velocity(y(s)) - s * (s - r) / r * d/ds[" + HEAD
    found = check(load_text(printed.format(target=target + "])")), only=["identity"])
    assert [v.status for v in found.of("identity") if v.term] == ["refuted"]


def test_a_map_that_starts_at_one_time_needs_a_teacher() -> None:
    alone = FREE_FLOW.replace("; teacher(z, t) frozen", "")
    with pytest.raises(DiagnosticError, match="no frozen network does"):
        load_text(alone.format(target="derived"))
    target = derive(load_text(FREE_FLOW.format(target="derived"))).target_text
    assert target == "stop(teacher(map(z(1), 1, s), s) - (s - 1) * d/ds[F(z(1), s)])"


@pytest.mark.parametrize(
    ("read", "status"), [("z(t), t", "proved"), ("y(q), t", "refuted"), ("z(t), s0", "refuted")]
)
def test_an_inner_map_reads_outer_states_and_times_only(read: str, status: str) -> None:
    """What conditions the inner flow may be read; a state of its own path, or a time drawn for
    nothing else, may not."""
    text = f"""objective x
path z(t) = (1 - t) * data + t * noise
     y(s) = (1 - s) * data + s * noise'
times t, q, s0 ~ uniform(0, 1); s, r ~ sorted(uniform(0, 1)); noise' ~ normal(0, 1)
network u(y, s, r, x, t)
map inner: y(s) -> y(r) = y + (r - s) * u(y, s, r, {read})
target match u(y(s), s, s, z(t), t) to noise' - data
"""
    found = check(load_text(text), only=["boundary"])
    assert {v.status for v in found.of("boundary") if v.term == "inner"} == {status}


@pytest.mark.parametrize("way", ["z - (t - r) *", "z + (r - t) *"])
@pytest.mark.parametrize("moving", ["t", "r"])
def test_differences_of_times_stand_as_the_map_writes_them(way: str, moving: str) -> None:
    text = f"""
objective mine
path          z(t) = (1 - t) * data + t * noise
times         t, r ~ sorted(uniform(0, 1))
network       u(z, t, r)
map           z(t) -> z(r) = {way} u(z, t, r)
differentiate {moving}
target        derived
"""
    objective = load_text(text)
    found = derive(objective)
    kept, other = ("t - r", "r - t") if "t - r" in way else ("r - t", "t - r")
    assert f"({kept}) *" in found.target_text
    assert other not in found.text
    assert found.text.splitlines()[0].endswith(f"φ = {way} u(z, t, r)")
    assert all(v.ok for v in check(objective, only=["identity"]).verdicts)
