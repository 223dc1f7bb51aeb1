"""Inner flows under an outer state, held to the posterior of Gaussian data, known in closed form.

Data are N(0, STD^2). Given z = (1 - t) data + t noise, the data are N(m z, v^2), and both what the
inner path ends in and the inner flow map follow: along y(s) = (1 - s) x + s noise' every state
keeps its number of standard deviations from the mean.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiler_support import Net
from torch import Tensor
from typer.testing import CliRunner

import flowdsl
from flowdsl import pipeline
from flowdsl.cli import app
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.posterior import sample_posterior
from flowdsl.runtime.samplers import SampleOptions
from flowdsl.runtime.sampling import sample

STD, REAL = 0.5, torch.float64

#: What the inner path ends in, and how that follows from data and noise: factors of both.
ENDS = {"data": ("data", (1.0, 0.0)), "velocity": ("(noise - data)", (-1.0, 1.0))}


def text(end: str) -> str:
    return f"""objective inner
path z(t) = (1 - t) * data + t * noise
     y(s) = (1 - s) * {ENDS[end][0]} + s * noise'
times t ~ uniform(0, 1); s, r ~ sorted(uniform(0, 1)); noise' ~ normal(0, 1)
network u(y, s, r, x, t)
map inner: y(s) -> y(r) = y + (r - s) * u(y, s, r, z(t), t)
target match u(y(s), s, s, z(t), t) to {
        ENDS[end][0].replace("(noise", "noise' - (noise") if end == "velocity" else "noise' - data"
    }
"""


def posterior(end: str, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the inner path's end, given z at t."""
    p, q = ENDS[end][1]
    t = t[:, None]
    a, b = 1 - t, t
    total = a**2 * STD**2 + b**2
    mean = (p * a * STD**2 + q * b) / total * z
    variance = p**2 * STD**2 + q**2 - (p * a * STD**2 + q * b) ** 2 / total
    return mean, variance.clamp(min=0).sqrt().expand_as(z)


def exact(end: str):
    """The average velocity of the inner flow between s and r."""

    def u(y, s, r, x, t):
        mean, std = posterior(end, x, t)

        def spread(s):
            return torch.sqrt((1 - s[:, None]) ** 2 * std**2 + s[:, None] ** 2)

        here, there = spread(s), spread(r)
        landed = (1 - r[:, None]) * mean + there / here * (y - (1 - s[:, None]) * mean)
        gap = torch.where(r == s, torch.ones_like(r), r - s)[:, None]
        return (landed - y) / gap

    return u


def normal(count: int, seed: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=REAL)


@pytest.mark.parametrize("end", ENDS)
def test_a_compiled_inner_flow_draws_from_the_posterior(end: str) -> None:
    loss = pipeline.compiled(pipeline.load_text(text(end)))
    assert (loss.signature.sampler, loss.signature.inner) == ("transition", (1.0, 0.0))
    z, fresh, t = normal(5, 1), normal(5, 2), torch.linspace(0.2, 0.9, 5, dtype=REAL)
    mean, std = posterior(end, z, t)
    one, zero = torch.ones(5, dtype=REAL), torch.zeros(5, dtype=REAL)
    landed = loss.inner(exact(end), fresh, z, one, zero, t)
    assert torch.allclose(landed, mean + std * fresh, atol=1e-12)
    half = loss.inner(exact(end), fresh, z, one, one / 2, t)
    assert torch.allclose(loss.inner(exact(end), half, z, one / 2, zero, t), landed, atol=1e-12)
    data = loss.outcome(landed, z, t)
    expected = landed if end == "data" else z - t[:, None] * landed
    assert torch.allclose(data, expected, atol=1e-12)


@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("end", ENDS)
def test_samples_of_an_exact_inner_flow_have_the_law_of_the_data(
    end: str, steps: int, inner: int
) -> None:
    loss = pipeline.compiled(pipeline.load_text(text(end)))
    found = sample(
        loss, exact(end), (2,), 4000, steps, noise=normal(4000, 3),
        generator=torch.Generator().manual_seed(4), options=SampleOptions(inner=inner),
    )  # fmt: skip
    assert float(found.mean()) == pytest.approx(0, abs=0.03)
    assert float(found.std()) == pytest.approx(STD, rel=0.04)


