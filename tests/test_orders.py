"""Orders in a small quantity: verdicts, leading left-overs measured on an exact flow, and curricula
at their start, inside and at their end."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from exact_rows import Rows, average, expected, symbols
from mixture_flow import Vector, flow, velocity

from flowdsl.calculus.errors import Clock
from flowdsl.checks import Report, Verdict, check
from flowdsl.identities import IDENTITIES
from flowdsl.pipeline import load, load_text
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.judge import judge

CONSISTENCY = """objective consistency "t" arXiv:1
path z(t) = {path}
times t ~ uniform(0.1, 1){times}
network f(z, t){networks}
map z(t) -> z(0) = {map}
target match map(z, t, 0) to {target}
loss {loss}
{rest}
"""
TEACHER = "; teacher(z, t) frozen"
SECOND = "stop(map(z(s), s, 0))"
EULER = "stop(map(z - h * teacher(z, t), s, 0))"
HEUN = "stop(map(z - h * (teacher(z, t) + teacher(z - h * teacher(z, t), s)) / 2, s, 0))"
MIDPOINT = "stop(map(z - h * teacher(z - h / 2 * teacher(z, t), t - h / 2), s, 0))"


def consistency(
    target: str = SECOND,
    *,
    path: str = "(1 - t) * data + t * noise",
    body: str = "z - t * f(z, t)",
    times: str = "; s = t - h",
    networks: str = "",
    loss: str = "mse / h",
    rest: str = "constants h = 0.01",
) -> str:
    return CONSISTENCY.format(target=target, path=path, map=body, times=times, networks=networks,
                              loss=loss, rest=rest)  # fmt: skip


def report(text: str) -> Report:
    return check(load_text(text), only=["identity", "unbiased", "anchored"])


def one(found: Report, name: str) -> Verdict:
    (verdict,) = [v for v in found.of(name) if v.status != "note"]
    return verdict


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("(1 - t) * data + t * noise", "z - t * f(z, t)"),
        ("data + t * noise", "z - t * f(z, t)"),
        ("cos(t) * data + sin(t) * noise", "cos(t) * z - sin(t) * f(z, t)"),
    ],
)
def test_discrete_consistency_training(path: str, body: str) -> None:
    found = report(consistency(path=path, body=body))
    assert one(found, "identity").shown == "order 2"
    assert "D2 map(z, t, 0)[ξ, ξ] / 2" in one(found, "identity").left_over
    assert ("J map(z, t, 0)[z]" in one(found, "identity").left_over) == ("cos" in path)
    bias = one(found, "unbiased")
    assert bias.shown == "order 1"
    assert "residual O(h^2), gradient bias O(h) after the weight" in bias.message
    assert "off by O(h)" in bias.message
    assert any(v.status == "proved" for v in found.of("anchored"))


@pytest.mark.parametrize(
    ("times", "rest", "loss"),
    [
        ("; g ~ uniform(0, 0.1); s = t - g", "", "mse / g"),
        ("; g ~ uniform(0, 0.1); s = t * (1 - g)", "", "mse / g"),
        ("; s = t - h", "curriculum h = 1 / (10 + 1270 * progress)", "mse / h"),
    ],
)
def test_steps_of_every_origin(times: str, rest: str, loss: str) -> None:
    found = report(consistency(times=times, rest=rest, loss=loss))
    assert one(found, "identity").shown == "order 2"
    assert one(found, "unbiased").shown == "order 1"
    after = "after the weight" in one(found, "unbiased").message
    assert after == (loss != "mse")


@pytest.mark.parametrize("law", ["uniform(0, t)", "uniform(0, 1)"])
def test_the_distance_of_two_draws_is_no_step(law: str) -> None:
    """However it is drawn, nothing makes it small: the bias is as large as the laws let it be."""
    found = report(consistency(times=f"; s ~ {law}", rest="", loss="mse"))
    assert one(found, "identity").status == "refuted"


@pytest.mark.parametrize(
    ("target", "order"),
    [
        (EULER, 2),
        (HEUN, 3),
        (MIDPOINT, 3),
        (HEUN.replace("teacher(z, t), s)", "teacher(z, t), t)"), 2),  # the second slope too early
        (EULER.replace("h * teacher", "2 * h * teacher"), None),
        (EULER.replace("z - h", "z + h"), None),
        ("stop(map(z, s, 0))", None),
    ],
)
def test_consistency_distillation_by_the_solver(target: str, order: int | None) -> None:
    found = report(consistency(target, networks=TEACHER))
    assert one(found, "identity").order == order
    if order is None:
        assert one(found, "identity").status == "refuted"
    else:
        assert one(found, "unbiased").order == order - 1
        assert any(v.status == "proved" for v in found.of("anchored"))


def test_distillation_from_the_exact_flow_is_exact() -> None:
    """The map's own step is the flow's at the truth: nothing is left over at any step."""
    own = """objective exact "t" arXiv:1
