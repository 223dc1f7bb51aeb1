"""Networks that are shown another state of the row: the whole calculus under that condition.

The wrong twins of a right objective change one thing each: the target's outer state, its time, the
noise of the inner path, the stop, the inner end.
"""

from __future__ import annotations

from functools import cache

import pytest

from flowdsl import pipeline
from flowdsl.checks import Report, check
from flowdsl.diagnostics import DiagnosticError

SPECS = {
    "argument": """objective x
path x(t) = (1 - t) * data + t * noise
     y(s) = (1 - s) * data + s * noise'
rows diagonal ~ share(0.5)
times t ~ uniform(0, 1); noise', noise'' ~ normal(0, 1)
      s, r ~ sorted(uniform(0, 1)); r = s on diagonal
network v(y, s, r, x, t)
map inner: y(s) -> y(r) = y + (r - s) * v(y, s, r, x(t), t)
differentiate s along velocity(y)
target match v(y, s, r, x(t), t) to stop(velocity(y) - (s - r) * d/ds[v(y, s, r, x(t), t)])
""",
    "features": """objective x
path z(t) = (1 - t) * data + t * noise
     y(s) = (1 - s) * (noise - data) + s * noise'
rows diagonal ~ share(0.5)
times t ~ uniform(0, 1); noise', noise'' ~ normal(0, 1)
      s, r ~ sorted(uniform(0, 1)); r = s on diagonal
network backbone(z, t | label) -> features; head(y, s, r | features)
map inner: y(s) -> y(r) = y + (r - s) * head(y, s, r | features = backbone(z, t))
let u = head(y, s, r | features = backbone(z, t))
differentiate s along velocity(y)
target match u to stop(velocity(y) - (s - r) * d/ds[u])
""",
}

#: (which spec, what is replaced, by what, identity, unbiased).
TWINS = [
    ("argument", "", "", "proved", "proved"),
    ("argument", "stop(velocity(y)", "stop((noise' - data)", "proved", "proved"),
    ("argument", "stop(velocity(y)", "stop((y - data) / s", "proved", "proved"),
    ("argument", "stop(velocity(y)", "stop((noise' - (x(t) - t * noise) / (1 - t))", "proved",
     "proved"),
    ("argument", "d/ds[v(y, s, r, x(t), t)]", "d/ds[v(y, s, r, x(r), r)]", "refuted", "biased"),
    ("argument", "d/ds[v(y, s, r, x(t), t)]", "d/ds[v(y, s, r, x(r), t)]", "refuted", "biased"),
    ("argument", "d/ds[v(y, s, r, x(t), t)]", "d/ds[v(y, s, r, x(t), r)]", "refuted", "biased"),
    ("argument", "d/ds[v(y, s, r, x(t), t)]", "d/ds[v(y, s, r, x(t | noise = noise''), t)]",
     "refuted", "biased"),
    ("argument", "s * noise'\n", "s * noise\n", "refuted", ""),
    ("argument", "stop(velocity(y) - (s - r) * d/ds[v(y, s, r, x(t), t)])",
     "velocity(y) - (s - r) * d/ds[v(y, s, r, x(t), t)]", "proved", "biased"),
    ("argument", "stop(velocity(y)", "stop((noise' - noise)", "refuted", "biased"),
    ("argument", "stop(velocity(y)", "stop(velocity", "refuted", "biased"),
    ("argument", "velocity(y) - (s - r)", "velocity(y) + (s - r)", "refuted", "biased"),
    ("argument", "noise', noise'' ~ normal(0, 1)", "noise', noise'' ~ uniform(-1, 1)", "undecided",
     "undecided"),
    ("features", "", "", "proved", "proved"),
    ("features", "stop(velocity(y)", "stop((noise' - noise + data)", "proved", "proved"),
    ("features", "stop(velocity(y)", "stop((noise' - velocity)", "proved", "proved"),
    ("features", "d/ds[u]", "d/ds[head(y, s, r | features = backbone(z(r), r))]", "refuted",
     "biased"),
    ("features", "d/ds[u]", "d/ds[head(y, s, r | features = backbone(z, t | label = null))]",
     "refuted", "biased"),
    ("features", "s * noise'\n", "s * noise\n", "refuted", ""),
    ("features", "stop(velocity(y) - (s - r) * d/ds[u])", "velocity(y) - (s - r) * d/ds[u]",
     "proved", "biased"),
    ("features", "stop(velocity(y)", "stop((noise' - data)", "refuted", "biased"),
    ("features", "y + (r - s) * head", "y + (s - r) * head", "refuted", "biased"),
]  # fmt: skip


