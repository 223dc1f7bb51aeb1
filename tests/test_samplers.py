"""Sampling from compiled objectives of every kind, held to flows known in closed form.

The data are N(0, STD^2), so that along z(t) = a(t) data + b(t) noise every state only scales with
S(t) = sqrt(a^2 STD^2 + b^2), and what a network should return is a multiple of its state.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flowdsl
from flowdsl import pipeline
from flowdsl.diagnostics import DiagnosticError
from flowdsl.exact import MixtureField, linear_path
from flowdsl.exact.flow import FlowMap
from flowdsl.exact.mixture import GaussianMixture
from flowdsl.runtime.data import load_dataset, mixture
from flowdsl.runtime.evaluation import EvaluationOptions, evaluate
from flowdsl.runtime.features import Features
from flowdsl.runtime.samplers import SampleOptions
from flowdsl.runtime.sampling import possible_steps, sample
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.truth import exact_flow

STD = 0.5
REAL = torch.float64

PATHS = {
    "linear": ("(1 - t) * data + t * noise", lambda t: (1 - t, t), 1.0),
    "trigonometric": ("cos(t) * data + sin(t) * noise", lambda t: (t.cos(), t.sin()), math.pi / 2),
    "scaled": (
        "cos(t) * data + sin(t) * 0.5 * noise",
        lambda t: (t.cos(), 0.5 * t.sin()),
        math.pi / 2,
    ),
    "exploding": ("data + 80 * t * noise", lambda t: (torch.ones_like(t), 80 * t), 1.0),
    "preserving": (
        "exp(-t * (0.2 + 19.9 * t) / 4) * data + sqrt(1 - exp(-t * (0.2 + 19.9 * t) / 2)) * noise",
        lambda t: (
            torch.exp(-t * (0.2 + 19.9 * t) / 4),
            torch.sqrt(1 - torch.exp(-t * (0.2 + 19.9 * t) / 2)),
        ),
        1.0,
    ),
}
PREDICTED = ("data", "noise", "velocity")


def schedule(path: str, time: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """a, b and S at times (rows,), shaped to multiply states (rows, 3)."""
    a, b = PATHS[path][1](time)
    return tuple(x[:, None] for x in (a, b, torch.sqrt(a**2 * STD**2 + b**2)))


def regression(path: str, predicted: str):
    """A compiled one-time regression, and the network that solves it."""
    text = f"objective plain\npath z(t) = {PATHS[path][0]}\ntimes t ~ uniform(0, 1)\n"
    text += f"network n(z, t)\ntarget match n(z, t) to {predicted}\n"

    def network(z, t):
        a, b, s = schedule(path, t)
        if predicted == "data":
            return a * STD**2 / s**2 * z
        if predicted == "noise":
            return b / s**2 * z
        with torch.enable_grad():
            moving = t.detach().clone().requires_grad_(True)
            a1, b1, _ = schedule(path, moving)
            rates = [torch.autograd.grad(x.sum(), moving, retain_graph=True)[0][:, None]
                     if x.requires_grad else torch.zeros_like(x) for x in (a1, b1)]  # fmt: skip
        return (rates[0] * a * STD**2 + rates[1] * b) / s**2 * z

    return pipeline.compiled(pipeline.load_text(text)), network


def normal(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=REAL)


def drawn(loss, network, steps: int, sampler: str = "auto", count: int = 40):
    noise = normal(count)
    options = SampleOptions(sampler=sampler)
    return noise, sample(loss, network, (3,), count, steps, noise=noise, options=options)


def exact_end(path: str, noise: torch.Tensor) -> torch.Tensor:
    """Where the exact flow carries the state that the sampler starts with."""
    end = torch.full((len(noise),), PATHS[path][2], dtype=REAL)
    _, b, s = schedule(path, end)
    return b * noise * STD / s


#: Where these paths begin they are all noise, and data cannot be told from the noise alone.
ALL_NOISE = ("linear", "trigonometric", "scaled")
SAMPLED = [(p, x) for p in PATHS for x in PREDICTED if not (x == "noise" and p in ALL_NOISE)]


@pytest.mark.parametrize(("path", "predicted"), SAMPLED)
def test_whatever_is_predicted_integrates_to_the_data(path: str, predicted: str) -> None:
    loss, network = regression(path, predicted)
    assert loss.signature.noise_time == pytest.approx(PATHS[path][2])
    errors = []
    for steps in (100, 200):
        noise, found = drawn(loss, network, steps, "heun")
        errors.append(float((found - exact_end(path, noise)).abs().max()))
    assert errors[-1] < (0.5 if path == "exploding" else 0.01)  # even steps of 0.4 are coarse there
    assert errors[1] <= 0.8 * errors[0] + 1e-12


@pytest.mark.parametrize("predicted", ["data", "noise"])
def test_ddim_of_a_preserving_path_is_of_first_order(predicted: str) -> None:
    loss, network = regression("preserving", predicted)
    assert loss.signature.integrator == "ddim"
    errors = []
    for steps in (64, 128, 256):
        noise, found = drawn(loss, network, steps)
        errors.append(float((found - exact_end("preserving", noise)).abs().max()))
    assert errors[0] < 0.2
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.25)


def test_a_ddim_step_is_the_formula_of_its_paper() -> None:
    loss, network = regression("preserving", "noise")
    z, start, end = (
        normal(5, 1),
        torch.full((5,), 0.7, dtype=REAL),
        torch.full((5,), 0.4, dtype=REAL),
    )
    a, b, _ = schedule("preserving", start)
    a2, b2, _ = schedule("preserving", end)
    options = SampleOptions(times=(1.0, 0.7, 0.4, 0.0))
    states = []
    inner = loss.denoised

    def watched(networks, z, time, **more):
        states.append(z)
        return inner(networks, z, time, **more)

    loss.denoised = watched
    sample(loss, network, (3,), 5, 3, noise=z, options=options)
    eps = network(states[1], start)
    expected = a2 / a * states[1] + (b2 - b * a2 / a) * eps  # equation 12 without fresh noise
    assert torch.allclose(states[2], expected, atol=1e-12)


def test_on_the_linear_path_ddim_is_euler() -> None:
    loss, network = regression("linear", "data")
    _, one = drawn(loss, network, 7, "ddim")
    _, other = drawn(loss, network, 7, "euler")
    assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_the_path_of_a_loss_is_the_spec_s(path: str) -> None:
    loss, _ = regression(path, "data")
    data, noise, time = normal(6, 1), normal(6, 2), torch.linspace(0.1, 0.9, 6, dtype=REAL)
    a, b, _ = schedule(path, time)
    assert torch.allclose(loss.path(data, noise, time), a * data + b * noise, atol=1e-14)
    assert torch.equal(loss.path(data, noise, 0.3), loss.path(data, noise, time * 0 + 0.3))


CONSISTENCY = """objective consistency
path z(t) = {path}
times t ~ {law}
network F(z, t)
map z(t) -> z(0) = F(z, t)
differentiate t along velocity
target match F(z, t) to stop(F(z, t) - d/dt[F(z, t)])
"""


def consistency(path: str, law: str = "uniform(0, 1)", more: str = ""):
    loss = pipeline.compiled(
        pipeline.load_text(CONSISTENCY.format(path=PATHS[path][0], law=law) + more)
    )
    return loss, lambda z, t: STD / schedule(path, t)[2] * z


@pytest.mark.parametrize("path", PATHS)
def test_a_map_with_a_fixed_end_samples_in_any_number_of_steps(path: str) -> None:
    loss, network = consistency(path)
    assert loss.signature.fixed_end == 0.0
    noise, found = drawn(loss, network, 1)
    assert torch.allclose(found, exact_end(path, noise), atol=1e-12)
    _, found = drawn(loss, network, 3, count=4000)
    assert float(found.std()) == pytest.approx(STD, rel=0.05)  # fresh noise, the same law


def test_a_map_with_a_fixed_end_renoises_along_its_path() -> None:
    loss, network = consistency("scaled")
    noise = normal(6)
    found = sample(
        loss, network, (3,), 6, 2, noise=noise, generator=torch.Generator().manual_seed(9)
    )
    middle = torch.full((6,), math.pi / 4, dtype=REAL)
    fresh = torch.randn(6, 3, generator=torch.Generator().manual_seed(9), dtype=REAL)
    a, b, s = schedule("scaled", middle)
    again = a * exact_end("scaled", noise) + b * fresh
    assert torch.allclose(found, again * STD / s, atol=1e-12)


def test_a_map_without_a_velocity_says_so() -> None:
    loss, network = consistency("linear")
    with pytest.raises(DiagnosticError, match="learns no velocity"):
        loss.velocity(network, normal(2), 0.5)
    with pytest.raises(DiagnosticError, match="learns no data or noise"):
        loss.denoised(network, normal(2), 0.5)


@pytest.mark.parametrize(
    ("law", "end"),
    [
        ("choice(karras(18, 0.002, 80))", 80.0),
        ("log_normal(-1.1, 2.0)", 100.0),
        ("truncated(log_normal(-1.1, 2.0), 0.002, 60)", 60.0),
    ],
)
def test_a_path_without_an_end_ends_with_its_times(law: str, end: float) -> None:
    text = CONSISTENCY.format(path="data + t * noise", law=law)
    signature = pipeline.compiled(pipeline.load_text(text)).signature
    assert (signature.data_time, signature.noise_time) == (0.0, pytest.approx(end))


def test_the_spec_says_the_sampler_s_times() -> None:
    text = CONSISTENCY.format(path="data + t * noise", law="log_normal(-1.1, 2.0)")
    text = text.replace("\npath", "\nconstants top = 80\npath")
    loss = pipeline.compiled(pipeline.load_text(text + "sample t = top * (1 - progress)^7\n"))
    assert loss.signature.noise_time == pytest.approx(80)
    assert loss.clock(0.5) == pytest.approx(80 / 2**7)
    seen = []

    def network(z, t):
        seen.append(float(t[0]))
        return 0 * z

    sample(loss, network, (3,), 2, 4, noise=normal(2))
    assert seen == pytest.approx([80 * (1 - k / 4) ** 7 for k in range(4)])


def test_the_spec_says_what_conditions_are_when_sampling() -> None:
    text = """objective guided
