"""Flow maps: measured order, identities to round-off, the diagonal, one Gaussian, guidance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowdsl.exact import (
    AffinePath,
    FlowMap,
    GaussianField,
    GaussianMixture,
    Guidance,
    MixtureField,
    cosine_path,
    linear_path,
    variance_exploding_path,
)
from flowdsl.exact.integrate import COOPER_VERNER, Tableau, mean_slope
from tests.exact_support import PATHS, along, every_path, seeded, states_of, times_of

torch.set_num_threads(1)

# --- the integrator ---


def test_the_tableau_refuses_slips() -> None:
    nodes, weights = COOPER_VERNER.nodes, COOPER_VERNER.weights
    rows = list(COOPER_VERNER.coefficients)
    rows[5] = (*rows[5][:-1], rows[5][-1] + 1e-3)
    with pytest.raises(ValueError, match="stage time"):
        Tableau(nodes, tuple(rows), weights, 8)
    with pytest.raises(ValueError, match="degree"):
        Tableau(nodes, COOPER_VERNER.coefficients, weights, 9)


def test_the_order_is_eight() -> None:
    """x' = x^2 cos t, non-autonomous and nonlinear, has x(t) = x0 / (1 - x0 sin t)."""
    state = torch.tensor([[0.5]], dtype=torch.float64)
    start, end = torch.zeros(1).double(), torch.full((1,), 1.5, dtype=torch.float64)

    def slope(x: Tensor, t: Tensor) -> Tensor:
        return x * x * torch.cos(t)[:, None]

    exact = 0.5 / (1 - 0.5 * math.sin(1.5))
    errors = [
        abs(float(state + 1.5 * mean_slope(slope, state, start, end, steps)) - exact)
        for steps in (6, 12)
    ]
    assert 7.5 < math.log2(errors[0] / errors[1]) < 8.5, errors


@pytest.mark.parametrize("name", ["linear", "cosine", "trigonometric", "reversed"])
def test_flow_maps_converge_at_order_eight(name: str) -> None:
    mixture = GaussianMixture.random(seed=3, classes=2, spread=1.0, stds=(0.4, 1.0))
    field = MixtureField(mixture, PATHS[name])
    generator = seeded(9)
    start, end = (times_of(field.path, 50, generator) for _ in range(2))
    state, _, _, label = states_of(field, start, generator)
    exact = FlowMap(field, 48)(state, start, end, label)
    errors = [
        float((FlowMap(field, n)(state, start, end, label) - exact).norm()) for n in (4, 8, 16)
    ]
    assert errors[2] < 1e-8
    assert math.log2(errors[0] / errors[2]) / 2 > 7, errors
    estimate = FlowMap(field, 8).error(state, start, end, label)
    worst = float((FlowMap(field, 8)(state, start, end, label) - exact).abs().max())
    assert 0.5 * worst < estimate < 2 * worst


# --- identities ---


@st.composite
def flows(draw) -> tuple[FlowMap, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A random mixture's flow in two or three dimensions, with states, three times and labels."""
    seed = draw(st.integers(0, 10_000))
    mixture = GaussianMixture.random(
        dimension=draw(st.sampled_from([2, 3])),
        components=draw(st.integers(2, 4)),
        classes=draw(st.integers(1, 2)),
        spread=1.0,
        stds=(0.5, 1.0),
        seed=seed,
    )
    path = draw(st.sampled_from([linear_path(), cosine_path(), linear_path().reversed()]))
    field = MixtureField(mixture, path)
    generator = seeded(seed)
    t, s, r = (times_of(path, 12, generator) for _ in range(3))
    state, _, _, label = states_of(field, t, generator)
    return FlowMap(field, 16), state, t, s, r, label


@settings(max_examples=7, deadline=None, derandomize=True)
@given(flows())
def test_identities_hold_to_1e_minus_8(case) -> None:
    phi, x, t, s, r, label = case
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    v = lambda x, t: phi.velocity(x, t, label)  # noqa: E731
    u_of = lambda x, t, s: phi.average_velocity(x, t, s, label)  # noqa: E731
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)  # noqa: E731
    gap = (s - t)[:, None]

    landed = phi(x, t, s, label)
    close(phi(x, t, t.clone(), label), x)  # boundary
    close(phi(landed, s, r, label), phi(x, t, r, label))  # semigroup
    # phi = x + (s - t) u, so d/ds phi = u + (s - t) du/ds
    u, rate = along(lambda s: u_of(x, t, s), (s,), (one,))
    close(x + gap * u, landed)
    close(u + gap * rate, v(landed, s))  # Lagrangian
    close(u_of(x, t, t.clone()), v(x, t))  # tangent
    # and d/dt phi along (v, 1) = v - u + (s - t) du/dt
    u, rate = along(u_of, (x, t, s), (v(x, t), one, zero))
    close(v(x, t) - u + gap * rate, torch.zeros_like(x))  # Eulerian