@cache
def judged(text: str) -> Report:
    return check(pipeline.load_text(text), only=["identity", "unbiased", "anchored"])


def statuses(report: Report, name: str) -> set[str]:
    return {v.status for v in report.of(name) if v.term} - {"note", "not applicable"}


@pytest.mark.parametrize(("spec", "old", "new", "identity", "unbiased"), TWINS)
def test_right_and_wrong_twins(spec: str, old: str, new: str, identity: str, unbiased: str) -> None:
    text = SPECS[spec]
    assert old in text
    found = judged(text.replace(old, new) if old else text)
    assert identity in statuses(found, "identity"), found.render()
    if identity == "proved":
        assert statuses(found, "identity") == {"proved"}
    if unbiased:
        assert unbiased in statuses(found, "unbiased"), found.render()


@pytest.mark.parametrize("spec", SPECS)
def test_the_diagonal_anchors_the_flow_of_every_outer_state(spec: str) -> None:
    found = judged(SPECS[spec])
    tied = [v.message for v in found.of("anchored") if v.status == "proved"]
    assert tied == ["another flow leaves v^(y, s) - v(y, s), zero only where v^ = v"]
    alone = SPECS[spec].replace("r = s on diagonal\n", "\n").replace("velocity(y) -", "")
    assert "proved" not in statuses(judged(alone), "identity")


def test_a_left_over_shows_the_other_outer_state() -> None:
    text = SPECS["argument"].replace("d/ds[v(y, s, r, x(t), t)]", "d/ds[v(y, s, r, x(r), t)]")
    (left,) = [v.left_over for v in judged(text).of("identity") if v.status == "refuted"]
    assert "| x = (t - r) / t * y" in left  # x(r), as far as y and x(t) tell it


def test_a_reused_noise_is_named() -> None:
    text = SPECS["argument"].replace("s * noise'\n", "s * noise\n")
    said = {v.message for v in judged(text).of("identity") if v.status == "refuted"}
    assert said == {"given x(t), noise is not fresh: the flow does not start where samples will"}


REGRESSION = """objective x
path x(t) = (1 - t) * data + t * noise
     y(s) = (1 - s) * data + s * noise'
times t, q, s ~ uniform(0, 1); noise' ~ normal(0, 1)
network v(y, s, x, t)
target match v(y(s), s, x(t), t) to {target}
"""


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("velocity(y(s))", "proved"),
        ("noise' - data", "proved"),
        ("noise' - (x(t) - t * noise) / (1 - t)", "proved"),
        ("stop(v(y(s), s, x(q), q)) + velocity(y(s)) - stop(v(y(s), s, x(t), t))", "refuted"),
    ],
)
def test_a_regression_under_an_outer_state(target: str, status: str) -> None:
    found = judged(REGRESSION.format(target=target))
    assert statuses(found, "identity") <= {status, "undecided"}, found.render()
    assert (statuses(found, "identity") == {status}) or status == "refuted"


def test_what_conditions_a_flow_does_not_move() -> None:
    text = SPECS["argument"].replace("d/ds[v(y, s, r, x(t), t)]", "d/ds[v(y, s, r, x(t), s)]")
    found = judged(text)
    assert statuses(found, "identity") == {"undecided"}
    assert any("conditioned, moves" in v.message for v in found.of("identity"))


def test_two_things_of_one_name_are_not_mixed_up() -> None:
    text = SPECS["features"].replace("head(y, s, r | features)", "head(y, s, r | features, label)")
    assert statuses(judged(text), "identity") == {"proved"}
    with pytest.raises(DiagnosticError):
        pipeline.load_text(text.replace("backbone(z, t)", "backbone(z)", 1))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("argument", "y leads from noise' to data"),
        ("features", "y leads from noise' to noise - data"),
    ],
)
def test_an_inner_path_is_told_by_its_ends(spec: str, words: str) -> None:
    found = check(pipeline.load_text(SPECS[spec]), only=["boundary"])
    assert [v.message for v in found.of("boundary") if v.term == "y"] == [words]
