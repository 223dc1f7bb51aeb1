"""Inner flows given an outer state: Transition Matching Distillation, stage 1 (arXiv:2601.09881),
and Meta Flow Maps (arXiv:2601.14430), both by MeanFlow's identity on the inner flow.

The outer state is x = (1 - t) data + t noise, the inner one y = (1 - s) end + s fresh, whose
conditional velocity is fresh - end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, adaptive, given_label, mean_squares, pad, sum_squares

Networks = dict[str, nn.Module]
Draws = dict[str, Tensor]


def head_on_features(
    networks: Networks, data: Tensor, draws: Draws, label: Tensor | None, progress: float = 0.0
) -> Result:
    """Networks `backbone(x, t | label)`, `head(y, s, r | features)`, which predicts the outer
    velocity: the inner average velocity is (y - head) / s."""
    del progress
    x, t = _outer(data, draws), draws["t"]
    features = networks["backbone"](x, t, label=given_label(label, data))

    def average(y: Tensor, s: Tensor, r: Tensor) -> Tensor:
        return (y - networks["head"](y, s, r, features=features)) / pad(s, y)

    residual = _residual(average, draws["noise"] - data, draws)
    value = adaptive(mean_squares(residual), 1, 1).mean()
    return value, {"target": value.detach()}


def posterior(
    networks: Networks, data: Tensor, draws: Draws, label: Tensor | None, progress: float = 0.0
) -> Result:
    """Network `v(y, s, r, x, t)`, the average velocity towards the data."""
    del label, progress
    x, t = _outer(data, draws), draws["t"]
    residual = _residual(lambda y, s, r: networks["v"](y, s, r, x, t), data, draws)
    value = adaptive(sum_squares(residual), 1, 1e-2).mean()
    return value, {"target": value.detach()}


def _outer(data: Tensor, draws: Draws) -> Tensor:
    t = pad(draws["t"], data)
    return (1 - t) * data + t * draws["noise"]


def _residual(average: Callable[..., Tensor], end: Tensor, draws: Draws) -> Tensor:
    """Average velocity minus its target: velocity - (s - r) times its derivative in s."""
    s, fresh = draws["s"], draws["noise'"]
    r = torch.where(draws["diagonal"], s, draws["r"])
    y, velocity = (1 - pad(s, end)) * end + pad(s, end) * fresh, fresh - end
    moving = (velocity, torch.ones_like(s), torch.zeros_like(r))
    _, slope = torch.func.jvp(average, (y, s, r), moving)
    return average(y, s, r) - (velocity - pad(s - r, end) * slope).detach()