path z(t) = (1 - t) * data + t * noise
times t, r ~ sorted(uniform(0, 1)); s = t - h * (t - r)
network u(z, t, r)
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
target match map(z, t, 0) to stop(map(map(z, t, s), s, 0))
loss mse
constants h = 0.1
"""
    assert one(report(own), "identity").message == "zero"


def test_a_live_target_is_as_wrong_as_another_flow() -> None:
    """Both ends of a step alive: E |f(z, t) - f(z(s), s)|^2 is smallest for another map."""
    found = report(consistency("map(z(s), s, 0)", loss="mse / h^2"))
    bias = one(found, "unbiased")
    assert bias.status == "biased"
    assert "as large as that of another flow" in bias.message
    assert "J g(z, t)[ξ]" in bias.left_over


AVERAGE = """objective average "t" arXiv:1
path z(t) = (1 - t) * data + t * noise
times t, r ~ sorted(uniform(0, 1)){times}
network u(z, t, r)
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
differentiate t along velocity
target match u(z, t, r) to stop({target})
loss {loss}
constants h = 0.005; alpha = 0.1
"""
FORWARD = "velocity - (t - r) * (u(z + h * velocity, t + h, r) - u(z, t, r)) / h"
CENTRAL = (
    "velocity - (t - r) * (u(z + h * velocity, t + h, r) - u(z - h * velocity, t - h, r)) / (2 * h)"
)
BETWEEN = "; s = t - alpha * (t - r)"
ALPHA = "alpha * velocity + (1 - alpha) * u(z - (t - s) * velocity, s, r)"


def averaged(target: str, times: str = "", loss: str = "mse") -> str:
    return AVERAGE.format(target=target, times=times, loss=loss)


@pytest.mark.parametrize(
    ("target", "order"),
    [
        (FORWARD, 1),
        (FORWARD.replace("h * velocity", "h * u(z, t, t)"), 1),
        (CENTRAL, 2),
        (FORWARD.replace("t + h, r", "t, r"), None),
        (FORWARD.replace("velocity - ", "velocity + "), None),
        (CENTRAL.replace("(2 * h)", "h"), None),
    ],
)
def test_finite_differences(target: str, order: int | None) -> None:
    found = one(report(averaged(target)), "identity")
    assert found.order == order
    assert order is not None or found.status in ("refuted", "undecided")


@pytest.mark.parametrize(
    ("loss", "bias", "signal"),
    [
        ("mse", "alpha^2", "alpha"),
        ("mse / alpha", "alpha", "1"),
        ("mse / alpha^2", "1", "alpha^-1"),
        ("alpha * mse / stop(mse)", "alpha", "1"),  # error is O(alpha^2)
        ("alpha * adaptive(mse, power = 1, offset = 1e-3)", "alpha^3", "alpha^2"),
    ],
)
def test_the_weight_changes_the_order_of_the_bias_but_not_of_the_solution(
    loss: str, bias: str, signal: str
) -> None:
    found = report(averaged(ALPHA, BETWEEN, loss))
    assert one(found, "identity").shown == "order 2"
    verdict = one(found, "unbiased")
    assert verdict.shown == "order 1"
    assert f"gradient bias O({bias})" in verdict.message
    assert f"against O({signal}) of another flow" in verdict.message
    assert "the solution is off by O(alpha)" in verdict.message
    assert ("the loss is robust" in verdict.message) == (loss.startswith("alpha *"))


def test_a_constant_that_is_no_step_excuses_nothing() -> None:
    """alpha * z is small with alpha, and wrong."""
    plain = "velocity - (t - r) * d/dt[u(z, t, r)]"
    found = one(report(averaged(f"{plain} + alpha * z")), "identity")
    assert found.status == "refuted"
    assert found.left_over == "alpha * z"


def test_the_distance_of_a_jump_is_no_step() -> None:
    """Every map is right where it does not move."""
    text = averaged("velocity").replace("times t, r ~ sorted(uniform(0, 1))",
                                        "times r, g ~ uniform(0, 0.5); t = r + g")  # fmt: skip
    text = text.replace("differentiate t along velocity\n", "")
    assert one(report(text), "identity").status in ("refuted", "biased")


# in numbers


def landing(x: Vector, t: complex) -> Vector:
    """f of the map z - t f(z, t) -> z(0), at the truth."""
    return (x - flow(x, t, 0.0, 128)) / t


MEASURED = [
    (consistency(), "h", 2),
    (consistency(EULER, networks=TEACHER), "h", 2),
    (consistency(HEUN, networks=TEACHER), "h", 3),
    (consistency(MIDPOINT, networks=TEACHER), "h", 3),
    (averaged(ALPHA, BETWEEN), "alpha", 2),
    (averaged(FORWARD), "h", 1),
]


@pytest.mark.parametrize(("text", "name", "order"), MEASURED)
def test_the_leading_left_over_is_measured(text: str, name: str, order: int) -> None:
    objective = load_text(text)
    analysis = Analysis(objective, tuple(IDENTITIES.values()), Clock(20.0))
    (case,) = analysis.cases(objective.terms[0])
    finding = judge(analysis, case)
    assert (finding.outcome, finding.order) == ("order", order)
    assert finding.left is not None
    place = np.array([0.4, -0.3]) + 0j
    networks = {"u": average, "f": landing, "teacher": velocity}
    rows = Rows(objective, place, {"t": 0.75, "r": 0.2}, networks, order=6)
    predicted = expected(symbols(analysis, rows), rows, finding.left)

    def measured(step: float) -> np.ndarray:
        rows.constants = {name: step}
        rows.times = {"t": 0.75, "r": 0.2}
        assert case.target is not None
        left = rows(case.target) - rows(case.prediction)
        return np.asarray(rows.mean(left * np.ones((len(rows.data), 1))))

    steps = (0.04, 0.02, 0.01)
    values = [measured(h) / h**order for h in steps]
    first = [2 * b - a for a, b in pairwise(values)]
    limit = (4 * first[1] - first[0]) / 3
    size = np.abs(predicted).max()
    assert size > 1e-2
    assert np.abs(limit - predicted).max() < 0.03 * size, (limit, predicted)
    slope = np.log2(np.linalg.norm(measured(0.02)) / np.linalg.norm(measured(0.01)))
    assert abs(slope - order) < 0.25


# curricula


def course(name: str) -> dict[str, Verdict]:
    """The curriculum's verdicts by their moment."""
    found = check(load(name), only=["curriculum"]).verdicts
    return {place: v for v in found for place in ("at the start", "inside", "at the end")
            if v.message.startswith(place)}  # fmt: skip


