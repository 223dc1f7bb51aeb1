"""Consistency models on z = data + t noise (arXiv:2303.01469) and what came after them.

EDM's preconditioned denoiser (arXiv:2206.00364) is D = sd^2 / a^2 z + t sd / a F(z / a, log(t) / 4)
with a^2 = t^2 + sd^2, and maps to the data are D itself, or D with t - least in the place of t in
the weights, so that it is the state at the least level. Levels are those of Karras et al.: even in
their seventh root. Here everything is written for one row after the other in plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, mean_squares, pad

Network = Callable[[Tensor, Tensor], Tensor]


def denoised(network: Network, z: Tensor, t: Tensor, sd: float, least: float = 0.0) -> Tensor:
    """The clean sample, or the sample at the level `least`, that a network predicts."""
    size = torch.sqrt(t * t + sd * sd)
    skip = sd * sd / ((t - least) ** 2 + sd * sd)
    out = (t - least) * sd / size
    return pad(skip, z) * z + pad(out, z) * network(z / pad(size, z), 0.25 * torch.log(t))


def level(share: Tensor, least: float, most: float) -> Tensor:
    """The noise level at a share of the way from the least to the most, in seventh roots."""
    low, high = least ** (1 / 7), most ** (1 / 7)
    return (low + share * (high - low)) ** 7


def denoiser(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
) -> Result:
    """Network `F(x, c)`; draws `noise t`. The weight is one over the square of the network's."""
    del label, progress
    t, noise = draws["t"], draws["noise"]
    z = data + pad(t, data) * noise
    weight = 1 / (t * sd / torch.sqrt(t * t + sd * sd)) ** 2
    value = (weight * mean_squares(denoised(networks["F"], z, t, sd) - data)).mean()
    return value, {"target": value.detach()}


