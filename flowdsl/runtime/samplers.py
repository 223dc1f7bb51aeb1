"""The samplers: how a state goes along a grid of times from noise to data.

Maps jump along the grid. Maps with a fixed end (consistency models) predict the clean state and
renoise it. Velocities are integrated; where data or noise are predicted, each step keeps both
predictions and moves the time between them (DDIM, arXiv:2010.02502, without fresh noise).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.runtime.protocols import (
    CompiledLoss,
    HasInner,
    HasPath,
    HasSampler,
    Networks,
    time_vector,
)

Sampler = Literal["auto", "jump", "renoise", "euler", "heun", "ddim", "transition"]


@dataclass(frozen=True)
class SampleOptions:
    """How to sample.

    `sampler`: "jump" uses the map from each time of the grid to the next; "renoise" jumps to the
    data and adds fresh noise; "euler" and "heun" integrate the velocity (Heun evaluates it twice
    per step, but once where a velocity at the data is not finite); "ddim" moves along the path
    between the data and the noise that a state is expected to come from. "auto" is "renoise" for a
    map with a fixed end, "jump" for any other map, "euler" for a velocity that is predicted and
    "ddim" for one that follows from predicted data or noise. `guidance`: scale of classifier-free
    guidance, for velocities only: a map has learned its own. `conditions`: values of the scalars
    that networks see, where they differ from the spec's. `times`: the whole grid, from the noise's
    time to the data's, in place of a uniform one. "transition" is for inner flows: each step draws
    data and noise from what lies ahead of a state, in `inner` steps of the inner flow, and goes on
    along the path between them.
    """

    sampler: Sampler = "auto"
    guidance: float = 1.0
    conditions: Mapping[str, float] = field(default_factory=dict)
    times: tuple[float, ...] | None = None
    inner: int = 1


@dataclass(frozen=True)
class Task:
    """One chunk of states: everything that is the same at every step."""

    loss: CompiledLoss
    networks: Networks
    label: Tensor | None
    options: SampleOptions
    generator: torch.Generator | None

    def conditions(self, z: Tensor) -> dict[str, Tensor]:
        known = {c.name: c.default for c in self.loss.signature.conditions}
        return {
            name: torch.full((len(z),), float(value), device=z.device, dtype=z.dtype)
            for name, value in (known | dict(self.options.conditions)).items()
        }

    def jump(self, z: Tensor, start: float, end: float) -> Tensor:
        return self.loss.jump(
            self.networks,
            z,
            time_vector(z, start),
            time_vector(z, end),
            label=self.label,
            **self.conditions(z),
        )

    def velocity(self, z: Tensor, time: float) -> Tensor:
        return self._guided(self.loss.velocity, z, time)

    def denoised(self, z: Tensor, time: float) -> Tensor:
        assert isinstance(self.loss, HasSampler)
        return self._guided(self.loss.denoised, z, time)

    def ahead(self, z: Tensor, time: float) -> Tensor:
        """Data drawn given the state, by the inner flow from fresh noise."""
        loss = self.loss
        assert isinstance(loss, HasInner)
        assert loss.signature.inner is not None
        first, last = loss.signature.inner
        y = self.fresh(z)
        when = time_vector(z, time)
        steps = [first + (last - first) * k / self.options.inner
                 for k in range(self.options.inner + 1)]  # fmt: skip
        for start, end in pairwise(steps):
            y = loss.inner(
                self.networks, y, z, time_vector(z, start), time_vector(z, end), when,
                label=self.label, **self.conditions(z),
            )  # fmt: skip
        return loss.outcome(y, z, when)

    def fresh(self, like: Tensor) -> Tensor:
        return torch.randn(
            like.shape, generator=self.generator, device=like.device, dtype=like.dtype
        )

    def path(self, data: Tensor, noise: Tensor, time: float) -> Tensor:
        assert isinstance(self.loss, HasPath)
        return self.loss.path(data, noise, time_vector(data, time))

    def _guided(self, learnt: Callable[..., Tensor], z: Tensor, time: float) -> Tensor:
        """What a network has learnt, with classifier-free guidance."""

        def with_label(label: Tensor | None) -> Tensor:
            when = time_vector(z, time)
            return learnt(self.networks, z, when, label=label, **self.conditions(z))

        conditional = with_label(self.label)
        if self.label is None or self.options.guidance == 1.0:
            return conditional
        unconditional = with_label(torch.full_like(self.label, NULL_LABEL))
        return unconditional + self.options.guidance * (conditional - unconditional)

    def renoised(self, clean: Tensor, time: float) -> Tensor:
        return self.path(clean, self.fresh(clean), time)


Rule = Callable[[Task, Tensor, Sequence[float]], Tensor]


def _jump(task: Task, z: Tensor, times: Sequence[float]) -> Tensor:
    for start, end in pairwise(times):
        z = task.jump(z, start, end)
    return z


def _renoise(task: Task, z: Tensor, times: Sequence[float]) -> Tensor:
    fixed = task.loss.signature.fixed_end
    end = times[-1] if fixed is None else fixed
    clean = task.jump(z, times[0], end)
    for time in times[1:-1]:
        clean = task.jump(task.renoised(clean, time), time, end)
    return clean


def _euler(task: Task, z: Tensor, times: Sequence[float]) -> Tensor:
    for start, end in pairwise(times):
        z = z + (end - start) * task.velocity(z, start)
    return z


def _heun(task: Task, z: Tensor, times: Sequence[float]) -> Tensor:
    for start, end in pairwise(times):
        first = task.velocity(z, start)
        second = task.velocity(z + (end - start) * first, end)
        if end == times[-1] and not bool(torch.isfinite(second).all()):
            second = first  # a velocity that follows from predicted noise is 0 / 0 at the data
        z = z + (end - start) * (first + second) / 2
    return z


def _ddim(task: Task, z: Tensor, times: Sequence[float]) -> Tensor:
    """With the data d and the noise n that are expected: from z(t) = a(t) d + b(t) n to z(s)."""
    zeros, ones = torch.zeros_like(z), torch.ones_like(z)
    for start, end in pairwise(times):
        data = task.denoised(z, start)
        noise = (z - task.path(data, zeros, start)) / task.path(zeros, ones, start)
        z = task.path(data, noise, end)
    return z


def _transition(task: Task, z: Tensor, times: Sequence[float]) -> Tensor:
    """With data and noise drawn together given z: the state between them at the next time."""
    zeros, ones = torch.zeros_like(z), torch.ones_like(z)
    for start, end in pairwise(times):
        data = task.ahead(z, start)
        if end == times[-1]:
            return data
        noise = (z - task.path(data, zeros, start)) / task.path(zeros, ones, start)
        z = task.path(data, noise, end)
    return z


RULES: dict[str, Rule] = {
    "transition": _transition,
    "jump": _jump,
    "renoise": _renoise,
    "euler": _euler,
    "heun": _heun,
    "ddim": _ddim,
}
