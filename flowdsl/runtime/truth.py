"""The exact flow of the bundled mixture along an objective's path, for the exact-flow metric.

A flow depends on the ratio of noise to data alone: along z(t) = a(t) data + b(t) noise it is that
along cos(theta) data + sin(theta) noise, theta = atan2(b, a), times sqrt(a^2 + b^2). So every path
is carried on the trigonometric one, which is smooth at both ends, however fast the path itself
moves there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowdsl.exact.field import MixtureField
from flowdsl.exact.flow import FlowMap
from flowdsl.exact.mixture import GaussianMixture
from flowdsl.exact.paths import over_rows, trigonometric_path
from flowdsl.runtime.data import mixture
from flowdsl.runtime.dataset import DataCard
from flowdsl.runtime.metrics import ExactFlow
from flowdsl.runtime.protocols import CompiledLoss, HasPath

#: Steps of order eight from noise to data; twice as many change the result by some 1e-6.
STEPS = 64


def exact_flow(loss: CompiledLoss, card: DataCard) -> ExactFlow | None:
    """The exact flow map, or None where it is not known: other data, or no path told."""
    if card.name != "mixture" or not isinstance(loss, HasPath):
        return None
    law = GaussianMixture.from_covariances(mixture.WEIGHTS, mixture.MEANS, mixture.COVARIANCES)
    flow = FlowMap(MixtureField(law, trigonometric_path()), steps=STEPS)
    told: HasPath = loss

    def carry(states: Tensor, start: Tensor, end: Tensor) -> Tensor:
        rows = states.flatten(1)
        (angle, scale), (last, new_scale) = (angle_and_scale(told, t) for t in (start, end))
        unit = flow(rows / over_rows(scale, rows), angle, last)
        return (unit * over_rows(new_scale, rows)).reshape(states.shape)

    return carry


def angle_and_scale(path: HasPath, time: Tensor) -> tuple[Tensor, Tensor]:
    """`atan2(b, a)` and `sqrt(a^2 + b^2)` of a path a(t) data + b(t) noise at times (rows,).

    The factors are read off the path by giving it unit data or unit noise.
    """
    one = torch.ones(len(time), 1, dtype=time.dtype)
    data, noise = (path.path(d * one, n * one, time)[:, 0] for d, n in ((1.0, 0.0), (0.0, 1.0)))
    return torch.atan2(noise, data), torch.hypot(data, noise)