def training(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
    least: float = 0.002,
    most: float = 80.0,
    s0: float = 2.0,
    s1: float = 150.0,
) -> Result:
    """Networks `F(x, c)` and its average `slow`; draws `noise i`, the share of the larger level."""
    del label
    count = math.ceil(math.sqrt(progress * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
    i, noise = draws["i"], draws["noise"]
    t, s = level(i, least, most), level(i - 1 / (count - 1), least, most)
    prediction = denoised(networks["F"], data + pad(t, data) * noise, t, sd, least)
    with torch.no_grad():
        goal = denoised(networks["slow"], data + pad(s, data) * noise, s, sd, least)
    value = mean_squares(prediction - goal).mean()
    return value, {"target": value.detach()}


def improved(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
    least: float = 0.002,
    most: float = 80.0,
    s0: float = 10.0,
    s1: float = 1280.0,
    c: float = 0.00432,
) -> Result:
    """Network `F(x, c)`; draws `noise level`, a log-normal level that falls into the step."""
    del label
    count = int(min(s0 * 2 ** math.floor(progress * 8), s1)) + 1
    edges = level(torch.arange(count, dtype=data.dtype) / (count - 1), least, most)
    noise = draws["noise"]
    upper = torch.searchsorted(edges, draws["level"].to(edges)).clamp(min=1)
    t, s = edges[upper], edges[upper - 1]
    prediction = denoised(networks["F"], data + pad(t, data) * noise, t, sd, least)
    goal = denoised(networks["F"], data + pad(s, data) * noise, s, sd, least).detach()
    distance = torch.sqrt((prediction - goal).flatten(1).square().sum(1) + c * c) - c
    value = (distance / (t - s)).mean()
    return value, {"target": value.detach()}


def distillation(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
    least: float = 0.002,
    most: float = 80.0,
    levels: float = 18.0,
) -> Result:
    """Networks `F(x, c)`, its average `slow` and `teacher`; draws `noise i`."""
    del label, progress
    i, noise = draws["i"], draws["noise"]
    t, s = level(i, least, most), level(i - 1 / (levels - 1), least, most)
    z = data + pad(t, data) * noise
    prediction = denoised(networks["F"], z, t, sd, least)
    with torch.no_grad():
        moved = heun(networks["teacher"], z, t, s, sd)
        goal = denoised(networks["slow"], moved, s, sd, least)
    value = mean_squares(prediction - goal).mean()
    return value, {"target": value.detach()}


def heun(teacher: Network, z: Tensor, t: Tensor, s: Tensor, sd: float) -> Tensor:
    """One step of Heun's method along dz/dt = (z - D(z, t)) / t."""

    def slope(x: Tensor, q: Tensor) -> Tensor:
        return (x - denoised(teacher, x, q, sd)) / pad(q, x)

    step = pad(s - t, z)
    first = slope(z, t)
    return z + step * 0.5 * (first + slope(z + step * first, s))


def trajectory(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
    least: float = 0.002,
    most: float = 80.0,
    levels: float = 18.0,
    balance: float = 1.0,
) -> Result:
    """arXiv:2310.02279. Networks `F(x, c, e)`, which is shown the level where a jump ends beside
    that where it starts, its average `slow` and `teacher`; draws `noise i part q noise'`.

    A jump from t to s leads the share s / t back from the clean sample to the state. Of two jumps
    to s, from t and from the level below by the teacher, the last one to `least` is the average's.
    """
    del label, progress

    def jump(network: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        share = pad(b / a, x)
        return share * x + (1 - share) * predicted(network, x, a, b)

    def predicted(network: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return denoised(lambda x, c: network(x, c, 0.25 * torch.log(b)), x, a, sd)

    i, below = draws["i"], draws["i"] - 1 / (levels - 1)
    t, u, s = (level(k, least, most) for k in (i, below, draws["part"] * below))
    end = torch.full_like(t, least)
    z = data + pad(t, data) * draws["noise"]
    arrived = jump(networks["slow"], jump(networks["F"], z, t, s), s, end)
    with torch.no_grad():
        lower = heun(networks["teacher"], z, t, u, sd)
        goal = jump(networks["slow"], jump(networks["F"], lower, u, s), s, end)
    target = balance * mean_squares(arrived - goal).mean()
    q = draws["q"]
    miss = predicted(networks["F"], data + pad(q, data) * draws["noise'"], q, q) - data
    anchor = ((1 / q**2 + 1 / sd**2) * mean_squares(miss)).mean()
    return target + anchor, {"target": target.detach(), "anchor": anchor.detach()}


def tuning(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
    q: float = 2.0,
    levels: float = 8.0,
) -> Result:
    """Network `F(x, c)`; draws `noise t`. Where the lower level is 0 the target is the data."""
    del label
    stage = min(int(levels) - 1, math.floor(progress * levels))
    t, noise = draws["t"], draws["noise"]
    s = (t * (1 - (1 + 8 / (1 + torch.exp(t))) / q ** (stage + 1))).clamp(min=0)
    prediction = denoised(networks["F"], data + pad(t, data) * noise, t, sd)
    goal = data.clone()
    inside = s > 0
    if bool(inside.any()):
        lower = data[inside] + pad(s[inside], data) * noise[inside]
        goal[inside] = denoised(networks["F"], lower, s[inside], sd).detach()
    distance = (prediction - goal).flatten(1).square().sum(1).sqrt()
    value = (distance / (t - s)).mean()
    return value, {"target": value.detach()}


def continuous(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    sd: float = 0.5,
) -> Result:
    """Network `F(x, t / 80)`; draws `noise t`.

    The map is moved by -t df/dt, the derivative taken along dz = noise, without gradient.
    """
    del label, progress
    t, noise = draws["t"], draws["noise"]

    def clean(z: Tensor, t: Tensor) -> Tensor:
        size = (t**2 + sd**2).sqrt()
        x = z / pad(size, z)
        return pad(sd**2 / size**2, z) * z + pad(sd * t / size, z) * networks["F"](x, t / 80)

    z = data + pad(t, data) * noise
    _, slope = torch.func.jvp(clean, (z, t), (noise, torch.ones_like(t)))
    prediction = clean(z, t)
    goal = (prediction - pad(t, z) * slope).detach()
    value = mean_squares(prediction - goal).mean()
    return value, {"target": value.detach()}
