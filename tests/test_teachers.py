"""Frozen networks: what a teacher computes at the truth, and what it teaches."""

from __future__ import annotations

import pytest

from flowdsl.checks import Report, check
from flowdsl.pipeline import load, load_text
from flowdsl.spec.objective import Objective


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


def test_a_teacher_that_no_stage_trains_is_said_to_be_taken_as_exact() -> None:
    told = "teacher is frozen and no stage trains it: it is taken to be exact"
    assert told in [v.message for v in scaled(PLAIN).of("identity")]
    assert not any("taken to be exact" in v.message
                   for v in check(load("align_your_flow"), find=load).of("identity"))  # fmt: skip


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


# teachers that know what they learned in another stage

VELOCITY = """objective scaled_velocity "a velocity at unit scale" arXiv:2410.11081
constants     sd = 0.5
path          z(t) = cos(t) * data + sin(t) * {scale} * noise
times         t ~ uniform(0.01, 1.57)
network       F(x, c)
target        match sd * F(z / sd, {code}) to {goal}
loss          mse
"""
DISTILLED = """objective distilled "a consistency map from a velocity" arXiv:2410.11081
constants     sd = 0.5
path          z(t) = cos(t) * data + sin(t) * sd * noise
times         t ~ uniform(0.01, 1.57)
network       F(x, t); teacher(x, c) frozen
map           z(t) -> z(0) = cos(t) * z - sin(t) * sd * F(z / sd, t)
let           drift = {drift}
differentiate t along drift
target        g = cos(t)^2 * (sd * F(z / sd, t) - drift)
              + cos(t) * sin(t) * (z + sd * d/dt[F(z / sd, t)])
              match F(z / sd, t) to stop(F(z / sd, t) - g)
loss          mse
stages        velocity: trigonometric_flow for 0.5; distil: this for 0.5, teacher from velocity
"""


def distilled(drift: str, code: str = "t", goal: str = "velocity", scale: str = "sd") -> Report:
    teacher = load_text(VELOCITY.format(code=code, goal=goal, scale=scale))

    def find(name: str) -> Objective:
        return teacher if name == "trigonometric_flow" else load(name)

    return check(load_text(DISTILLED.format(drift=drift)), find=find)


@pytest.mark.parametrize("code", ["t", "log(t) / 4"])
def test_a_teacher_knows_what_its_stage_taught(code: str) -> None:
    found = distilled(f"sd * teacher(z / sd, {code})", code)
    for name in ("identity", "unbiased", "anchored"):
        assert statuses(found, name) == {"proved"}, name


def test_a_teacher_of_the_data_gives_the_velocity() -> None:
    # data = cos(t) z - sin(t) velocity on this path
    drift = "(cos(t) * z - sd * teacher(z / sd, t)) / sin(t)"
    assert statuses(distilled(drift, goal="data"), "identity") == {"proved"}
    assert statuses(distilled(drift, goal="velocity"), "identity") == {"refuted"}


@pytest.mark.parametrize(
    "drift",
    ["teacher(z / sd, t)", "sd * teacher(z, t)", "teacher(z, t)", "-sd * teacher(z / sd, t)"],
)
def test_a_teacher_that_is_read_wrongly_stays_refuted(drift: str) -> None:
    assert statuses(distilled(drift), "identity") == {"refuted"}


def test_a_teacher_of_another_time_or_path_is_no_proof() -> None:
    drift = "sd * teacher(z / sd, t)"
    assert statuses(distilled(drift, code="log(t) / 4"), "identity") <= {"refuted", "undecided"}
    (found,) = [v for v in distilled(drift, scale="1").of("identity") if v.status != "note"]
    assert found.status == "undecided"
    assert "another path" in found.message
