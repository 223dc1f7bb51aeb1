"""Which random quantities may be replaced by their conditional mean: verdicts, and the same in
numbers, on rows drawn given their state with an exact flow in the networks."""

from __future__ import annotations

import numpy as np
import pytest
from exact_rows import Rows, average, expected_product, symbols

from flowdsl.calculus.errors import Clock
from flowdsl.checks import Report, Verdict, check
from flowdsl.identities import IDENTITIES
from flowdsl.pipeline import load_text
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.chance import covariance, sizes

MEANFLOW = "match u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])"


def spec(
    target: str = MEANFLOW,
    loss: str = "mse",
    *,
    times: str = "",
    rest: str = "",
    along: str = "velocity",
) -> str:
    return f"""objective row "t" arXiv:1
path z(t) = (1 - t) * data + t * noise
times t, r ~ sorted(uniform(0, 1)){times}
network u(z, t, r); phi(t, r) -> scalar
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
{rest}
differentiate t along {along}
target {target}
loss {loss}
"""


def unbiased(text: str) -> Verdict:
    (found,) = _report(text).of("unbiased")
    return found


def _report(text: str) -> Report:
    return check(load_text(text), only=["identity", "unbiased"])


# what the weight of a row may depend on

ALLOWED = [
    "mse",
    "2 * error / (1 + t)^2",
    "mse * exp(-(t - r))",
    "mse / (1 + norm(z))",
    "mse / stop(1 + norm(u(z, t, r)))",
    "mse / stop(1 + norm(u(z, t, r) - u(z, t, t)))",
    "mse / batch_mean(norm(velocity))",
    "exp(-phi(t, r)) * mse + phi(t, r)",
    "mse + stop(norm(velocity))",
]
KNOWINGLY = [
    "adaptive(mse, power = 1, offset = 1e-3)",
    "adaptive(error, power = 0.5, offset = 1e-2)",
    "huber(error, 0.03)",
    "cauchy(error, 2)",
    "sqrt(error)",
    "min(error, 1)",
    "log(exp(-phi(t, r)) * mse + 0.01) + phi(t, r)",
]
FORBIDDEN = [
    ("mse / (1 + norm(velocity))", "share noise"),
    ("mse * norm(noise)", "share noise"),
    ("mse * norm(data)", "share noise"),
    ("mse / (1 + norm(z(r)))", "share noise"),
    ("mse / stop(1 + norm(d/dt[u(z, t, r)]))", "share noise"),
    ("mse * exp(-norm(velocity)) + t", "share noise"),
    ("error^2", "grows"),
    ("exp(error)", "grows"),
    ("mse / (1 + norm(u(z, t, r)))", "beside the error"),
    ("mse + 0.1 * norm(u(z, t, r))", "beside the error"),
]


@pytest.mark.parametrize("loss", ALLOWED)
def test_weights_that_are_known_with_the_state(loss: str) -> None:
    assert unbiased(spec(loss=loss)).status == "proved"


@pytest.mark.parametrize("loss", KNOWINGLY)
def test_weights_that_fall_with_the_error_are_notes(loss: str) -> None:
    found = unbiased(spec(loss=loss))
    assert found.status == "note"
    assert "sample's own error" in found.message
    assert "(prediction - target)" in found.left_over


@pytest.mark.parametrize(("loss", "message"), FORBIDDEN)
def test_weights_that_go_together_with_the_residual(loss: str, message: str) -> None:
    found = unbiased(spec(loss=loss))
    assert found.status == "biased"
    assert message.replace("share noise", "depend on the same noise") in found.message
    assert found.left_over
    assert found.diagnostic is not None


def test_a_residual_that_is_zero_for_every_sample_takes_any_weight() -> None:
    exact = (
        "match u(z, t, r) to stop((u(z, t, (t + r) / 2)"
        " + u(map(z, t, (t + r) / 2), (t + r) / 2, r)) / 2)"
    )
    for loss in ("mse / (1 + norm(velocity))", "error^2", "mse / (1 + norm(u(z, t, r)))"):
        assert unbiased(spec(exact, loss)).status == "proved"
    assert unbiased(spec(exact, "mse + 0.1 * norm(u(z, t, r))")).status == "biased"


