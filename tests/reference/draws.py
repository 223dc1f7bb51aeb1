"""The random numbers of each reference, by the names and laws of its spec, from a generator.

Each function is `name(data, generator)` and returns float64 times (batch,), boolean masks (batch,)
and noise. `share` draws its rows anywhere in the batch; the number of rows is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

Draws = dict[str, Tensor]


def normal_like(data: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(data.shape, generator=generator, dtype=data.dtype)


def logit_normal(rows: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """`sigmoid(mean + std n)`, n standard normal."""
    return torch.sigmoid(mean + std * torch.randn(rows, generator=generator, dtype=torch.float64))


def share(among: Tensor, part: float, generator: torch.Generator) -> Tensor:
    """A mask of exactly `floor(part * count)` of the `count` rows of the mask `among`."""
    candidates = among.nonzero()[:, 0]
    order = torch.randperm(len(candidates), generator=generator)
    chosen = candidates[order[: int(part * len(candidates) + 1e-9)]]
    mask = torch.zeros_like(among)
    mask[chosen] = True
    return mask


def bernoulli(rows: int, part: float, generator: torch.Generator) -> Tensor:
    return torch.rand(rows, generator=generator) < part


def flow_matching(data: Tensor, generator: torch.Generator) -> Draws:
    rows = len(data)
    return {
        "noise": normal_like(data, generator),
        "dropped": bernoulli(rows, 0.1, generator),
        "t": torch.rand(rows, generator=generator, dtype=torch.float64),
    }


def meanflow(data: Tensor, generator: torch.Generator) -> Draws:
    return sorted_pair(data, generator, 0.75)


def sorted_pair(data: Tensor, generator: torch.Generator, part: float) -> Draws:
    """Two logit-normal times in order; `part` of the rows on the diagonal, labels dropped there."""
    rows = len(data)
    noise = normal_like(data, generator)
    diagonal = share(torch.ones(rows, dtype=torch.bool), part, generator)
    dropped = share(diagonal, 0.1 / 0.75, generator)
    pair = [logit_normal(rows, -0.4, 1.0, generator) for _ in range(2)]
    t, r = torch.maximum(*pair), torch.minimum(*pair)
    return {"noise": noise, "diagonal": diagonal, "dropped": dropped, "t": t, "r": r}


def alphaflow(data: Tensor, generator: torch.Generator) -> Draws:
    draws = sorted_pair(data, generator, 0.25)
    rows = len(data)
    # a law of their own for rows on the diagonal: one draw, not the larger of two
    draws["t"] = torch.where(
        draws["diagonal"], logit_normal(rows, -0.4, 1.0, generator), draws["t"]
    )
    draws["dropped"] = bernoulli(rows, 0.1, generator)
    return draws


#: Trajectory flow matching extends AlphaFlow and draws what it draws.
trajectory_flow_matching = alphaflow


def tvm(data: Tensor, generator: torch.Generator) -> Draws:
    rows = len(data)
    gap = logit_normal(rows, -0.8, 1.0, generator)
    # truncated to s < 1 - gap by inverting the distribution function on a shorter interval
    normal = torch.distributions.Normal(-0.4, 1.0)
    below = normal.cdf(torch.logit(1 - gap))
    level = torch.rand(rows, generator=generator, dtype=torch.float64) * below
    s = torch.sigmoid(normal.icdf(level.clamp(1e-12, 1 - 1e-12)))
    return {
        "noise": normal_like(data, generator),
        "dropped": bernoulli(rows, 0.1, generator),
        "gap": gap,
        "s": s,
        "q": logit_normal(rows, -0.4, 1.0, generator),
    }


def shortcut(data: Tensor, generator: torch.Generator) -> Draws:
    rows = len(data)
    diagonal = share(torch.ones(rows, dtype=torch.bool), 0.875, generator)
    pair = [torch.rand(rows, generator=generator, dtype=torch.float64) for _ in range(2)]
    return {
        "noise": normal_like(data, generator),
        "diagonal": diagonal,
        "dropped": share(diagonal, 0.1 / 0.875, generator),
        "t": torch.maximum(*pair),
        "r": torch.minimum(*pair),
    }
