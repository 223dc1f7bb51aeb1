"""Frozen networks: what a teacher computes at the truth, and what it teaches."""

from __future__ import annotations

import pytest

from flowdsl.checks import Report, check
from flowdsl.pipeline import load, load_text


def judged(text: str) -> Report:
    return check(load_text(text), find=load)


def statuses(found: Report, name: str) -> set[str]:
    return {v.status for v in found.of(name) if v.status != "note"}


# teachers that see fewer conditions than their student

SCALED = """objective scaled "a student that is shown the scale of its guidance" arXiv:2506.14603
path          z(t) = (1 - t) * data + t * noise
times         t, s ~ sorted(uniform(0, 1))
conditions    scale ~ uniform(1, 3)
network       F(z, t, s | {shown}); teacher(z, t | label) frozen
map           z(t) -> z(s) = z + (s - t) * F(z, t, s)
differentiate t along {along}
target        match F(z, t, s) to stop({along} {sign} (t - s) * d/dt[F(z, t, s)])
loss          error
"""
PLAIN = "teacher(z, t)"
GUIDED = "classifier_free(teacher(z, t), teacher(z, t | label = null), scale)"


def scaled(along: str, shown: str = "label, scale", sign: str = "-") -> Report:
    return judged(SCALED.format(along=along, shown=shown, sign=sign))


@pytest.mark.parametrize("along", [PLAIN, GUIDED])
def test_a_teacher_need_not_see_the_numbers_that_its_student_sees(along: str) -> None:
    found = scaled(along)
    for name in ("identity", "unbiased", "anchored"):
        assert statuses(found, name) == {"proved"}, name


@pytest.mark.parametrize("along", [PLAIN, GUIDED])
def test_a_wrong_sign_under_a_teacher_stays_refuted(along: str) -> None:
    assert statuses(scaled(along, sign="+"), "identity") == {"refuted"}


def test_a_teacher_of_another_label_teaches_another_flow() -> None:
    found = scaled("teacher(z, t | label = null)")
    assert statuses(found, "identity") == {"refuted"}


def test_a_guided_flow_needs_its_scale() -> None:
    assert statuses(scaled(GUIDED, shown="label"), "identity") <= {"undecided", "refuted"}


# networks that see a scaled state and a function of the time

DENOISER = """objective denoiser "preconditioned denoiser" arXiv:2206.00364
constants     sd = 0.5
path          z(t) = data + t * noise
times         t ~ log_normal(-1.2, 1.2)
network       F(x, c)
let           denoised = {skip} * z + {out} * F({seen}, {code})
target        match denoised to {goal}
loss          (t^2 + sd^2) / (t * sd)^2 * mse
"""


def denoiser(
    skip: str = "sd^2 / (t^2 + sd^2)",
    out: str = "t * sd / sqrt(t^2 + sd^2)",
    seen: str = "z / sqrt(t^2 + sd^2)",
    code: str = "log(t) / 4",
    goal: str = "data",
) -> Report:
    return judged(DENOISER.format(skip=skip, out=out, seen=seen, code=code, goal=goal))


@pytest.mark.parametrize("code", ["log(t) / 4", "t", "3 * t - 1", "atan(t)", "sqrt(1 + t)"])
def test_a_preconditioned_denoiser_learns_the_velocity(code: str) -> None:
    found = denoiser(code=code)
    for name in ("identity", "unbiased", "anchored"):
        assert statuses(found, name) == {"proved"}, name
    (said,) = [v for v in found.of("identity") if v.status == "proved"]
    assert f"F(z / sqrt(t^2 + sd^2), {code}) learns" in said.message
    assert not any("not shown the time" in v.message for v in found.of("identity"))


def test_a_code_of_the_time_is_no_time_of_the_path() -> None:
    assert statuses(denoiser(), "times") == {"proved"}


def test_a_code_that_hides_the_time_is_named() -> None:
    found = denoiser(code="sin(6 * t)")
    assert statuses(found, "identity") == {"proved"}
    assert any("not shown the time of its state" in v.message for v in found.of("identity"))


def test_a_denoiser_must_say_where_the_data_are() -> None:
    wrong = denoiser(goal="denoised + stop(z) - z")  # it only repeats itself
    assert statuses(wrong, "identity") <= {"undecided", "refuted"}
    state = denoiser(goal="z")
    assert statuses(state, "identity") == {"refuted"}


def test_a_network_of_a_noisy_point_is_no_regression_on_its_state() -> None:
    assert "proved" not in statuses(denoiser(seen="(z + data)"), "identity")


def test_a_scaled_network_learns_a_scaled_velocity() -> None:
    found = judged(
        """objective turned "a velocity at unit scale" arXiv:2410.11081
constants     sd = 0.5
path          z(t) = cos(t) * data + sin(t) * sd * noise
times         t ~ atan(log_normal(-1.0, 1.4) / sd)
network       F(x, t)
target        match sd * F(z / sd, t) to velocity
loss          mse / sd^2
"""
    )
    (said,) = [v.message for v in found.of("identity") if v.status == "proved"]
    assert said.startswith("F(z / sd, t) learns E[velocity | z] / sd")