def test_wrong_identities_are_clearly_not_zero() -> None:
    field = MixtureField(GaussianMixture.random(seed=3, components=4), linear_path())
    phi, generator = FlowMap(field, 12), seeded(10)
    t, s = (times_of(field.path, 200, generator) for _ in range(2))
    x = states_of(field, t, generator)[0]
    v, one, zero = phi.velocity(x, t), torch.ones_like(t), torch.zeros_like(t)
    size = lambda a: float(a.pow(2).mean().sqrt())  # noqa: E731

    u, du = along(lambda x, t: phi.average_velocity(x, t, s), (x, t), (v, one))
    assert size(u - (v - (t - s)[:, None] * du)) < 1e-5
    assert size(u - (v + (t - s)[:, None] * du)) > 0.1 * size(u)  # the wrong sign
    assert size(u - v) > 0.1 * size(u)  # trajectory flow matching
    landed, carried = along(lambda x: phi(x, t, s), (x,), (v,))
    assert size(carried - phi.velocity(landed, s)) > 0.1 * size(v)  # true of autonomous fields only
    end_slope = along(lambda s: phi(x, t, s), (s,), (one,))[1]
    assert size(end_slope - v) > 0.1 * size(v)  # velocity at the start instead of the end
    _, frozen = along(
        lambda x, t: phi.average_velocity(x, t, s), (x, t), (torch.zeros_like(v), one)
    )
    assert size(u - (v - (t - s)[:, None] * frozen)) > 0.1 * size(u)  # the state does not move
    assert size(along(lambda x: phi(x, t, s), (x,), (v,))[1] + zero[:, None]) > 0.1


@pytest.mark.parametrize(
    ("mixture", "least"),
    [
        (GaussianMixture.random(), 0.05),
        (GaussianMixture.random(spread=1.5, stds=(0.2, 1.0)), 0.15),
        (GaussianMixture.random(dimension=3, spread=1.5, stds=(0.2, 1.0)), 0.05),
    ],
    ids=["default", "strong", "three dimensions"],
)
def test_jacobians_of_flow_maps_do_not_commute(mixture: GaussianMixture, least: float) -> None:
    """Jacobians of two stretches of the flow, swapped, differ by a good share of their size."""
    field = MixtureField(mixture, linear_path())
    phi, generator = FlowMap(field, 8), seeded(0)
    t, m, r = (torch.full((100,), time, dtype=torch.float64) for time in (0.95, 0.6, 0.1))
    x = states_of(field, t, generator)[0]
    w = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    y = phi(x, t, m)

    def early(w: Tensor) -> Tensor:
        return along(lambda x: phi(x, t, m), (x,), (w,))[1]

    def late(w: Tensor) -> Tensor:
        return along(lambda y: phi(y, m, r), (y,), (w,))[1]

    whole = along(lambda x: phi(x, t, r), (x,), (w,))[1]
    chained, swapped = late(early(w)), early(late(w))
    assert (chained - whole).norm() < 1e-3 * whole.norm()
    assert (swapped - whole).norm() > least * whole.norm()


# --- the diagonal ---