def test_a_step_keeps_data_and_noise_that_were_drawn_together() -> None:
    loss = pipeline.compiled(pipeline.load_text(text("velocity")))
    noise, asked = normal(6, 5), []
    inner = exact("velocity")

    def watched(y, s, r, x, t):
        asked.append((x, t))
        return inner(y, s, r, x, t)

    sample(loss, watched, (2,), 6, 2, noise=noise, generator=torch.Generator().manual_seed(7))
    fresh = torch.randn(6, 2, generator=torch.Generator().manual_seed(7), dtype=REAL)
    mean, std = posterior("velocity", noise, torch.ones(6, dtype=REAL))
    assert torch.allclose(asked[1][0], noise - 0.5 * (mean + std * fresh), atol=1e-12)
    assert torch.equal(asked[1][1], torch.full((6,), 0.5, dtype=REAL))


def test_the_loss_of_an_inner_flow_is_the_formula_s() -> None:
    spec = pipeline.load_text(text("data"))
    loss, net, mine = pipeline.compiled(spec), *(Net(spec.networks["u"], (2,)) for _ in range(2))
    mine.load_state_dict(net.state_dict())
    data = normal(8, 1)
    draws = loss.draw(data, generator=torch.Generator().manual_seed(2))
    value, _ = loss(net, data, draws=draws)
    value.backward()
    t, s, noise, fresh = (draws[k] for k in ("t", "s", "noise", "noise'"))
    z = (1 - t)[:, None] * data + t[:, None] * noise
    y = (1 - s)[:, None] * data + s[:, None] * fresh
    expected = (mine(y, s, s, z, t) - (fresh - data)).square().sum(1).mean()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for a, b in zip(net.parameters(), mine.parameters(), strict=True):
        assert b.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-13)


def test_samplers_that_do_not_suit_are_refused() -> None:
    loss = pipeline.compiled(pipeline.load_text(text("data")))
    for options, words in (
        (SampleOptions(sampler="euler"), "learns an inner flow"),
        (SampleOptions(inner=0), "0 inner steps"),
        (SampleOptions(guidance=2.0), "cannot be applied to a map"),
    ):
        with pytest.raises(DiagnosticError, match=words):
            sample(loss, exact("data"), (2,), 2, 1, noise=normal(2, 0), options=options)
    plain = pipeline.compiled(pipeline.load("flow_matching"))
    with pytest.raises(DiagnosticError, match="learns no inner flow"):
        sample(plain, Net, (2,), 2, 1, noise=normal(2, 0),
               options=SampleOptions(sampler="transition"))  # fmt: skip


def test_inner_steps_are_refused_where_there_is_no_inner_flow_and_told_where_there_is(
    tmp_path: Path,
) -> None:
    loss = flowdsl.load("flow_matching").compile()
    with pytest.raises(DiagnosticError, match="learns no inner flow"):
        sample(loss, lambda z, t, **_: z, (1, 4, 4), 2, 1, options=SampleOptions(inner=2))
    inner = flowdsl.load("tmd_meanflow").compile(check=False)
    with pytest.raises(DiagnosticError) as caught:
        sample(inner, {}, (1, 4, 4), 2, 1, options=SampleOptions(guidance=2.0))
    (told,) = caught.value.diagnostics
    assert told.hint == "train with another guidance constant"  # no velocity to sample instead
    folder = str(tmp_path / "run")
    run = CliRunner()
    assert run.invoke(app, ["train", "tmd_meanflow", "steps=1", "batch=8", "sample_steps=1",
                            "tensorboard=no", "-o", folder]).exit_code == 0  # fmt: skip
    done = run.invoke(app, ["sample", folder, "--steps", "1", "--inner", "3"])
    assert "inner steps: 3 (`--inner N`)" in done.output


@pytest.mark.parametrize("end", ENDS)
def test_many_draws_given_one_state_have_the_posterior_s_mean_and_spread(end: str) -> None:
    loss = pipeline.compiled(pipeline.load_text(text(end)))
    states, time, count = normal(3, 8), 0.6, 6000
    found = sample_posterior(
        loss, exact(end), states, time, count,
        generator=torch.Generator().manual_seed(9), options=SampleOptions(inner=2),
    )  # fmt: skip
    assert found.shape == (3, count, 2)
    mean, std = posterior("data", states, torch.full((3,), time, dtype=REAL))
    assert torch.allclose(found.mean(1), mean, atol=5 * STD / count**0.5)
    assert torch.allclose(found.std(1), std, rtol=0.04)
    assert not torch.allclose(mean[0], mean[1], atol=0.1)  # the states are told apart


