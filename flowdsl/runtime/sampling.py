"""From noise to data with a learned map or a learned velocity, in any number of steps.

What an objective's networks can be asked for is checked before any of them is evaluated. Nothing
here knows an objective by name: the record in `loss.signature` decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.runtime.contract import ObjectiveSignature
from flowdsl.runtime.protocols import (
    CompiledLoss,
    HasPath,
    HasSampler,
    Networks,
    initial_state,
    takes_labels,
)
from flowdsl.runtime.samplers import RULES, Rule, SampleOptions, Sampler, Task

#: States that go through the network together.
CHUNK = 512

#: Numbers of steps, unless asked for.
MAP_STEPS, VELOCITY_STEPS = (1, 2, 4), (4, 16, 64)


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
            task = Task(loss, networks, part, options, generator)
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


def possible_steps(
    signature: ObjectiveSignature, steps: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Those of the numbers of steps that an objective's sampler can make; one step at least.

    None: what shows the objective at its work, few steps of a map and many of a velocity.
    """
    if signature.fixed_start is not None:
        return (1,)
    if steps is None:
        return VELOCITY_STEPS if signature.sampler == "velocity" else MAP_STEPS
    return tuple(steps)


def _clocked(loss: CompiledLoss, steps: int) -> tuple[float, ...] | None:
    """The times that the spec says, from the noise's to the data's; None: even ones."""
    if not isinstance(loss, HasSampler) or steps < 1:
        return None
    said = [loss.clock(k / steps) for k in range(steps)]
    known = tuple(time for time in said if time is not None)
    return (*known, loss.signature.data_time) if known else None


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
    if options.inner > 1 and name != "transition":
        raise fail(
            "sample",
            f"{signature.name} learns no inner flow, so there is nothing to take {options.inner} "
            "inner steps in",
            hint="more steps of the sampler: --steps",
        )
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
            hint="train with another guidance constant"
            + ("" if name == "transition" else ", or sample the velocity (euler, heun)"),
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
