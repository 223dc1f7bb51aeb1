"""What the checker says of laws, rows, paths and weights that leave a hole where a sampler will
ask: each of these was found as a mutant that passed."""

from __future__ import annotations

import pytest

from flowdsl.checks import Report, check
from flowdsl.pipeline import load, load_text
from flowdsl.sources import find_source
from tests.mutations import source_of


def judged(name: str, *changes: tuple[str, str]) -> Report:
    text = source_of(name).text
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return check(load_text(text), find=load)


WRONG = [
    # the end's differential equation is not taught near the diagonal, where it starts
    ("tvm", "on t > s", "on gap > s", "anchored", "no row trains the map from times about 0.9"),
    ("tvm", "t = s + gap", "t = gap", "anchored", "no row trains the map from times about 0.9"),
    # the velocity is taught at some times only
    ("tvm", "q ~ logit_normal(-0.4, 1.0)", "q ~ uniform(0.5, 1)", "anchored", "about 0.4"),
    ("flow_matching", "uniform(0, 1)", "uniform(0.5, 1)", "anchored", "about 0.4"),
    ("flow_matching", "uniform(0, 1)", "uniform(0, 0.5)", "anchored", "about 0.9"),
    ("meanflow", "sorted(logit_normal(-0.4, 1.0))", "sorted(uniform(0.5, 1))", "anchored",
     "no row trains the map from times about 0.9 to times about 0.4"),
    # at the end of the curriculum nothing is learnt off the diagonal
    ("alphaflow", "on alpha == 0\n              goal = guided  on", "on alpha == 2\n"
     "              goal = guided  on", "anchored", "at the end of training no row trains the map"),
    ("trajectory_flow_matching", "match u(z, t, r) to", "match u(z, t, s) to", "anchored",
     "at the end of training no row trains the map"),
    # no label is ever shown
    ("flow_matching", "bernoulli(0.1)", "bernoulli(1)", "anchored", "never shown a label"),
    # laws and rows with nothing in them
    ("flow_matching", "uniform(0, 1)", "uniform(1, 0)", "times", "upper end below its lower"),
    ("shortcut", "match u(z, t, r) to velocity  on diagonal",
     "match u(z, t, r) to velocity  on t < 0", "gradient", "no row ever computes this term"),
    # paths that do not join the data and the noise
    ("flow_matching", "(1 - t) * data", "(t - 1) * data", "boundary", "z(0) is -1 * data"),
    ("flow_matching", "(1 - t) * data", "(2 - t) * data", "boundary", "z(0) is 2 * data"),
    ("meanflow", "+ t * noise", "+ noise", "boundary", "nowhere equal to the data"),
    ("meanflow", "(1 - t) * data", "data", "boundary", "still 1 * data + 1 * noise"),
    # a label is shown at some times only
    ("meanflow", "label = null on dropped", "label = null on dropped or t > 0.5", "anchored",
     "no row trains the map from times about 0.9"),
    ("tvm", "label = null on dropped", "label = null on dropped or q > 0.5", "anchored",
     "nothing ties the velocity to the data at times about 0.9"),
    # weights that are zero, or negative, on some rows, at some time, or for some draws
    ("flow_matching", "loss          mse", "loss max(0, t - 2) * mse", "gradient",
     "does not depend on the error"),
    ("flow_matching", "loss          mse", "loss max(0, t - 0.5) * mse", "anchored", "about 0.4"),
    ("flow_matching", "loss          mse", "loss (t - 0.5) * mse", "gradient",
     "the weight of the error is negative at t = "),
    ("flow_matching", "loss          mse", "loss (progress - 0.5) * mse", "gradient",
     "the weight of the error is negative at progress = 0.07"),
    ("tvm", "mse / w^2", "(s - t) * mse", "gradient", "the weight of the error is negative at "),
    ("flow_matching", "loss          mse", "loss mse + max(0, t - 0.5) * mse^2", "unbiased",
     "the weight grows with the sample's own error"),
    # a call off the diagonal that counts for nothing
    ("meanflow", "match u(z, t, r) to stop(guided - (t - r) * d/dt[u(z, t, r)])",
     "match u(z, t, t) + (t - t) * u(z, t, r) to stop(guided)", "anchored",
     "trained only where its times are equal"),
    # gradients that cancel
    ("flow_matching", "match v(z, t) to", "match stop(v(z, t)) + v(z, t) - v(z, t) to", "gradient",
     "the gradients that flow cancel"),
    # weights that know more of the sample than the network's state
    ("flow_matching", "loss          mse", "loss norm(velocity) * mse", "unbiased",
     "the weight norm(velocity) and the residual"),
    ("meanflow", "loss          adaptive(error", "loss adaptive(norm(data) * error", "unbiased",
     "the weight norm(data) and the residual"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "by", "message"), WRONG)
def test_holes_are_found(name: str, old: str, new: str, by: str, message: str) -> None:
    found = judged(name, (old, new))
    failing = [v for v in found.of(by) if not v.ok]
    assert any(message in v.message for v in failing), found.render()
    assert any(d.code == by and d.hint for d in found.diagnostics)


