"""From noise to data with a learned map or a learned velocity, in any number of steps.

Maps jump along a grid of times. Maps with a fixed end (consistency models) predict the clean state
and renoise it. Velocities are integrated; where data or noise are predicted, each step keeps both
predictions and moves the time between them (DDIM, arXiv:2010.02502, without fresh noise). Nothing
here knows an objective by name: the record in `loss.signature` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.runtime.contract import NULL_LABEL, ObjectiveSignature
from flowdsl.runtime.protocols import (
    CompiledLoss,
    HasInner,
    HasPath,
    HasSampler,
    Networks,
    initial_state,
    takes_labels,
    time_vector,
)

Sampler = Literal["auto", "jump", "renoise", "euler", "heun", "ddim", "transition"]

#: States that go through the network together.
CHUNK = 512


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


def sample(
    loss: CompiledLoss,
    networks: Networks,
    shape: Sequence[int],
    count: int,
    steps: int,
    *,
    label: Tensor | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    options: SampleOptions | None = None,
) -> Tensor:
    """`count` states of the given shape, in `steps` steps; shape (count, *shape), without gradient.

    `label` (count,) int64, or None for no class. `noise` (count, *shape) is standard normal and
    drawn when not given; the networks' device and the noise's must agree. Networks are in
    evaluation mode while sampling.
    """
    options = options or SampleOptions()
    times = time_grid(loss.signature, steps, options.times or _clocked(loss, steps))
    rule = _rule(loss, options)
    if options.guidance != 1.0 and label is None:
        raise fail("sample", "guidance needs labels to guide to")
    if noise is None:
        device = _device(networks)
        noise = torch.randn(count, *shape, generator=generator, device=device)
    if len(noise) != count:
        raise fail("sample", f"noise for {len(noise)} states, {count} wanted")
    if label is not None:
        label = label.to(noise.device)
    parts = []
    with torch.no_grad(), evaluation_mode(networks):
        for start in range(0, count, CHUNK):
            rows = slice(start, start + CHUNK)
            part = None if label is None else label[rows]
            task = _Task(loss, networks, part, options, generator)
            parts.append(rule(task, initial_state(loss, noise[rows]), times))
    return torch.cat(parts)


def check_sampler(loss: CompiledLoss, options: SampleOptions | None = None) -> None:
    """Raises the `DiagnosticError` that sampling with these options would raise, if any."""
    _rule(loss, options or SampleOptions())


def time_grid(
    signature: ObjectiveSignature, steps: int, times: Sequence[float] | None = None
) -> tuple[float, ...]:
    """`steps + 1` times from the noise's end of the path to the data's; a given grid is checked."""
    start, end = signature.noise_time, signature.data_time
    if signature.fixed_start is not None and (steps if times is None else len(times) - 1) > 1:
        raise fail(
            "sample",
            f"the map of {signature.name} starts at time {signature.fixed_start:g} only",
            hint="one step",
        )
    if times is None:
        if steps < 1:
            raise fail("sample", f"{steps} steps", hint="at least one step")
        return (*(start + (end - start) * k / steps for k in range(steps)), end)
    ordered = all((b - a) * (end - start) > 0 for a, b in pairwise(times))
    if len(times) < 2 or not ordered or abs(times[0] - start) > 1e-6 or abs(times[-1] - end) > 1e-6:
        raise fail(
            "sample",
            f"the times {', '.join(f'{t:g}' for t in times)} do not lead from noise to data",
            hint=f"strictly ordered, from {start:g} to {end:g}",
        )
    return tuple(times)


@contextmanager
def evaluation_mode(networks: Networks) -> Iterator[None]:
    """All modules in evaluation mode inside, each as it was afterwards."""
    roots = networks.values() if isinstance(networks, Mapping) else (networks,)
    before = [
        (module, module.training)
        for root in roots
        if isinstance(root, nn.Module)
        for module in root.modules()
    ]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def possible_steps(signature: ObjectiveSignature, steps: Sequence[int]) -> tuple[int, ...]:
    """Those of the numbers of steps that an objective's sampler can make; one step at least."""
    if signature.fixed_start is None:
        return tuple(steps)
    return (1,)


def _clocked(loss: CompiledLoss, steps: int) -> tuple[float, ...] | None:
    """The times that the spec says, from the noise's to the data's; None: even ones."""
    if not isinstance(loss, HasSampler) or steps < 1:
        return None
    said = [loss.clock(k / steps) for k in range(steps)]
    known = tuple(time for time in said if time is not None)
    return (*known, loss.signature.data_time) if known else None


@dataclass(frozen=True)
class _Task:
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


Rule = Callable[[_Task, Tensor, Sequence[float]], Tensor]


def _jump(task: _Task, z: Tensor, times: Sequence[float]) -> Tensor:
    for start, end in pairwise(times):
        z = task.jump(z, start, end)
    return z


