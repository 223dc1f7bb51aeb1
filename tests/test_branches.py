"""|x|, min, max, clip and floor of times: what they are on the rows where they stand."""

from __future__ import annotations

import pytest

from flowdsl.checks import Report, check
from flowdsl.pipeline import load, load_text

SPEC = """objective one "MeanFlow with another factor" arXiv:1
path          z(t) = (1 - t) * data + t * noise
times         t, r ~ sorted(uniform(0, 1)); q ~ uniform(0, 1)
network       u(z, t, r)
map           z(t) -> z(r) = z - (t - r) * u(z, t, r)
differentiate t
target        match u(z, t, r) to stop(velocity - {factor} * d/dt[u(z, t, r)])
loss          mse
"""


def judged(factor: str) -> Report:
    return check(load_text(SPEC.format(factor=factor)), find=load)


# fmt: off
RIGHT = ["abs(t - r)", "abs(r - t)", "sqrt((t - r)^2)", "max(t - r, r - t)", "-min(t - r, r - t)",
         "min(t - r, 2)", "clip(t - r, 0, 1)", "floor(t + 1) * (t - r)", "ceil(t - r) * (t - r)",
         "abs(t - r)^3 / (t - r)^2"]
WRONG = ["abs(t - q)", "max(t - r, q)", "min(t - r, 0.5)", "clip(t - r, 0, 0.5)", "floor(t + r)",
         "sqrt((t - r)^2 + 0.01)", "-abs(t - r)", "ceil(2 * t) * (t - r)", "snap(t - r, 0.3)"]
# fmt: on


@pytest.mark.parametrize("factor", RIGHT)
def test_the_branch_that_the_rows_take_is_proved(factor: str) -> None:
    found = judged(factor)
    assert found.ok, found.render()


@pytest.mark.parametrize("factor", WRONG)
def test_another_branch_is_refuted(factor: str) -> None:
    assert [v.status for v in judged(factor).of("identity")] == ["refuted"]


def test_what_cannot_be_told_is_not_refuted() -> None:
    # equal to t - r, by an inequality that is not linear
    found = judged("abs((t - r) * (1 + q)) / (1 + q)")
    assert [v.status for v in found.of("identity")] == ["undecided"]


@pytest.mark.parametrize(
    ("end", "statuses"), [("r", ["proved"]), ("q", ["proved", "proved"]), ("t", ["refuted"])]
)
def test_the_smaller_of_two_times_that_are_seen_themselves(end: str, statuses: list[str]) -> None:
    """With r = min(t, q), u(z, t, q) is u(z, t, r) where q is smaller, and (t - r) is 0 elsewhere:
    two kinds of rows; where nothing but r sees q there is one."""
    text = SPEC.format(factor="(t - r)").replace(
        "t, r ~ sorted(uniform(0, 1)); q ~ uniform(0, 1)",
        "t ~ uniform(0, 1); q ~ uniform(0, 1); r = min(t, q)",
    )
    found = check(load_text(text.replace("d/dt[u(z, t, r)]", f"d/dt[u(z, t, {end})]")), find=load)
    assert [v.status for v in found.of("identity")] == statuses, found.render()


def test_a_time_that_is_another_whatever_alpha_is() -> None:
    """s = t - alpha * (t - t) is t, though alpha is a rounded curriculum."""
    text = SPEC.format(factor="(t - r)").replace("(velocity -", "(u(z, s, t) -")
    text = text.replace("q ~ uniform(0, 1)", "s = t - alpha * (t - t)")
    text += "curriculum alpha = snap(1 - progress, 0.1)\n"
    assert {v.status for v in check(load_text(text), find=load).of("identity")} == {"proved"}