# numbers of the sample inside a term

RESIDUAL = "(u(z, t, r) - velocity + (t - r) * d/dt[u(z, t, r)])"


@pytest.mark.parametrize(
    ("divisor", "status"),
    [
        (f"(norm{RESIDUAL} + 0.1)", "note"),
        ("norm(velocity)", "biased"),
        ("(1 + norm(d/dt[u(z, t, r)]))", "biased"),
        ("(1 + norm(z))", "proved"),
        ("batch_mean(norm(velocity))", "proved"),
    ],
)
def test_residuals_divided_by_a_size(divisor: str, status: str) -> None:
    target = f"match u(z, t, r) to stop(u(z, t, r) - {RESIDUAL} / {divisor})"
    assert unbiased(spec(target)).status == status


@pytest.mark.parametrize(
    ("rows", "status"),
    [("norm(z) > 1", "proved"), ("t > 0.5", "proved"), ("norm(velocity) > 1", "biased"),
     ("norm(data) < norm(z)", "biased")],
)  # fmt: skip
def test_rows_picked_by_the_sample(rows: str, status: str) -> None:
    found = _report(spec(f"{MEANFLOW}  on {rows}")).of("unbiased")
    assert {v.status for v in found} == {status}


# which noises are independent

FRESH = "; q ~ uniform(0, 1); noise' ~ normal(0, 1)"


@pytest.mark.parametrize(
    ("term", "times", "status"),
    [
        ("x = z(q | noise = noise'); match u(x, q, q) to velocity(x)", FRESH, "proved"),
        ("x = z(q | noise = noise'); match u(x, q, q) to noise' - data", FRESH, "proved"),
        ("x = z(q | noise = noise'); match u(x, q, q) to velocity", FRESH, "biased"),
        ("match u(z, t, t) to velocity + noise'", FRESH, "proved"),
        ("match u(z, t, t) to noise' - data", FRESH, "biased"),
        ("match u(z, t, t) to velocity + noise'", FRESH.replace("0, 1)", "1, 1)"), "undecided"),
        (
            "x = z(q | noise = noise'); match u(x, q, q) to velocity(x)",
            FRESH.replace("normal(0, 1)", "normal(0, 2)"),
            "undecided",
        ),
        ("x = z(q | data = 2 * data); match u(x, q, q) to velocity(x)", FRESH, "undecided"),
        ("match u(z, t, t) to velocity(z(q))", FRESH, "proved"),  # linear path: the same velocity
        ("match u(z(q), q, q) to velocity", FRESH, "proved"),
    ],
)
def test_shared_and_fresh_noise(term: str, times: str, status: str) -> None:
    found = _report(spec(term, times=times)).of("identity")
    assert {v.status for v in found if v.status != "note"} == {status}


def test_a_network_computes_only_what_it_sees() -> None:
    hidden = "let k = 1 + c\n"
    guided = "velocity + k * (u(z, t, t | label = label) - u(z, t, t | label = null))"
    text = spec(f"match u(z, t, r) to stop({guided} - (t - r) * d/dt[u(z, t, r)])",
                along=guided, rest=hidden, times="; c ~ uniform(0, 0.5)")  # fmt: skip
    text = text.replace("u(z, t, r); phi", "u(z, t, r | label); phi")
    found = [v for v in _report(text).of("identity") if v.status != "note"]
    assert {v.status for v in found} == {"undecided"}
    assert "is not shown c" in found[0].message
    shown = text.replace("| label); phi", "| label, k); phi").replace(
        "let k = 1 + c\n", "conditions k = 1 + c\n")  # fmt: skip
    assert {v.status for v in _report(shown).of("identity")} <= {"proved", "note"}


