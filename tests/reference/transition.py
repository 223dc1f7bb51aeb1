"""Inner flows given an outer state: Transition Matching Distillation (arXiv:2601.09881), and Meta
Flow Maps (arXiv:2601.14430), by MeanFlow's identity on the inner flow; stage 2 of the former moves
samples of the inner flow by two velocities and a discriminator.

The outer state is x = (1 - t) data + t noise, the inner one y = (1 - s) end + s fresh, whose
conditional velocity is fresh - end.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from tests.reference.plain import (
    Result,
    adaptive,
    given_label,
    mean_squares,
    null_of,
    pad,
    sum_squares,
)

Networks = dict[str, nn.Module]
Draws = dict[str, Tensor]


def head_on_features(
    networks: Networks,
    data: Tensor,
    draws: Draws,
    label: Tensor | None,
    progress: float = 0.0,
    *,
    scale: float = 3.0,
) -> Result:
    """Networks `backbone(x, t | label)`, `head(y, s, r | features)`, which predicts the outer
    velocity: the inner average velocity is (y - head) / s. Labels drop on `dropped` rows; on the
    others the velocity is guided."""
    del progress
    x, t, dropped = _outer(data, draws), draws["t"], draws["dropped"]
    label = given_label(label, data)
    shown = torch.where(dropped, null_of(label), label)
    features = networks["backbone"](x, t, label=shown)

    def average(y: Tensor, s: Tensor, r: Tensor, features: Tensor = features) -> Tensor:
        return (y - networks["head"](y, s, r, features=features)) / pad(s, y)

    end, s = draws["noise"] - data, draws["s"]
    velocity = draws["noise'"] - end
    y = (1 - pad(s, end)) * end + pad(s, end) * draws["noise'"]
    with torch.no_grad():
        plain = average(y, s, s, networks["backbone"](x, t, label=null_of(label)))
    guided = torch.where(pad(dropped, y), velocity, plain + scale * (velocity - plain))
    residual = _residual(average, end, draws, guided)
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


def sharpened(
    networks: Networks,
    data: Tensor,
    draws: Draws,
    label: Tensor | None,
    progress: float = 0.0,
    *,
    scale: float = 5.0,
    drawn: bool = False,
) -> Result:
    """Networks `backbone`, `head`, `teacher` (frozen: velocity, and features inside), `fake`,
    `judge`; `drawn` makes the samples of the outer state, as the sampler does."""
    del progress
    backbone, head, teacher, fake, judge = (
        networks[n] for n in ("backbone", "head", "teacher", "fake", "judge")
    )
    label, noise, fresh = given_label(label, data), draws["noise"], draws["noise''"]
    z, t, q = _outer(data, draws), draws["t"], draws["q"]
    features = backbone(z, t, label=label)
    y, grid = draws["noise'"], (1.0, 0.5, 0.0)
    for s, r in pairwise(grid):
        times = (torch.full_like(t, s), torch.full_like(t, r))
        y = y + (r - s) * (y - head(y, *times, features=features)) / s
    generated = z - pad(t, z) * y if drawn else noise - y

    def renoised(clean: Tensor) -> Tensor:
        return (1 - pad(q, clean)) * clean + pad(q, clean) * fresh

    x = renoised(generated)
    with torch.no_grad():
        null = teacher(x, q, label=null_of(label))[0]
        guided = null + scale * (teacher(x, q, label=label)[0] - null)
        excess = guided - fake(x, q, label=label)
        goal = generated - excess / pad(excess.abs().flatten(1).mean(dim=1), excess)

    def opinion(state: Tensor) -> Tensor:
        return judge(teacher(state, q, label=label)[1])

    softplus = torch.nn.functional.softplus
    seen = renoised(generated.detach())
    terms = {
        "vsd": mean_squares(generated - goal).mean() / 2,
        "adversarial": 0.03 * softplus(-opinion(x)).mean(),
        "critic": mean_squares(fake(seen, q, label=label) - (fresh - generated).detach()).mean(),
        "critic_2": (softplus(-opinion(renoised(data))) + softplus(opinion(seen))).mean(),
    }
    return sum(terms.values(), torch.zeros(())), {k: v.detach() for k, v in terms.items()}


def _outer(data: Tensor, draws: Draws) -> Tensor:
    t = pad(draws["t"], data)
    return (1 - t) * data + t * draws["noise"]


def _residual(
    average: Callable[..., Tensor], end: Tensor, draws: Draws, guided: Tensor | None = None
) -> Tensor:
    """Average velocity minus its target: velocity (or what it is guided to) - (s - r) times its
    derivative in s."""
    s, fresh = draws["s"], draws["noise'"]
    r = torch.where(draws["diagonal"], s, draws["r"])
    y, velocity = (1 - pad(s, end)) * end + pad(s, end) * fresh, fresh - end
    velocity = velocity if guided is None else guided
    moving = (velocity, torch.ones_like(s), torch.zeros_like(r))
    _, slope = torch.func.jvp(average, (y, s, r), moving)
    return average(y, s, r) - (velocity - pad(s - r, end) * slope).detach()
