"""Targets that the calculus writes: as on paper, and the same as those that papers print."""

from __future__ import annotations

from pathlib import Path

from flowdsl.checks import check
from flowdsl.identities import IDENTITIES
from flowdsl.pipeline import load_text
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.derive import derive
from flowdsl.proof.errors import Clock
from flowdsl.proof.scalars import Scalars
from flowdsl.proof.state import State

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