def test_second_derivatives_along_the_conditional_velocity_leave_a_covariance() -> None:
    own = "d/dt[d/dt[u(z, t, r) along u(z, t, t)] along u(z, t, t)]"
    second = "d/dt[d/dt[u(z, t, r)]]"
    plain = "velocity - (t - r) * d/dt[u(z, t, r)]"
    found = _report(spec(f"match u(z, t, r) to stop({plain} + {second} - {own})"))
    (one,) = found.of("identity")
    assert one.status == "refuted"
    assert "[ξ, ξ]" in one.left_over


# in numbers

PLACE = np.array([0.4, -0.3]) + 0j
MOMENT = {"t": 0.75, "r": 0.2}


def _study(text: str) -> tuple[Analysis, Rows, object]:
    objective = load_text(text)
    analysis = Analysis(objective, tuple(IDENTITIES.values()), Clock(20.0))
    (case,) = analysis.cases(objective.terms[0])
    rows = Rows(objective, PLACE, MOMENT, {"u": average})
    return analysis, rows, case


def _measured(text: str) -> float:
    _, rows, case = _study(text)
    return rows.gradient(case.loss)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("loss", "vanishes"),
    [
        ("error", True),
        ("error / (1 + norm(z))", True),
        ("error / (1 + norm(velocity))", False),
        ("error * norm(noise)", False),
        ("error^2", False),
        ("adaptive(error, power = 1, offset = 0.01)", False),
        ("error / (1 + norm(u(z, t, r)))", False),
        ("error / stop(1 + norm(u(z, t, r)))", True),
    ],
)
def test_the_mean_gradient_of_a_row_is_as_judged(loss: str, vanishes: bool) -> None:
    text = spec(loss=loss)
    found = abs(_measured(text))
    assert (unbiased(text).status == "proved") == vanishes
    assert found < 1e-6 if vanishes else found > 1e-3, found


@pytest.mark.parametrize(
    "target",
    [
        "match u(z, t, r) + (t - r) * d/dt[u(z, t, r)] to velocity",
        "match u(z, t, r) to velocity - (t - r) * d/dt[u(z, t, r)]",
        "match u(z, t, r) to velocity - (t - r) * (2 * stop(d/dt[u(z, t, r)]) - d/dt[u(z, t, r)])",
    ],
)
def test_covariances_that_survive_have_the_predicted_size(target: str) -> None:
    """The left-over E <…, …>, evaluated term by term, is the gradient of the row."""
    text = spec(target, "error")
    analysis, rows, case = _study(text)
    study = analysis.study(case)  # type: ignore[arg-type]
    found = covariance(study, sizes(study, analysis.base(case)))  # type: ignore[arg-type]
    assert found is not None
    predicted = 2 * expected_product(symbols(analysis, rows), rows, found)
    measured = rows.gradient(case.loss)  # type: ignore[attr-defined]
    assert abs(measured) > 0.02
    assert abs(predicted - measured) < 1e-4 * abs(measured) + 1e-6


@pytest.mark.parametrize(
    "target",
    [
        "match u(z, t, r) + (t - r) * stop(d/dt[u(z, t, r)]) to velocity",
        "match u(z, t, r) + (t - r) * d/dt[u(z, t, r) along u(z, t, t)] to velocity",
    ],
)
def test_their_right_twins_are_stationary(target: str) -> None:
    text = spec(target, "error")
    assert unbiased(text).status == "proved"
    assert abs(_measured(text)) < 1e-5


def test_the_mirror_image_of_a_noise_has_its_law() -> None:
    """Antithetic pairs: both states have the law of the path, and teach the same velocity."""
    report = check(load_text("\n".join([
        "objective antithetic", "path z(t) = (1 - t) * data + t * noise",
        "times t ~ uniform(0, 1)", "network v(x, t)", "let mirrored = z(t | noise = -noise)",
        "target match v(z, t) to velocity",
        "anchor match v(mirrored, t) to velocity(mirrored)", "loss mse",
    ])), only=["identity", "unbiased"])  # fmt: skip
    assert {v.status for v in report.verdicts} == {"proved"}