def _renoise(task: _Task, z: Tensor, times: Sequence[float]) -> Tensor:
    fixed = task.loss.signature.fixed_end
    end = times[-1] if fixed is None else fixed
    clean = task.jump(z, times[0], end)
    for time in times[1:-1]:
        clean = task.jump(task.renoised(clean, time), time, end)
    return clean


def _euler(task: _Task, z: Tensor, times: Sequence[float]) -> Tensor:
    for start, end in pairwise(times):
        z = z + (end - start) * task.velocity(z, start)
    return z


def _heun(task: _Task, z: Tensor, times: Sequence[float]) -> Tensor:
    for start, end in pairwise(times):
        first = task.velocity(z, start)
        second = task.velocity(z + (end - start) * first, end)
        if end == times[-1] and not bool(torch.isfinite(second).all()):
            second = first  # a velocity that follows from predicted noise is 0 / 0 at the data
        z = z + (end - start) * (first + second) / 2
    return z


def _ddim(task: _Task, z: Tensor, times: Sequence[float]) -> Tensor:
    """With the data d and the noise n that are expected: from z(t) = a(t) d + b(t) n to z(s)."""
    zeros, ones = torch.zeros_like(z), torch.ones_like(z)
    for start, end in pairwise(times):
        data = task.denoised(z, start)
        noise = (z - task.path(data, zeros, start)) / task.path(zeros, ones, start)
        z = task.path(data, noise, end)
    return z


def _transition(task: _Task, z: Tensor, times: Sequence[float]) -> Tensor:
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


def resolved_sampler(signature: ObjectiveSignature, sampler: Sampler) -> str:
    """The sampler that "auto" stands for with this objective."""
    if sampler != "auto":
        return sampler
    if signature.sampler != "map":
        return signature.integrator if signature.sampler == "velocity" else "transition"
    return "jump" if signature.fixed_end is None else "renoise"


def _rule(loss: CompiledLoss, options: SampleOptions) -> Rule:
    """The function that samples, after every check that needs no network."""
    signature = loss.signature
    name = resolved_sampler(signature, options.sampler)
    if name not in RULES:
        known = get_args(Sampler)
        raise fail(
            "sample",
            f'there is no sampler "{name}"',
            facts=(("known", ", ".join(known)),),
            hint=did_you_mean(name, known),
        )
    if (name == "transition") != (signature.sampler == "transition"):
        hint = "transition" if signature.sampler == "transition" else "another sampler"
        what = "an inner flow" if signature.sampler == "transition" else "no inner flow"
        raise fail("sample", f"{signature.name} learns {what}", hint=hint)
    if options.inner < 1:
        raise fail("sample", f"{options.inner} inner steps", hint="at least one")
    if name in ("jump", "renoise") and signature.sampler == "velocity":
        raise fail("sample", f"{signature.name} learns a velocity, not a map", hint="euler or heun")
    if name == "jump" and signature.fixed_end is not None:
        raise fail(
            "sample",
            f"the map of {signature.name} jumps to time {signature.fixed_end:g} only",
            hint="the sampler renoise",
        )
    if name == "ddim" and (signature.integrator != "ddim" or not isinstance(loss, HasSampler)):
        raise fail(
            "sample",
            f"{signature.name} predicts neither data nor noise",
            hint="euler or heun" if signature.sampler == "velocity" else "",
        )
    if name in ("renoise", "ddim") and not isinstance(loss, HasPath):
        raise fail(
            "sample",
            f"the loss of {signature.name} does not tell its path, so nothing can be renoised",
            hint="a method path(data, noise, time) on the loss",
        )
    _check_guidance(signature, options.guidance, name)
    known_conditions = [condition.name for condition in signature.conditions]
    for condition in options.conditions:
        if condition not in known_conditions:
            raise fail(
                "sample",
                f'the networks of {signature.name} see no condition "{condition}"',
                facts=(("known", ", ".join(known_conditions) or "none"),),
                hint=did_you_mean(condition, known_conditions),
            )
    return RULES[name]


def _check_guidance(signature: ObjectiveSignature, guidance: float, name: str) -> None:
    if guidance == 1.0:
        return
    if name in ("jump", "renoise", "transition"):
        raise fail(
            "sample",
            f"guidance {guidance:g} cannot be applied to a map: it is learned with the map",
            hint="train with another guidance constant, or sample the velocity (euler, heun)",
        )
    if not takes_labels(signature):
        raise fail("sample", f"guidance needs labels, which {signature.name} does not see")


def _device(networks: Networks) -> torch.device:
    roots = networks.values() if isinstance(networks, Mapping) else (networks,)
    for root in roots:
        if isinstance(root, nn.Module):
            for tensor in root.parameters():
                return tensor.device
    return torch.device("cpu")
