"""Roots, logarithms and quotients must have a value wherever the laws let a row be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowdsl
from flowdsl.calculus.enclosure import applied
from flowdsl.checks.report import Verdict


def spec(shown: str = "z, t", times: str = "t ~ uniform(0, 1)", target: str = "velocity",
         loss: str = "mse", path: str = "(1 - t) * data + t * noise") -> str:  # fmt: skip
    return "\n".join([
        "objective holes", "constants sd = 0.5", f"path z(t) = {path}", f"times {times}",
        "network v(x, t)", f"target match v({shown}) to {target}", f"loss {loss}",
    ])  # fmt: skip


def verdict(text: str) -> Verdict:
    (found,) = flowdsl.loads(text).check(only=["times"]).verdicts
    return found


HOLES = [
    # in an argument of a network, in a target, in a weight
    (spec(shown="z / sqrt(t^2 - sd^2), t"), "sqrt(t^2 - sd^2) has no value at t = "),
    (spec(shown="z, log(t - 0.25)"), "log(t - 0.25) has no value at t = "),
    (spec(target="velocity + (t - 0.3)^(1 / 2) * stop(v(z, t))"), "no value at t = "),
    (spec(target="velocity / (1 - 2 * t)"), "1 - 2 * t is 0 there"),
    (spec(target="velocity + (v(z, t) - velocity) / (t - 0.5)"), "t - 0.5 is 0 there"),
    (spec(loss="mse / (t - 0.5)^2"), "t - 0.5 is 0 there"),
    (spec(loss="mse * (t - 0.5)^(-2)"), "t - 0.5 is 0 there"),
    (spec(loss="(2 + log(t^2 - 0.01)) * mse"), "log(t^2 - 0.01) has no value at t = "),
    (spec(loss="mse / cos(3 * t)"), "cos(3 * t) is 0 there"),
    # on the whole of the rows, at an end that is drawn, and at some time of training
    (spec(loss="mse / (t - t)"), "t - t is 0 there"),
    (spec(times="t ~ choice(grid(4))", loss="mse / (1 - t)"), "has no value at t = 1"),
    (spec(loss="mse / (1 + sqrt(t - progress / 2))"), "has no value at t = "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), HOLES)
def test_what_has_no_value_is_refuted_with_an_example(text: str, message: str) -> None:
    found = verdict(text)
    assert found.status == "refuted"
    assert message in found.message
    assert found.diagnostic is not None
    assert found.diagnostic.span is not None


WHOLE = [
    spec(shown="z / sqrt(t^2 + sd^2), log(t) / 4"),
    spec(shown="z / sqrt(t^2 - sd^2), t", times="t ~ uniform(0.5, 1)"),
    spec(path="sqrt(1 - t^2) * data + t * noise"),  # its velocity has a pole at the end alone
    spec(loss="mse / cos(t) / (1 - t) / (1 - t^2) / t"),
    spec(loss="mse / (1 - exp(r - t))", times="t, r ~ sorted(uniform(0, 1))"),
    spec(loss="mse / (t^2 - r^2)^(1 / 2)", times="t, r ~ sorted(uniform(0, 1))"),
    # a pole inside that is none: what is divided vanishes with it
    spec(times="t ~ uniform(0, 1); r ~ uniform(0, 1)",
         target="velocity + stop((v(z, t) - v(z(r), r)) / (t - r))"),
    spec(times="t ~ uniform(0, 1); r ~ uniform(0, 1)",
         target="velocity + stop((z - (z - (t - r) * v(z, t))) / (t - r))"),
    spec(times="t ~ choice(grid(4)); r = t - 1 / 4", loss="mse / (t - r) / t"),
]  # fmt: skip


@pytest.mark.parametrize("text", WHOLE)
def test_what_has_a_value_passes(text: str) -> None:
    found = verdict(text)
    assert found.status == "proved", found.message


@pytest.mark.parametrize(("loss", "status"), [
    ("mse / (0.3 + v2(t))", "refuted"), ("mse * log(v2(t))", "refuted"),
    ("mse / (norm(z) - 0.1)", "refuted"), ("mse / (v2(t) - norm(z))", "undecided"),
    ("mse / (norm(z) + 0.1)", "proved"), ("log(exp(v2(t)) * mse + 0.01)", "proved"),
])  # fmt: skip
def test_what_a_network_returns_is_any_number(loss: str, status: str) -> None:
    text = spec(loss=loss).replace("network v(x, t)", "network v(x, t); v2(t) -> scalar")
    assert verdict(text).status == status


@given(low=st.floats(-9, 9), width=st.floats(0, 9), share=st.floats(0, 1),
       op=st.sampled_from(["sin", "cos", "tan"]))  # fmt: skip
def test_waves_stay_between_their_ends(low: float, width: float, share: float, op: str) -> None:
    x = low + share * width
    least, most = applied(op, [(low, low + width)])
    assert least - 1e-9 <= getattr(math, op)(min(x, low + width)) <= most + 1e-9 or op == "tan"
    if op == "tan" and math.isfinite(least):
        assert least * (1 + 1e-6) - 1e-6 <= math.tan(x) + 1e-6 * abs(math.tan(x)) + 1e-6
