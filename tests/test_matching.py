"""Steps that match distributions: verdicts on their sign, beside what the step does to a Gaussian.

A generator makes noise + m; the teacher knows the velocity of N(0, 1), the auxiliary that of the
generated N(m, 1). Descent of the term must bring m towards 0 exactly where the checker says so.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flowdsl import pipeline
from flowdsl.checks import Report, check
from flowdsl.sources import shipped_folder

DOWN = "(1 - t) * data + t * noise"  # data at time 0
UP = "t * data + (1 - t) * noise"  # data at time 1
FORMS = {
    "match": "match generated to stop(generated - ({excess}))",
    "scaled": "match generated to stop(generated - ({excess}) / mean_abs({excess}))",
    "product": "minimise dot(generated, stop({excess}))",
    "displacement": "match G(noise, 1) to stop(G(noise, 1) - ({excess}))",
    "negative": "match -2 * G(noise, 1) to stop(-2 * G(noise, 1) + ({excess}))",
}
TEACHER_MINUS_FAKE = "teacher(x, q) - fake(x, q)"
FAKE_MINUS_TEACHER = "fake(x, q) - teacher(x, q)"


def text(path: str, term: str, critic: str = "match fake(seen, q) to velocity(seen)") -> str:
    return f"""objective x
path z(t) = {path}
times q ~ uniform(0.1, 0.9); noise' ~ normal(0, 1)
network G(z, t); teacher(z, t) frozen; fake(z, t)
let generated = noise + G(noise, 1)
    x = z(q | data = generated, noise = noise')
    seen = z(q | data = stop(generated), noise = noise')
target {term}
critic {critic}
"""


def judged(spec: str) -> Report:
    return check(pipeline.load_text(spec), only=["identity", "unbiased", "anchored", "gradient"])


def direction(report: Report) -> str:
    """What is said of the step's direction."""
    (found,) = [v for v in report.of("gradient") if v.term.startswith("target") and
                v.status in ("proved", "refuted", "undecided")]  # fmt: skip
    assert found.status == "undecided" or "scends the KL divergence" in found.message, found
    return found.status


class Shift(nn.Module):
    """m, whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.tensor([0.8, -0.5], dtype=torch.float64))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.m.expand_as(z)


class Velocity(nn.Module):
    """The velocity of N(mean, 1) on a path with weights a, s and their derivatives da, ds."""

    def __init__(self, mean: Tensor, up: bool) -> None:
        super().__init__()
        self.mean, self.up = mean, up

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        a, s, da, ds = (t, 1 - t, 1.0, -1.0) if self.up else (1 - t, t, -1.0, 1.0)
        total = a**2 + s**2
        return da * self.mean + (a * da + s * ds) / total * (x - a * self.mean)


@pytest.mark.parametrize("path", [DOWN, UP], ids=["down", "up"])
@pytest.mark.parametrize("excess", [TEACHER_MINUS_FAKE, FAKE_MINUS_TEACHER], ids=["t-f", "f-t"])
@pytest.mark.parametrize("form", FORMS)
def test_the_sign_is_what_descent_does_to_a_gaussian(path: str, excess: str, form: str) -> None:
    objective = pipeline.load_text(text(path, FORMS[form].format(excess=excess)))
    generator, up = Shift(), path == UP
    nets = {
        "G": generator,
        "teacher": Velocity(torch.zeros(2, dtype=torch.float64), up),
        "fake": Velocity(generator.m.detach().clone(), up),
    }
    loss = pipeline.compiled(objective)
    data = torch.zeros(256, 2, dtype=torch.float64)
    draws = loss.draw(data, generator=torch.Generator().manual_seed(3))
    value, _ = loss(nets, data, draws=draws)
    (slope,) = torch.autograd.grad(value, generator.m)
    towards = (
        float((slope * generator.m.detach()).sum()) > 0
    )  # KL = |m|^2 / 2, at any time a multiple of it
    said = direction(check(objective, only=["gradient"]))
    assert said == ("proved" if towards else "refuted")


VSD = FORMS["match"].format(excess=TEACHER_MINUS_FAKE)


def test_a_step_alone_is_proved_and_ties_the_law() -> None:
    found = judged(text(DOWN, VSD))
    assert found.ok, found.render()
    for name in ("identity", "unbiased"):
        (said,) = [v for v in found.of(name) if v.term == "target"]
        assert (said.status, "agrees with teacher" in said.message) == ("proved", True)
    assert any("laws are the same" in v.message for v in found.of("anchored"))


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (("fake(x, q))", "2 * fake(x, q))"), "refuted", "does not vanish where both laws"),
        (("teacher(x, q) - fake(x, q)", "teacher(x, q) + fake(x, q)"), "refuted", "not vanish"),
        (("teacher(x, q) -", "teacher(x, q / 2) -"), "refuted", "elsewhere"),
        (("teacher(x, q) -", "teacher(z(q), q) -"), "refuted", "elsewhere"),
        (("fake(seen, q) to velocity(seen)", "fake(z(q), q) to velocity(z(q))"), "refuted",
         "trained on other samples"),
        (("match fake(seen, q) to velocity(seen)", "minimise norm(fake(seen, q) - velocity(seen))"),
         "undecided", "no matched term teaches fake"),
        (("teacher(x, q) - fake(x, q)", "(q - 0.5) * (teacher(x, q) - fake(x, q))"), "undecided",
         "one way at some times"),
    ],
)  # fmt: skip
def test_steps_that_compare_something_else(
    change: tuple[str, str], status: str, words: str
) -> None:
    spec = text(DOWN, VSD)
    assert change[0] in spec
    found = judged(spec.replace(*change))
    said = [v for v in found.of("gradient") if v.term == "target" and v.status == status]
    assert [v for v in said if words in v.message], found.render()
    assert not found.ok


MIRRORED = {
    "free_flow": ("- balance * excess)", "+ balance * excess)"),
    "tmd_distribution": ("stop(generated - excess", "stop(generated + excess"),
}


@pytest.mark.parametrize("name", ["free_flow", "tmd_distribution"])
def test_shipped_steps_descend_and_their_mirror_images_do_not(name: str) -> None:
    spec = (shipped_folder() / f"{name}.flow").read_text()
    old, new = MIRRORED[name]
    assert old in spec
    said = [
        {v.status for v in check(pipeline.load_text(one), only=["gradient"]).of("gradient")
         if "scends the KL" in v.message}
        for one in (spec, spec.replace(old, new))
    ]  # fmt: skip
    assert said == [{"proved"}, {"refuted"}]


def test_samples_other_than_those_drawn_are_biased() -> None:
    """With the true noise in the place of the drawn one the inner flow's truth is no solution."""
    found = {n: judged((shipped_folder() / "tmd_distribution.flow").read_text().replace(
        "generated = noise - flow", f"generated = {n} flow")) for n in ("noise -", "z - t *", "z -")
    }  # fmt: skip
    said = {n: next(v for v in f.of("identity") if v.term == "vsd") for n, f in found.items()}
    assert {n: v.status for n, v in said.items()} == {
        "noise -": "biased", "z - t *": "proved", "z -": "biased",
    }  # fmt: skip
    assert said["noise -"].left_over.startswith("(1 - t) * noise + (t - 1) * data")
