"""The exact flow of the bundled mixture along an objective's path, for the exact-flow metric."""

from __future__ import annotations

import torch
from torch import Tensor

from flowdsl.exact.field import MixtureField
from flowdsl.exact.flow import FlowMap
from flowdsl.exact.mixture import GaussianMixture
from flowdsl.exact.paths import AffinePath, Schedule
from flowdsl.runtime.data import mixture
from flowdsl.runtime.dataset import DataCard
from flowdsl.runtime.metrics import ExactFlow
from flowdsl.runtime.protocols import CompiledLoss, HasPath

#: Steps of order eight from noise to data; twice as many change the result by about 1e-6.
STEPS = 32


def exact_flow(loss: CompiledLoss, card: DataCard) -> ExactFlow | None:
    """The exact flow map, or None where it is not known: other data, or no path told."""
    if card.name != "mixture" or not isinstance(loss, HasPath):
        return None
    law = GaussianMixture.from_covariances(mixture.WEIGHTS, mixture.MEANS, mixture.COVARIANCES)
    flow = FlowMap(MixtureField(law, path_of(loss, loss)), steps=STEPS)

    def carry(states: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return flow(states.flatten(1), start, end).reshape(states.shape)

    return carry


def path_of(loss: CompiledLoss, path: HasPath) -> AffinePath:
    """The schedules of a loss's path, read off by giving it unit data or unit noise.

    A path is affine in both: z(t) = alpha(t) data + sigma(t) noise.
    """

    def schedule(data: float, noise: float) -> tuple[Schedule, Schedule]:
        def value(time: Tensor) -> Tensor:
            flat = time.flatten().contiguous()
            one = torch.ones(len(flat), 1, dtype=time.dtype)
            return path.path(data * one, noise * one, flat).view_as(time)

        def rate(time: Tensor) -> Tensor:
            slope: Tensor = torch.func.jvp(value, (time,), (torch.ones_like(time),))[1]
            return slope

        return value, rate

    alpha, alpha_dot = schedule(1.0, 0.0)
    sigma, sigma_dot = schedule(0.0, 1.0)
    signature = loss.signature
    return AffinePath(
        signature.name,
        alpha,
        alpha_dot,
        sigma,
        sigma_dot,
        data_time=signature.data_time,
        noise_time=signature.noise_time,
    )