def total_rate(field: MixtureField, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    """dv/dt along the flow."""
    v = field.velocity(x, t, label)
    return along(lambda x, t: field.velocity(x, t, label), (x, t), (v, torch.ones_like(t)))[1]


@every_path
def test_on_the_diagonal_the_average_velocity_is_the_velocity_and_its_rate_half(path) -> None:
    field = MixtureField(GaussianMixture.random(seed=4, components=4, classes=2), path)
    phi, generator = FlowMap(field, 3), seeded(11)
    t = times_of(path, 60, generator)
    x, _, _, label = states_of(field, t, generator)
    v, one, zero = field.velocity(x, t, label), torch.ones_like(t), torch.zeros_like(t)
    half = 0.5 * total_rate(field, x, t, label)
    for gap in (0.0, 1e-12, 1e-7):  # no cancellation however near
        u, du = along(
            lambda x, t, r: phi.average_velocity(x, t, r, label), (x, t, t - gap), (v, one, zero)
        )
        scale = float(half.abs().max())
        torch.testing.assert_close(u, v, rtol=1e-9, atol=1e-9 + 10 * scale * gap)
        torch.testing.assert_close(
            du, half, rtol=1e-7, atol=1e-4 * scale * (gap > 0) + 1e-9 * scale
        )
    along_both = along(lambda t: phi.average_velocity(x, t, t, label), (t,), (one,))[1]
    expected = along(lambda t: field.velocity(x, t, label), (t,), (one,))[1]
    torch.testing.assert_close(along_both, expected)


def test_derivatives_are_those_of_finite_differences() -> None:
    field = MixtureField(GaussianMixture.random(seed=12, classes=2), linear_path())
    phi, generator = FlowMap(field, 6), seeded(12)
    t, s = (times_of(field.path, 40, generator) for _ in range(2))
    x, _, _, label = states_of(field, t, generator)
    dx = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    dt, ds = torch.randn(2, len(t), generator=generator, dtype=torch.float64)
    function = lambda x, t, s: phi.average_velocity(x, t, s, label)  # noqa: E731
    h = 1e-4

    def difference(k: int) -> Tensor:
        return function(x + k * h * dx, t + k * h * dt, s + k * h * ds)

    first = (8 * (difference(1) - difference(-1)) - (difference(2) - difference(-2))) / (12 * h)
    torch.testing.assert_close(
        along(function, (x, t, s), (dx, dt, ds))[1], first, rtol=1e-6, atol=1e-7
    )


def test_forward_and_reverse_derivatives_to_second_order() -> None:
    field = MixtureField(GaussianMixture.random(seed=13, classes=2), linear_path(), Guidance(1.7))
    phi = FlowMap(field, 1)
    label = torch.tensor([1, -1])
    x = torch.randn(2, 2, generator=seeded(13), dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.8, 0.5], dtype=torch.float64, requires_grad=True)
    s = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
    function = lambda x, t, s: phi.average_velocity(x, t, s, label)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, t, s), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, t, s), check_fwd_over_rev=True)


# --- one Gaussian ---


def covariance(seed: int, dimension: int) -> Tensor:
    root = torch.randn(dimension, dimension, generator=seeded(seed), dtype=torch.float64)
    return root @ root.T / dimension + 0.2 * torch.eye(dimension, dtype=torch.float64)


@every_path
@pytest.mark.parametrize("commuting", [True, False])
def test_the_integrated_flow_of_a_gaussian_is_its_closed_form(path, commuting: bool) -> None:
    eye = torch.eye(3, dtype=torch.float64)
    noise_covariance = eye if commuting else covariance(2, 3)
    mean = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    field = GaussianField(mean, covariance(1, 3), noise_covariance, path)
    generator = seeded(14)
    t, s = (times_of(path, 50, generator) for _ in range(2))
    x = mean + torch.randn(50, 3, generator=generator, dtype=torch.float64)
    closed = field.flow(x, t, s)
    torch.testing.assert_close(FlowMap(field, 24)(x, t, s), closed, rtol=1e-8, atol=1e-8)
    if not commuting:
        product = covariance(1, 3) @ noise_covariance
        assert (product - product.T).norm() > 0.05 * product.norm()


def test_the_closed_form_satisfies_the_differential_equation() -> None:
    field = GaussianField(torch.ones(2).double(), covariance(3, 2), covariance(4, 2))
    generator = seeded(15)
    t, s = (times_of(field.path, 20, generator) for _ in range(2))
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    landed, slope = along(lambda s: field.flow(x, t, s), (s,), (torch.ones_like(s),))
    torch.testing.assert_close(slope, field.velocity(landed, s))
    torch.testing.assert_close(field.flow(x, t, t), x)


@every_path
def test_a_mixture_of_one_is_a_gaussian(path: AffinePath) -> None:
    mean, spread = torch.tensor([[0.4, -1.0]]).double(), covariance(5, 2)
    mixture = GaussianMixture.from_covariances(torch.ones(1), mean, spread[None])
    torch.testing.assert_close(mixture.covariances[0], spread)
    field = MixtureField(mixture, path)
    gaussian = GaussianField(mean[0], spread, torch.eye(2, dtype=torch.float64), path)
    generator = seeded(16)
    t, s = (times_of(path, 30, generator) for _ in range(2))
    x = states_of(field, t, generator)[0]
    torch.testing.assert_close(field.velocity(x, t), gaussian.velocity(x, t))
    torch.testing.assert_close(
        FlowMap(field, 24)(x, t, s), gaussian.flow(x, t, s), rtol=1e-8, atol=1e-8
    )


# --- guided fields, cuts and clocks ---


def test_guidance_extrapolates_between_labels() -> None:
    mixture = GaussianMixture.random(seed=18, components=4, classes=2)
    plain = MixtureField(mixture, linear_path())
    guided = MixtureField(mixture, linear_path(), Guidance(2.5, lo=0.2, hi=0.7))
    generator = seeded(18)
    t = times_of(plain.path, 60, generator)
    x, _, _, label = states_of(plain, t, generator)
    label[::5] = -1
    scale = torch.where((t >= 0.2) & (t <= 0.7), 2.5, 1.0)[:, None]
    free = plain.velocity(x, t)
    expected = free + scale * (plain.velocity(x, t, label) - free)
    torch.testing.assert_close(guided.velocity(x, t, label), expected)
    torch.testing.assert_close(guided.velocity(x, t, label)[::5], free[::5])
    own = torch.linspace(1, 3, len(t), dtype=torch.float64)
    expected = free + own[:, None] * (plain.velocity(x, t, label) - free)
    torch.testing.assert_close(plain.velocity(x, t, label, own), expected)


