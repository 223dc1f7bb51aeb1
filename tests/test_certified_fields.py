"""Which field is to be learned, where a term tells it away from the row's own state."""

from __future__ import annotations

import pytest

from flowdsl.certify import certify
from flowdsl.checks import check
from flowdsl.checks.certificate import agreement
from flowdsl.pipeline import compiled, load, load_text

DISTILLED = """objective distilled
path z(t) = (1 - t) * data + t * noise
times t, s ~ sorted(uniform(0, 1))
network F(z, t, s | label); teacher(z, t | label) frozen
map z(t) -> z(s) = z + (s - t) * F(z, t, s)
guidance guided(x, q) = TEACHER
"""
LAGRANGIAN = (
    DISTILLED
    + """differentiate s
target match d/ds[map(z, t, s)] to guided(map(z, t, s), s)
loss mse
"""
)
EULERIAN = (
    DISTILLED
    + """differentiate t along guided(z, t)
target match map(z, t, s) to stop(map(z, t, s) - d/dt[map(z, t, s)])
loss mse
"""
)
SCALED = "1.5 * teacher(x, q) - 0.5 * teacher(x, q | label = null)"
MIXED = "0.4 * teacher(x, q | label = null) + 0.6 * teacher(x, q)"


@pytest.mark.parametrize("text", [LAGRANGIAN, EULERIAN])
@pytest.mark.parametrize("teacher", ["teacher(x, q)", SCALED, MIXED])
def test_the_field_of_a_frozen_teacher_is_read_on_the_diagonal(text: str, teacher: str) -> None:
    objective = load_text(text.replace("TEACHER", teacher))
    (term,) = certify(objective, compiled, rows=256, batches=8).terms
    assert term.outcome == "zero", term
    assert agreement(check(objective, find=load), term) == "agrees"


def test_a_slip_in_the_guidance_is_still_seen() -> None:
    wrong = LAGRANGIAN.replace("guided(map(z, t, s), s)", "guided(map(z, t, s), t)")
    objective = load_text(wrong.replace("TEACHER", SCALED))
    (term,) = certify(objective, compiled, rows=256, batches=8).terms
    assert term.outcome == "nonzero", term
    assert agreement(check(objective, find=load), term) == "agrees"


def test_a_field_that_no_equation_tells_is_not_measured() -> None:
    """Nothing is said of the data's flow in its place."""
    unread = LAGRANGIAN.replace("match d/ds[map(z, t, s)] to guided(map(z, t, s), s)",
                                "match d/ds[map(z, t, s)] to guided(map(z, t, 0), 0)")  # fmt: skip
    objective = load_text(unread.replace("TEACHER", SCALED))
    (term,) = certify(objective, compiled, rows=256, batches=8).terms
    assert term.outcome == "not measured"
    assert term.reason.startswith("which field is to be learned cannot be read: ")


TURNING = """objective turning "t" arXiv:1
path z(t) = (1 - t) * data + (t + t^2) / 2 * noise
times t ~ uniform(0, 1)
network v(z)
target match v(z) to velocity
loss mse
"""


def test_a_network_that_is_not_shown_its_time_is_measured_where_a_state_can_tell_it() -> None:
    (term,) = certify(load_text(TURNING), compiled, rows=256, batches=8).terms
    assert term.outcome == "not measured"
    assert term.reason == "a network is not shown the time, and no state tells it"
    told = load_text(TURNING.replace("(t + t^2) / 2", "t^2"))
    (term,) = certify(told, compiled, rows=256, batches=8).terms
    assert term.outcome == "zero", term