path z(t) = (1 - t) * data + t * noise
times t ~ uniform(0, 1)
conditions w ~ uniform(1, 8)
network v(z, t | w)
target match v(z, t) to velocity
"""
    plain = pipeline.compiled(pipeline.load_text(text)).signature
    told = pipeline.compiled(pipeline.load_text(text + "sample w = 4\n")).signature
    assert [c.default for c in plain.conditions] == [1.0]
    assert [c.default for c in told.conditions] == [4.0]
    with pytest.raises(DiagnosticError, match="no path's time"):
        pipeline.load_text(text + "sample q = 4\n")


def test_a_condition_of_the_map_is_given_when_sampling_whatever_else_the_loss_passes() -> None:
    """The target shows the network another strength first; a jump needs the drawn one."""
    text = """objective told
path z(t) = (1 - t) * data + t * noise
rows diagonal ~ share(0.5)
times t, r ~ sorted(uniform(0, 1)); r = t on diagonal
conditions w ~ uniform(1, 8)
network u(z, t, r | w)
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
let k = w
    k = 1 on diagonal
target match u(z, t, r | w = k) to stop(velocity)
"""
    loss = pipeline.compiled(pipeline.load_text(text))
    assert [c.name for c in loss.signature.conditions] == ["w"]
    noise = torch.ones(2, 3, dtype=REAL)
    landed = loss.jump(lambda z, t, r, w: w[:, None] * z, noise, 1.0, 0.0, w=0.25)
    assert torch.equal(landed, 0.75 * noise)


def test_steps_suit_the_objective_unless_they_are_told() -> None:
    flow, jumps = (flowdsl.load(n).compile().signature for n in ("flow_matching", "meanflow"))
    assert possible_steps(flow) == (4, 16, 64)
    assert possible_steps(jumps) == (1, 2, 4)
    assert possible_steps(flow, [3]) == possible_steps(jumps, [3]) == (3,)
    assert make_config([]).sample_steps is None
    assert make_config(["sample_steps=none"], {"sample_steps": [2]}).sample_steps is None
    assert make_config(["sample_steps=2,8"]).sample_steps == (2, 8)
    with pytest.raises(DiagnosticError, match="sample_steps cannot be"):
        make_config(["sample_steps=0"])


def test_a_map_with_a_fixed_start_makes_one_step() -> None:
    text = """objective forward