def test_alphaflow_from_flow_matching_to_meanflow() -> None:
    found = course("alphaflow")
    assert "alpha = 1" in found["at the start"].message
    assert "biased" in found["at the start"].message
    assert found["at the start"].left_over == "v(z, t) - u(z, t, r)"
    assert found["inside"].shown == "order 2"
    assert found["at the end"].status == "proved"


def test_a_warm_up_is_refuted_inside_and_proved_at_its_end() -> None:
    found = course(str(Path(__file__).parent / "good" / "scm.flow"))
    for place in ("at the start", "inside"):
        assert "target is refuted" in found[place].message
        assert found[place].left_over
    assert "warm = 0.5" in found["inside"].message
    assert found["at the end"].status == "proved"


def test_a_warm_up_that_ends_elsewhere_is_refuted() -> None:
    text = (Path(__file__).parent / "good" / "scm.flow").read_text()
    assert "min(1, step / 10000)" in text
    cut = load_text(text.replace("min(1, step / 10000)", "min(1, step / 10000) / 2"))
    found = check(cut, only=["curriculum"]).verdicts
    assert any(v.status == "refuted" and v.message.startswith("at the end") for v in found)


def test_weights_that_end_at_zero() -> None:
    plain = averaged("velocity - (t - r) * d/dt[u(z, t, r)]", loss="w * mse")
    fading = plain + "curriculum w = max(0, 1 - 2 * progress)\n"
    found = check(load_text(fading), only=["curriculum"]).verdicts
    end = next(v for v in found if v.message.startswith("at the end"))
    assert end.status == "refuted"
    assert "every weight is zero" in end.message
    rising = plain + "curriculum w = min(1, 2 * progress)\n"
    assert check(load_text(rising), only=["curriculum"]).ok
