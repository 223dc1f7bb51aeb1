"""Paths, mixtures, marginal velocities and posteriors, against Monte Carlo and second closed forms.

Everything else is judged by these, so nothing here is compared with itself.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowdsl.exact import (
    AffinePath,
    GaussianMixture,
    MixtureField,
    cosine_path,
    linear_path,
)
from tests.exact_support import along, every_path, seeded, states_of, times_of

torch.set_num_threads(1)

# --- paths ---


@every_path
def test_path_derivatives_are_those_of_the_schedules(path: AffinePath) -> None:
    time = times_of(path, 50, seeded(0))
    one = torch.ones_like(time)
    for value, derivative in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        slope = along(value, (time,), (one,))[1]
        torch.testing.assert_close(slope, derivative(time), rtol=1e-10, atol=1e-12)


@every_path
def test_path_ends_are_data_and_noise(path: AffinePath) -> None:
    data, noise = torch.randn(2, 4, 3, generator=seeded(1), dtype=torch.float64)
    at = lambda time: path.state(data, noise, torch.full((4,), time, dtype=torch.float64))  # noqa: E731
    torch.testing.assert_close(at(path.data_time), data)
    if "ving" not in path.name and "exploding" not in path.name:
        std = 0.5 if "times" in path.name else 1.0
        torch.testing.assert_close(at(path.noise_time), std * noise)


# --- the mixture ---


def test_samples_have_the_moments_of_the_mixture() -> None:
    mixture = GaussianMixture.random(seed=17, dimension=3, components=4, classes=3)
    data, label = mixture.sample(200_000, seeded(17))
    mean = mixture.weights @ mixture.means
    offset = mixture.means - mean
    second = mixture.covariances + offset[:, :, None] * offset[:, None, :]
    expected = torch.einsum("k,kij->ij", mixture.weights, second)
    assert ((data.mean(0) - mean) / (data.std(0) / math.sqrt(len(data)))).abs().max() < 4.5
    assert (torch.cov(data.T) - expected).abs().max() < 0.02
    share = float((label == 0).double().mean())
    assert abs(share - float(mixture.weights[mixture.classes == 0].sum())) < 0.005


def test_a_mixture_refuses_a_covariance_that_is_none() -> None:
    with pytest.raises(ValueError, match="positive definite"):
        GaussianMixture.from_covariances(torch.ones(1), torch.zeros(1, 2), -torch.eye(2)[None])


# --- the marginal velocity ---


@every_path
def test_velocity_is_the_conditional_mean(path: AffinePath) -> None:
    """E[(velocity - v(z, t)) h(z, t, label)] = 0 for every h: within sampling error, for thirty of
    them.
    """
    field = MixtureField(GaussianMixture.random(seed=1, components=4, classes=2), path)
    generator = seeded(2)
    time = times_of(path, 100_000, generator)
    state, data, noise, label = states_of(field, time, generator)
    for shown in (label, None):
        error = path.velocity(data, noise, time) - field.velocity(state, time, shown)
        inputs = torch.cat([state, time[:, None], label[:, None].double()], 1)
        if shown is None:
            inputs = inputs[:, :-1]
        weights = torch.randn(inputs.shape[1], 15, generator=generator, dtype=torch.float64)
        tests = torch.tanh(inputs @ weights + torch.randn(15, generator=generator).double())
        products = (error[:, :, None] * tests[:, None, :]).flatten(1)
        z = products.mean(0) / (products.std(0) / math.sqrt(len(products)))
        assert z.abs().max() < 4.5
        assert (error**2).mean() > 0.05  # there is something to average out


def test_a_wrong_velocity_is_not_the_conditional_mean() -> None:
    """The test above has teeth: the velocity of the wrong class fails it by far."""
    field = MixtureField(GaussianMixture.random(seed=1, components=4, classes=2), linear_path())
    generator = seeded(2)
    time = times_of(field.path, 100_000, generator)
    state, data, noise, label = states_of(field, time, generator)
    error = field.path.velocity(data, noise, time) - field.velocity(state, time, 1 - label)
    error = error * (2 * label[:, None] - 1)
    z = error.mean(0) / (error.std(0) / math.sqrt(len(error)))
    assert z.abs().max() > 30


@every_path
def test_velocity_agrees_with_the_score(path: AffinePath) -> None:
    """`v = (alpha'/alpha) x + sigma (sigma alpha'/alpha - sigma') score`: two closed forms, one
    answer.
    """
    field = MixtureField(GaussianMixture.random(seed=2, dimension=3), path)
    generator = seeded(3)
    time = times_of(path, 40, generator)
    state = states_of(field, time, generator)[0].requires_grad_()
    score = torch.autograd.grad(field.log_density(state, time).sum(), state)[0]
    alpha, sigma = path.alpha(time)[:, None], path.sigma(time)[:, None]
    rate = path.alpha_dot(time)[:, None] / alpha
    expected = rate * state + sigma * (sigma * rate - path.sigma_dot(time)[:, None]) * score
    torch.testing.assert_close(field.velocity(state, time), expected, rtol=1e-9, atol=1e-9)


def test_density_integrates_to_one() -> None:
    field = MixtureField(GaussianMixture.random(seed=5, classes=3), linear_path())
    axis = torch.linspace(-9, 9, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    time = torch.full((len(grid),), 0.3, dtype=torch.float64)
    for label in (-1, 0, 2):
        shown = torch.full((len(grid),), label)
        mass = field.log_density(grid, time, shown).exp().sum() * (18 / 400) ** 2
        assert abs(float(mass) - 1) < 1e-6


def test_the_null_label_is_the_whole_mixture() -> None:
    field = MixtureField(GaussianMixture.random(seed=6, components=4, classes=2), linear_path())
    generator = seeded(4)
    time = times_of(field.path, 30, generator)
    state, _, _, label = states_of(field, time, generator)
    null = torch.full_like(label, -1)
    torch.testing.assert_close(field.velocity(state, time, null), field.velocity(state, time))
    assert (field.velocity(state, time, label) - field.velocity(state, time)).abs().max() > 0.1


# --- posteriors ---


@every_path
@pytest.mark.parametrize("copies", [1, 8])
def test_posterior_samples_give_back_their_state(path: AffinePath, copies: int) -> None:
    field = MixtureField(GaussianMixture.random(seed=7, dimension=3, classes=2), path)
    generator = seeded(5)
    time = times_of(path, 25, generator)
    state, _, _, label = states_of(field, time, generator)
    data, noise = field.posterior_sample(state, time, label, generator, copies=copies)
    again = path.state(data, noise, time.repeat_interleave(copies))
    torch.testing.assert_close(again, state.repeat_interleave(copies, 0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("copies", [1, 2, 6, 7])
def test_posterior_samples_have_the_moments_of_the_posterior(copies: int) -> None:
    field = MixtureField(GaussianMixture.random(seed=8, components=4, classes=2), linear_path())
    repeats = 40_000
    state = torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(repeats, -1)
    time = torch.full((repeats,), 0.6, dtype=torch.float64)
    for label in (None, torch.ones(repeats, dtype=torch.long)):
        pair = field.posterior_sample(state, time, label, seeded(6), copies=copies)
        velocity = (pair[1] - pair[0]).reshape(repeats, copies, 2)
        mean, covariance = field.posterior_velocity(
            state[:1], time[:1], None if label is None else label[:1]
        )
        torch.testing.assert_close(
            mean, field.velocity(state[:1], time[:1], None if label is None else label[:1])
        )
        averages = velocity.mean(1)
        error = averages.std(0) / math.sqrt(repeats)
        assert ((averages.mean(0) - mean[0]) / error).abs().max() < 4.5
        offset = velocity - mean[0]
        second = (offset[..., :, None] * offset[..., None, :]).mean(1)
        error = second.std(0) / math.sqrt(repeats)
        assert ((second.mean(0) - covariance[0]) / error).abs().max() < 4.5


def test_resampled_pairs_have_the_law_of_the_originals() -> None:
    """(data, noise) drawn again given z(t) and label: the same joint moments, up to order three."""
    field = MixtureField(GaussianMixture.random(seed=9, components=4, classes=2), cosine_path())
    generator = seeded(7)
    time = times_of(field.path, 100_000, generator)
    state, data, noise, label = states_of(field, time, generator)
    data2, noise2 = field.posterior_sample(state, time, label, generator)
    assert (data2 - data).abs().mean() > 0.1

    def moments(data: Tensor, noise: Tensor) -> Tensor:
        x, n = data, noise
        parts = [x, n, x * n, x**2, n**2, x[:, :1] * x[:, 1:], x * n.flip(1), x**3, x**2 * n]
        return torch.cat(parts, 1) * (1 + label[:, None])

    difference = moments(data, noise) - moments(data2, noise2)
    z = difference.mean(0) / (difference.std(0) / math.sqrt(len(difference)))
    assert z.abs().max() < 4.5


def test_copies_reduce_the_variance_of_the_mean_velocity() -> None:
    field = MixtureField(GaussianMixture.random(seed=8, components=4), linear_path())
    state = torch.tensor([[0.3, -0.2]], dtype=torch.float64).expand(4000, -1)
    time = torch.full((4000,), 0.6, dtype=torch.float64)

    def spread(copies: int) -> float:
        data, noise = field.posterior_sample(state, time, None, seeded(8), copies=copies)
        return float((noise - data).reshape(4000, copies, 2).mean(1).var(0).sum())

    assert (
        spread(8) < 0.5 * spread(1) / 8
    )  # better than eight independent copies by a factor of two
