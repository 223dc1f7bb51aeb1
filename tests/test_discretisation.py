"""Grids that a curriculum refines: steps of numbers, times from a grid, averages whose decay moves.

The objective is consistency training as published (arXiv:2303.01469, algorithm 3): the curriculum
N(k), the grid of Karras et al. and the decay mu(k) are written again here, in plain torch.
"""

from __future__ import annotations

import math

import pytest
import torch
from compiler_support import Net
from torch import Tensor

from flowdsl import pipeline
from flowdsl.diagnostics import DiagnosticError
from flowdsl.ir.ranges import of_expr
from flowdsl.passes.options import Options
from flowdsl.runtime.training.overrides import make_config

REAL = torch.float64
SD, LOW, HIGH, S0, S1, MU0 = 0.5, 0.002, 80.0, 2, 150, 0.9
TEXT = """objective training
constants sd = 0.5; lo = 0.002; hi = 80; s0 = 2; s1 = 150; mu0 = 0.9
path z(t) = data + t * noise
curriculum n = ceil(sqrt(progress * ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1
let level(i) = (hi^(1/7) + i / (n - 1) * (lo^(1/7) - hi^(1/7)))^7
times x ~ uniform(0, 1)
    t = level(floor(x * (n - 1))); r = level(floor(x * (n - 1)) + 1)
network F(z, t); slow = ema(F, decay = exp(s0 * log(mu0) / n))
map z(t) -> z(lo) = sd^2 / ((t - lo)^2 + sd^2) * z + sd * (t - lo) / sqrt(t^2 + sd^2) * F(z, t)
target match map(z, t, lo) to stop(map(z(r), r, lo | F = slow))
loss mse
"""


def objective():
    return pipeline.load_text(TEXT)


def levels(progress: float) -> Tensor:
    """The N noise levels at a point of training, falling."""
    n = math.ceil(math.sqrt(progress * ((S1 + 1) ** 2 - S0**2) + S0**2) - 1) + 1
    i = torch.arange(n, dtype=REAL) / (n - 1)
    return (HIGH ** (1 / 7) + i * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7


def consistency(net, z: Tensor, t: Tensor) -> Tensor:
    skip = SD**2 / ((t - LOW) ** 2 + SD**2)
    out = SD * (t - LOW) / torch.sqrt(t**2 + SD**2)
    return skip[:, None] * z + out[:, None] * net(z, t)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("optimize", [True, False])
def test_the_loss_on_a_refined_grid_is_the_published_one(progress: float, optimize: bool) -> None:
    spec = objective()
    loss = pipeline.compiled(spec, Options(optimize=optimize))
    torch.manual_seed(0)
    fast, slow = (Net(spec.networks["F"]) for _ in range(2))
    mine = Net(spec.networks["F"])
    mine.load_state_dict(fast.state_dict())
    data = torch.randn(16, 3, generator=torch.Generator().manual_seed(1), dtype=REAL)
    draws = loss.draw(data, generator=torch.Generator().manual_seed(2), progress=progress)
    value, _ = loss({"F": fast, "slow": slow}, data, draws=draws, progress=progress)
    value.backward()
    grid = levels(progress)
    place = (draws["x"] * (len(grid) - 1)).long()
    t, r = grid[place], grid[place + 1]
    prediction = consistency(mine, data + t[:, None] * draws["noise"], t)
    with torch.no_grad():
        target = consistency(slow, data + r[:, None] * draws["noise"], r)
    expected = (prediction - target).square().mean(1).mean()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    learnt = [(a, b) for a, b in zip(fast.parameters(), mine.parameters(), strict=True)
              if b.grad is not None]  # fmt: skip
    assert len(learnt) == 4
    for a, b in learnt:
        assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_an_average_s_decay_may_follow_the_curriculum(progress: float) -> None:
    loss = pipeline.compiled(objective())
    expected = math.exp(S0 * math.log(MU0) / len(levels(progress)))
    assert loss.decays(progress=progress) == {"slow": pytest.approx(expected, rel=1e-12)}
    module = loss.bind(Net(objective().networks["F"]))
    fast, slow = module.networks["F"], module.networks["slow"]
    before = slow.inner.weight.clone()
    with torch.no_grad():
        fast.inner.weight += 1
    module.update_averages(progress=progress)
    assert torch.allclose(slow.inner.weight, before + (1 - expected), atol=1e-12)


def test_the_trainer_tells_averages_the_moment(monkeypatch, tmp_path) -> None:
    from training_support import TinyNet, tiny_dataset

    from flowdsl.runtime.loss import LossModule
    from flowdsl.runtime.training.trainer import train

    told = []
    real = LossModule.update_averages

    def watched(self, **when):
        told.append(when)
        real(self, **when)

    monkeypatch.setattr(LossModule, "update_averages", watched)
    words = ["steps=4", "batch=4", "sample_every=0", "tensorboard=no"]
    train(pipeline.compiled(objective()), {"F": TinyNet(times=1, classes=None)}, tiny_dataset(),
          make_config(words), run_dir=tmp_path / "run", progress=False)  # fmt: skip
    assert told == [{"progress": k / 4, "step": k, "steps": 4} for k in range(4)]


def test_a_constant_decay_stays_what_it_was() -> None:
    loss = pipeline.compiled(pipeline.load("tvm"))
    assert loss.decays(progress=0.5) == {"slow": 0.99}
    assert "def decays" not in loss.source


def test_a_decay_that_differs_from_row_to_row_is_refused() -> None:
    text = TEXT.replace("decay = exp(s0 * log(mu0) / n)", "decay = x")
    with pytest.raises(DiagnosticError, match="no number of its step"):
        pipeline.compiled(pipeline.load_text(text))


STEPPED = """objective stepped
path z(t) = (1 - t) * data + t * noise
curriculum s = {op}(5 * progress - 2)
times t ~ uniform(0, 1)
network v(z, t)
target match v(z, t) to velocity
loss mse * {op}(8 * t - 3) + s
"""


@pytest.mark.parametrize("op", ["floor", "ceil"])
def test_steps_of_numbers_are_those_of_python(op: str) -> None:
    spec = pipeline.load_text(STEPPED.format(op=op))
    loss = pipeline.compiled(spec)
    whole = getattr(math, op)
    net = Net(spec.networks["v"])
    data = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=REAL)
    draws = loss.draw(data, generator=torch.Generator().manual_seed(2))
    t = draws["t"]
    z = (1 - t)[:, None] * data + t[:, None] * draws["noise"]
    mse = (net(z, t) - (draws["noise"] - data)).square().mean(1)
    steps = torch.tensor([float(whole(8 * x - 3)) for x in t.tolist()], dtype=REAL)
    for progress in (0.0, 0.1, 0.4, 0.99, 1.0):
        value, _ = loss(net, data, draws=draws, progress=progress)
        expected = (mse * steps + whole(5 * progress - 2)).mean()
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    low, high = of_expr(spec.definitions["s"], spec)
    assert (low, high) == (-2.0, 3.0)


def test_a_step_of_numbers_has_no_derivative() -> None:
    text = TEXT.replace("map(z(r), r, lo | F = slow)", "d/dt[floor(t) * F(z, t)]")
    with pytest.raises(DiagnosticError):
        pipeline.load_text(text)