CENTRES = torch.tensor([[1.2, 0.3], [-0.8, 0.9], [0.1, -1.1]], dtype=REAL)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=REAL)


def given_state(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shares (rows, 3), means (rows, 3, 2) and variance (rows, 1) of mixture data given z at t."""
    a, b = (1 - t)[:, None], t[:, None]
    total = a**2 * STD**2 + b**2
    off = z[:, None] - a[:, :, None] * CENTRES
    shares = (SHARES.log() - (off**2).sum(-1) / (2 * total)).softmax(-1)
    means = CENTRES + (a * STD**2 / total)[:, :, None] * off
    return shares, means, STD**2 * b**2 / total


def mixture_velocity(y: Tensor, s: float, z: Tensor, t: Tensor) -> Tensor:
    """E[fresh - data | y(s), z(t)] for y = (1 - s) data + s fresh."""
    shares, means, variance = given_state(z, t)
    total = (1 - s) ** 2 * variance + s**2
    off = y[:, None] - (1 - s) * means
    weights = (shares.log() - (off**2).sum(-1) / (2 * total)).softmax(-1)[..., None]
    clean = means + ((1 - s) * variance / total)[:, :, None] * off
    fresh = (s / total)[:, :, None] * off
    return (weights * (fresh - clean)).sum(1)


def mixture_flow(y, s, r, x, t):
    """The average velocity of the inner flow between s and r, by Runge and Kutta's rule."""
    steps, start = 200, y
    first, width = float(s[0]), float(r[0] - s[0]) / 200
    for k in range(steps):
        at = first + k * width
        k1 = mixture_velocity(y, at, x, t)
        k2 = mixture_velocity(y + width / 2 * k1, at + width / 2, x, t)
        k3 = mixture_velocity(y + width / 2 * k2, at + width / 2, x, t)
        k4 = mixture_velocity(y + width * k3, at + width, x, t)
        y = y + width / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return (y - start) / (r - s)[:, None]


def test_many_draws_given_one_state_have_the_law_of_a_mixture_s_posterior() -> None:
    loss = pipeline.compiled(pipeline.load_text(text("data")))
    states = torch.tensor([[0.3, 0.2], [-0.5, -0.1]], dtype=REAL)
    time, count = 0.7, 4000
    found = sample_posterior(
        loss, mixture_flow, states, time, count, generator=torch.Generator().manual_seed(4)
    )
    shares, means, variance = given_state(states, torch.full((2,), time, dtype=REAL))
    mean = (shares[..., None] * means).sum(1)
    off = means - mean[:, None]
    spread = torch.einsum("kc,kci,kcj->kij", shares, off, off) + variance[:, :, None] * torch.eye(2)
    centred = found - found.mean(1, keepdim=True)
    assert torch.allclose(found.mean(1), mean, atol=0.04)
    assert torch.allclose(centred.mT @ centred / count, spread, atol=0.05)
    assert float(spread[0, 0, 0] - variance[0]) > 0.1  # several components have a share


def test_draws_given_states_are_refused_where_there_are_none() -> None:
    loss = pipeline.compiled(pipeline.load_text(text("data")))
    for time, words in ((1.5, "no state to be given at time 1.5"), (0.0, "at time 0")):
        with pytest.raises(DiagnosticError, match=words):
            sample_posterior(loss, exact("data"), normal(2, 0), time, 3)
    plain = pipeline.compiled(pipeline.load("flow_matching"))
    with pytest.raises(DiagnosticError, match="learns no inner flow"):
        sample_posterior(plain, Net, normal(2, 0), 0.5, 3)


def test_the_command_draws_given_held_out_data(tmp_path: Path) -> None:
    run, picture = tmp_path / "run", tmp_path / "given.png"
    words = "steps=2 batch=16 sample_every=0 checkpoint_every=0 log_every=1 tensorboard=no"
    command = ["train", "meta_flow_maps", "-q", "--out", str(run), *words.split()]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(
        app, ["sample", str(run), "--given", "0.3,0.8", "--inner", "2", "-o", str(picture)]
    )
    assert done.exit_code == 0, done.output
    assert picture.stat().st_size > 1000
    for given in ("late", "2"):
        refused = CliRunner().invoke(app, ["sample", str(run), "--given", given])
        assert refused.exit_code != 0
        assert "Traceback" not in refused.output