def test_a_flow_across_cuts_is_the_composition_of_smooth_flows() -> None:
    mixture = GaussianMixture.random(seed=19, components=4, classes=2, stds=(0.4, 1.0))
    inside = FlowMap(MixtureField(mixture, linear_path(), Guidance(2.0)), 12)
    outside = FlowMap(MixtureField(mixture, linear_path()), 12)
    phi = FlowMap(MixtureField(mixture, linear_path(), Guidance(2.0, lo=0.3, hi=0.6)), 12)
    generator = seeded(19)
    rows = 30
    t, s, lo, hi = (torch.full((rows,), at, dtype=torch.float64) for at in (0.9, 0.1, 0.3, 0.6))
    x, _, _, label = states_of(phi.field, t, generator)
    down = outside(inside(outside(x, t, hi, label), hi, lo, label), lo, s, label)
    torch.testing.assert_close(phi(x, t, s, label), down, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(phi(down, s, t, label), x, rtol=1e-6, atol=1e-6)
    assert (down - outside(x, t, s, label)).abs().max() > 0.05

    # any two times, mixed directions, both sides of the cuts: identities of the guided field
    t, s = (times_of(phi.field.path, rows, generator) for _ in range(2))
    x = states_of(phi.field, t, generator)[0]
    v, one = phi.velocity(x, t, label), torch.ones_like(t)
    u, du = along(lambda x, t: phi.average_velocity(x, t, s, label), (x, t), (v, one))
    torch.testing.assert_close(u, v - (t - s)[:, None] * du, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(phi(x, t, s, label), x + (s - t)[:, None] * u)
    torch.testing.assert_close(phi.average_velocity(x, t, t.clone(), label), v)
    half = along(
        lambda x, t, r: phi.average_velocity(x, t, r, label), (x, t, t.clone()), (v, one, 0 * t)
    )[1]
    torch.testing.assert_close(half, 0.5 * total_rate(phi.field, x, t, label), rtol=1e-6, atol=1e-6)


def test_a_clock_changes_the_steps_and_not_the_flow() -> None:
    from dataclasses import replace

    path = variance_exploding_path(noise_time=20.0)
    field = MixtureField(GaussianMixture.random(seed=20), path)
    unclocked = MixtureField(field.mixture, replace(path, clock=None))
    generator = seeded(20)
    t = torch.exp(-2 + 4 * torch.rand(40, generator=generator, dtype=torch.float64))
    s = t * torch.exp(torch.randn(40, generator=generator, dtype=torch.float64) * 0.5)
    s[:10] = t[:10] * (1 - 1e-6)
    x = states_of(field, t, generator)[0]
    function = lambda field, steps: FlowMap(field, steps).average_velocity  # noqa: E731
    v, one, zero = field.velocity(x, t), torch.ones_like(t), torch.zeros_like(t)
    with_clock = along(function(field, 16), (x, t, s), (v, one, zero))
    without = along(function(unclocked, 48), (x, t, s), (v, one, zero))
    for a, b in zip(with_clock, without, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_flows_carry_noise_to_data() -> None:
    """The flow carries the noise to the mixture: means, covariance, quantiles along five lines."""
    for path in (linear_path(), linear_path().reversed(), cosine_path()):
        field = MixtureField(GaussianMixture.random(seed=21, components=3, classes=3), path)
        noise = torch.randn(20_000, 2, generator=seeded(21), dtype=torch.float64)
        start = torch.full((len(noise),), path.noise_time, dtype=torch.float64)
        end = torch.full_like(start, path.data_time)
        made = FlowMap(field, 6)(noise, start, end)
        true, _ = field.mixture.sample(200_000, seeded(22))
        assert (made.mean(0) - true.mean(0)).abs().max() < 0.05
        assert (torch.cov(made.T) - torch.cov(true.T)).abs().max() < 0.07
        angles = torch.linspace(0, math.pi, 6, dtype=torch.float64)[:-1]
        for direction in torch.stack([angles.cos(), angles.sin()], 1):
            levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
            quantiles = torch.quantile(true @ direction, levels)
            reached = ((made @ direction)[:, None] < quantiles).double().mean(0)
            assert (reached - levels).abs().max() < 0.02