path z(t) = (1 - t) * data + t * noise
times s ~ uniform(0, 1)
network F(z, s); teacher(z, t) frozen
map z(1) -> z(s) = z(1) + (s - 1) * F(z(1), s)
differentiate s
target match F(noise, s) to stop(teacher(map(noise, 1, s), s) - (s - 1) * d/ds[F(noise, s)])
"""
    loss = pipeline.compiled(pipeline.load_text(text))
    assert loss.signature.fixed_start == 1.0
    assert possible_steps(loss.signature, (1, 2, 4)) == possible_steps(loss.signature) == (1,)
    network = lambda z, s: (1 - STD) * z  # noqa: E731
    noise, found = drawn(loss, network, 1)
    assert torch.allclose(found, STD * noise, atol=1e-12)
    with pytest.raises(DiagnosticError, match="starts at time 1 only"):
        drawn(loss, network, 2)


# -- the exact flow along any path ---------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(PATHS)), st.floats(0.05, 0.95), st.integers(0, 99))
def test_the_exact_flow_scales_from_path_to_path(path: str, at: float, seed: int) -> None:
    loss, _ = regression(path, "data")
    flow = exact_flow(loss, load_dataset("mixture").card)
    law = GaussianMixture.from_covariances(mixture.WEIGHTS, mixture.MEANS, mixture.COVARIANCES)
    linear = FlowMap(MixtureField(law, linear_path()), steps=96)
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed), dtype=REAL)
    time = torch.full((8,), at * PATHS[path][2], dtype=REAL)
    a, b, _ = schedule(path, time)
    data = 0.1 * noise.flip(0)
    state = a * data + b * noise
    # the linear path passes the same ratio of noise to data at b / (a + b), scaled by 1 / (a + b)
    there = linear(state / (a + b), (b / (a + b))[:, 0], torch.zeros_like(time))
    assert flow is not None
    found = flow(state.view(8, 2, 1, 1), time, torch.zeros_like(time)).flatten(1)
    assert torch.allclose(found, there, atol=2e-5)


@pytest.mark.parametrize("path", ["scaled", "exploding"])
def test_an_exact_map_with_a_fixed_end_has_no_exact_flow_error(path: str) -> None:
    loss, _ = consistency(path)
    dataset = load_dataset("mixture")
    flow = exact_flow(loss, dataset.card)
    assert flow is not None

    def network(z, t):
        return flow(z.double(), t.double(), torch.zeros_like(t).double()).to(z.dtype)

    options = EvaluationOptions(steps=(1, 2), count=60, metrics=("exact_flow",))
    raw = Features("points", "", None, None)
    found = evaluate(loss, network, dataset, raw, options, exact=flow)
    assert found.sampler == "renoise"
    assert found.rows[0].values["exact-flow error"] < 1e-4
    assert found.rows[1].values == {}  # two steps renoise: there is no one state to compare with
