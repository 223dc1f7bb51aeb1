"""Exponential moving averages of the learned weights, for sampling and evaluation.

They take no part in the objective; an average that the objective itself uses belongs to the bound
loss.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def ramped_decay(decay: float, step: int) -> float:
    """`min(decay, (1 + step) / (10 + step))`: early averages forget the random start quickly.

    A function of the step alone, so that it needs no state (the rule of score-based and
    rectified-flow trainers).
    """
    return min(decay, (1 + step) / (10 + step))


class EvaluationAverage:
    """A copy of the learned networks that follows them with one decay. `networks` samples as it
    stands.
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.networks = nn.ModuleDict(
            {
                name: copy.deepcopy(net).requires_grad_(False).eval()
                for name, net in networks.items()
            }
        )

    @property
    def name(self) -> str:
        return average_name(self.decay)

    @torch.no_grad()
    def update(self, networks: Mapping[str, nn.Module], step: int) -> None:
        """One step: average <- decay * average + (1 - decay) * weights. Buffers are copied."""
        decay = ramped_decay(self.decay, step)
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for name, average in self.networks.items():
            averages += average.parameters()
            weights += networks[name].parameters()
            for kept, buffer in zip(average.buffers(), networks[name].buffers(), strict=True):
                kept.copy_(buffer)
        if averages:
            torch._foreach_lerp_(averages, weights, 1.0 - decay)


def average_name(decay: float) -> str:
    """The name under which a decay's weights are saved and asked for: `ema-0.999`."""
    return f"ema-{decay:g}"