@pytest.mark.parametrize(
    "other", ["2 * map(noise, 1, 0)", "-map(noise, 1, 0)", "map(noise, 1, 1)", "map(data, 1, 0)"]
)
def test_what_is_generated_must_have_the_law_of_the_data(other: str) -> None:
    old = "data = stop(map(noise, 1, 0))"
    found = judged("free_flow", (old, f"data = stop({other})"))
    failing = [v for v in found.of("identity") if v.status == "refuted"]
    assert any("does not have their law" in v.message for v in failing), found.render()


REPELLED = [
    ("free_flow", "stop(F(noise, s) - drift)", "stop(F(noise, s) + drift)"),
    ("free_flow", "drift = d/ds[map(noise, 1, s)] - guided(map(noise, 1, s), s)",
     "drift = guided(map(noise, 1, s), s) - d/ds[map(noise, 1, s)]"),
    ("scm", "stop(F(z / sd, t) - g /", "stop(F(z / sd, t) + g /"),
    ("meanflow", "kappa = 0.5", "kappa = 1.5"),  # guided by more than the whole of itself
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), REPELLED)
def test_targets_from_which_descent_leads_away_are_found(name: str, old: str, new: str) -> None:
    found = judged(name, (old, new))
    messages = [v.message for v in found.of("gradient") if not v.ok]
    assert any("descent leads away" in m for m in messages), found.render()


RIGHT = [
    ("tvm", "on t > s", "on t > q"),  # q is drawn by itself: every (t, s) is trained on some row
    ("tvm", "on t > s", "on t > gap"),  # holds on every row
    ("flow_matching", "uniform(0, 1)", "truncated(normal(0.5, 0.3), 0.05, 0.95)"),
    ("flow_matching", "uniform(0, 1)", "choice(grid(8))"),  # a list of times is meant as one
    ("meanflow", "sorted(logit_normal(-0.4, 1.0))", "logit_normal(-0.4, 1.0)"),  # both ways
    ("flow_matching", "bernoulli(0.1)", "bernoulli(0)"),
    ("flow_matching", "(1 - t) * data + t * noise", "t * data + (1 - t) * noise"),
    ("flow_matching", "(1 - t) * data + t * noise", "(1 - t) * data + (0.001 + t) * noise"),
    ("flow_matching", "loss          mse", "loss mse / (1 + norm(z))"),
    ("flow_matching", "loss          mse", "loss t * (1 - t) * (1 - progress) * mse"),
    ("flow_matching", "match v(z, t) to", "match 2 * v(z, t) - stop(v(z, t)) to"),
    ("flow_matching", "loss          mse", "loss mse + norm(velocity)"),  # no weight of the error
    # guidance whose weights add up at the values of the constants only
    ("meanflow", "(1 - omega - kappa)", "(omega - 1 - kappa)"),
]


@pytest.mark.parametrize(("name", "old", "new"), RIGHT)
def test_what_only_looks_like_a_hole_passes(name: str, old: str, new: str) -> None:
    found = judged(name, (old, new))
    assert found.ok, found.render()


def test_paths_without_an_end_need_times_at_which_the_noise_prevails() -> None:
    changes = ("(1 - t) * data + t * noise", "data + t * noise"), ("uniform(0, 1)", "{}")
    for law, passes in (("uniform(0, 80)", True), ("log_normal(-1.2, 1.2)", True),
                        ("uniform(0, 2)", False)):  # fmt: skip
        found = judged("flow_matching", changes[0], (changes[1][0], law))
        assert found.ok is passes, found.render()


def test_a_term_that_a_constant_switches_off_is_no_mistake() -> None:
    text = find_source("shortcut").text.replace("rows  ", "constants extra = 0\nrows  ", 1)
    text = text.replace(
        "anchor  ", "correction match u(z, t, t) to velocity on extra > 0\nanchor  "
    )
    found = check(load_text(text), find=load)
    assert found.ok, found.render()


#: Ways to write the rate pi / 2 of a path that runs from 0 to 1, and other rates.
RATES = ("1.5707963", "1.5708", "1.57", "1.570796326794897", "3.14159265358979 / 2")
TURNED = """objective turned
constants rate = {rate}
path z(t) = {path}
times {first}, {second} ~ sorted(uniform(0, {end}))
network F(z, t, r)
map z(t) -> z(r) = z + (r - t) * F(z, t, r)
differentiate t
target match F(z, t, r) to stop(velocity + (r - t) * d/dt[F(z, t, r)])
anchor match F(z, t, t) to velocity
loss mse
"""
DATA_LAST = "sin(rate * t) * data + cos(rate * t) * noise"
DATA_FIRST = "cos(rate * t) * data + sin(rate * t) * noise"


@pytest.mark.parametrize(
    ("rate", "end"), [*((r, "1") for r in RATES), ("2", "0.785398"), ("0.5", "3.14159")]
)
@pytest.mark.parametrize("path", [DATA_LAST, DATA_FIRST])
def test_a_path_of_sines_ends_where_its_rate_says(rate: str, end: str, path: str) -> None:
    """Trained towards the data it passes; trained away from them it is refused."""
    names = ("r", "t") if path == DATA_LAST else ("t", "r")  # the larger of two comes first
    for (first, second), right in ((names, True), (names[::-1], False)):
        text = TURNED.format(rate=rate, end=end, path=path, first=first, second=second)
        report = check(load_text(text), find=load)
        assert report.ok == right, report.render()
        assert any(v.check == "times" and v.status == "refuted" for v in report.verdicts) != right
