"""Affine paths between data and noise: schedules, their derivatives, and a suitable clock.

`z(t) = alpha(t) data + sigma(t) noise` with standard normal noise. Either end may be the data's;
`reversed` swaps them. Schedules are functions of a time tensor, so everything here can be
differentiated in the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Schedule = Callable[[Tensor], Tensor]


def over_rows(values: Tensor, like: Tensor) -> Tensor:
    """A vector with one entry per row, shaped so that it multiplies the rows of `like`."""
    return values.reshape(values.shape[0], *([1] * (like.dim() - 1)))


@dataclass(frozen=True, eq=False)
class Clock:
    """The time in which a flow is integrated, for paths whose speed varies over decades.

    Integration steps are equal in `forward(t)`; `backward` is its inverse and `rate(t)` is dt / d
    forward(t).
    """

    forward: Schedule
    backward: Schedule
    rate: Schedule


def asinh_clock(unit: float) -> Clock:
    """Linear near zero and logarithmic beyond `unit`: for variance-exploding paths."""
    return Clock(
        forward=lambda t: torch.asinh(t / unit),
        backward=lambda tau: unit * torch.sinh(tau),
        rate=lambda t: torch.sqrt(t * t + unit * unit),
    )


@dataclass(frozen=True, eq=False)
class AffinePath:
    """`z(t) = alpha(t) data + sigma(t) noise`, with derivatives `alpha_dot` and `sigma_dot`."""

    name: str
    alpha: Schedule
    alpha_dot: Schedule
    sigma: Schedule
    sigma_dot: Schedule
    data_time: float = 0.0
    noise_time: float = 1.0
    clock: Clock | None = None

    def state(self, data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The point of the path; `data` and `noise` of shape (rows, ...), `time` (rows,)."""
        return over_rows(self.alpha(time), data) * data + over_rows(self.sigma(time), data) * noise

    def velocity(self, data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The conditional velocity dz/dt at fixed ends."""
        alpha_dot, sigma_dot = self.alpha_dot(time), self.sigma_dot(time)
        return over_rows(alpha_dot, data) * data + over_rows(sigma_dot, data) * noise

    def scaled(self, std: float) -> AffinePath:
        """The same path with noise of standard deviation `std` (TrigFlow uses the data's)."""
        sigma, sigma_dot = self.sigma, self.sigma_dot
        return replace(
            self,
            name=f"{self.name}, noise times {std:g}",
            sigma=lambda t: std * sigma(t),
            sigma_dot=lambda t: std * sigma_dot(t),
        )

    def reversed(self) -> AffinePath:
        """The path with its ends swapped: `t` becomes `data_time + noise_time - t`.

        A clock is dropped: it was made for the other direction.
        """
        total = self.data_time + self.noise_time
        alpha, alpha_dot, sigma, sigma_dot = self.alpha, self.alpha_dot, self.sigma, self.sigma_dot
        return AffinePath(
            name=f"{self.name}, reversed",
            alpha=lambda t: alpha(total - t),
            alpha_dot=lambda t: -alpha_dot(total - t),
            sigma=lambda t: sigma(total - t),
            sigma_dot=lambda t: -sigma_dot(total - t),
            data_time=self.noise_time,
            noise_time=self.data_time,
        )


def linear_path() -> AffinePath:
    """`z(t) = (1 - t) data + t noise` for t in [0, 1]: rectified flow, MeanFlow, TVM."""
    return AffinePath(
        name="linear",
        alpha=lambda t: 1 - t,
        alpha_dot=lambda t: -torch.ones_like(t),
        sigma=lambda t: t,
        sigma_dot=torch.ones_like,
    )


def trigonometric_path() -> AffinePath:
    """`z(t) = cos(t) data + sin(t) noise` for t in [0, pi/2] (TrigFlow, Lu & Song 2024)."""
    return AffinePath(
        name="trigonometric",
        alpha=torch.cos,
        alpha_dot=lambda t: -torch.sin(t),
        sigma=torch.sin,
        sigma_dot=torch.cos,
        noise_time=math.pi / 2,
    )


def cosine_path() -> AffinePath:
    """`z(t) = cos(pi t / 2) data + sin(pi t / 2) noise` for t in [0, 1] (Nichol 2021)."""
    quarter = math.pi / 2
    return AffinePath(
        name="cosine",
        alpha=lambda t: torch.cos(quarter * t),
        alpha_dot=lambda t: -quarter * torch.sin(quarter * t),
        sigma=lambda t: torch.sin(quarter * t),
        sigma_dot=lambda t: quarter * torch.cos(quarter * t),
    )


def variance_preserving_path(beta_min: float = 0.1, beta_max: float = 20.0) -> AffinePath:
    """The VP diffusion with `beta(t) = beta_min + t (beta_max - beta_min)` (Song 2021, eq. 32).

    `alpha = exp(-t^2 (beta_max - beta_min) / 4 - t beta_min / 2)` and `sigma = sqrt(1 - alpha^2)`,
    for t in (0, 1]: `sigma_dot` is infinite at t = 0, so stay above it (the authors start at 1e-5).
    """
    slope = beta_max - beta_min

    def exponent(t: Tensor) -> Tensor:
        return -0.25 * slope * t * t - 0.5 * beta_min * t

    def alpha(t: Tensor) -> Tensor:
        return torch.exp(exponent(t))

    def alpha_dot(t: Tensor) -> Tensor:
        return -0.5 * (beta_min + slope * t) * alpha(t)

    def sigma(t: Tensor) -> Tensor:
        # expm1 keeps small sigma accurate, where 1 - alpha^2 would cancel
        return torch.sqrt(-torch.expm1(2 * exponent(t)))

    def sigma_dot(t: Tensor) -> Tensor:
        return -alpha(t) * alpha_dot(t) / sigma(t)

    return AffinePath("variance preserving", alpha, alpha_dot, sigma, sigma_dot)


def variance_exploding_path(noise_time: float = 80.0, data_std: float = 0.5) -> AffinePath:
    """`z(t) = data + t noise` for t up to `noise_time` (Karras et al. 2022): consistency models.

    `data_std` sets where the integration's clock turns from linear to logarithmic.
    """
    return AffinePath(
        name="variance exploding",
        alpha=torch.ones_like,
        alpha_dot=torch.zeros_like,
        sigma=lambda t: t,
        sigma_dot=torch.ones_like,
        noise_time=noise_time,
        clock=asinh_clock(data_std),
    )
