"""The steps that are measured side by side, and what must hold before their times mean anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowdsl.diagnostics import fail
from flowdsl.runtime.agreement import Agreement, Outcome, clear, compare, outcome, size
from flowdsl.runtime.bench.compiling import compiled, verify_compiled
from flowdsl.runtime.bench.counting import Counts, FlopCounter, allocator_peak, count, cuda_peak
from flowdsl.runtime.bench.options import BenchOptions, Setting
from flowdsl.runtime.bench.steps import (
    Batch,
    Step,
    VelocityStep,
    bound,
    left_to_pytorch,
    loss_step,
    recomputed,
    trainable,
    unit_role,
    unit_step,
)
from flowdsl.runtime.loss import Loss

UNIT = "FM step"
UNOPTIMISED = "unoptimised"
OPTIMISED = "optimised"
RECOMPUTED = "recomputed"
WITHOUT = "without "
CHUNKED = "in chunks"
MERGED = "merged"
#: Another computation than the others, which it only approaches: its error is shown, not judged.
DIFFERENCE = "difference"
COMPILED = ", compiled"


@dataclass(frozen=True)
class Stand:
    """Where one group is measured."""

    objective: str
    phase: str
    progress: float
    setting: Setting
    options: BenchOptions
    device: torch.device

    @property
    def title(self) -> str:
        words = [self.objective, self.phase, self.setting.size.name]
        return ", ".join(word for word in words if word)


@dataclass(eq=False)
class Entry:
    """One step in the contest, and what was found out about it."""

    step: Step
    parameters: Mapping[str, nn.Parameter]
    networks: Mapping[str, nn.Module]
    unit: str = ""
    compared_with: str = ""
    compiled: bool = False
    agreement: Agreement | None = None
    counts: Counts | None = None
    peak: int | None = None
    refused: str = ""
    outcome: Outcome | None = field(default=None, repr=False)


class _Part(NamedTuple):
    """A module with the step that it makes, and the name of the step that it must equal."""

    module: nn.Module
    make_step: Callable[[Callable[..., Any]], Step]
    against: str


def make_entries(
    stand: Stand,
    ways: Mapping[str, Loss],
    networks: dict[str, nn.Module],
    batch: Batch,
    draws: Mapping[str, Tensor],
) -> tuple[dict[str, Entry], int]:
    """The steps by name, and the operations of one forward pass of the batch."""
    plain, backend = next(iter(ways)), stand.options.compile
    parts: dict[str, _Part] = {}
    for name, loss in ways.items():
        module = bound(loss, networks)
        make_step = partial(
            loss_step, parameters=trainable(module), batch=batch, draws=draws,
            progress=stand.progress,
        )  # fmt: skip
        parts[name] = _Part(module, make_step, "" if name == plain else plain)
    role, forward, unit = unit_role(ways[plain].signature), 0, ""
    if role is not None:
        flow, unit = VelocityStep(networks[role.name], role), UNIT
        with torch.no_grad(), FlopCounter() as flops:
            flow.predict(batch)
        forward = flops.total
        unit_of = partial(unit_step, parameters=trainable(flow), batch=batch)
        parts[UNIT] = _Part(flow, unit_of, "")
    entries = {
        name: Entry(
            part.make_step(part.module), trainable(part.module), networks, unit, part.against
        )
        for name, part in parts.items()
    }
    entries[plain].step = left_to_pytorch(entries[plain].step)
    if stand.options.recompute:
        best = entries[OPTIMISED if OPTIMISED in ways else list(ways)[-1]]
        entries[RECOMPUTED] = replace(best, step=recomputed(best.step, networks.values()))
    if backend is not None:
        torch.compiler.reset()
        for name, part in parts.items():
            if name not in (plain, UNOPTIMISED) and not name.startswith(WITHOUT):
                entries[name + COMPILED] = Entry(
                    part.make_step(compiled(part.module, backend)),
                    trainable(part.module),
                    networks,
                    unit and UNIT + COMPILED,
                    compared_with=name,
                    compiled=True,
                )
    return entries, forward


def check(stand: Stand, entries: dict[str, Entry], told: Callable[[str], None]) -> None:
    """Value and gradients of each step against those it must equal."""
    for name, entry in entries.items():
        if entry.compiled:
            continue
        entry.outcome = outcome(entry.parameters, entry.step)
        if size(entry.outcome) == 0:
            raise fail(
                "bench",
                f"the {name} step of {stand.objective} has no gradient: nothing can be compared",
                hint="does a parameter of the network require gradients?",
            )
        if entry.compared_with:
            reference = entries[entry.compared_with].outcome
            assert reference is not None
            entry.agreement = compare(entry.outcome, reference, stand.options.dtype)
            if not entry.agreement.ok and name != DIFFERENCE:
                raise _disagree(stand, name, entry)
    for name, entry in entries.items():
        if entry.compiled:
            told(f"{stand.title}: compiling {name.removesuffix(COMPILED)}")
            reference = entries[entry.compared_with].outcome
            assert reference is not None
            entry.agreement, entry.refused = verify_compiled(
                entry.step, entry.parameters, reference, stand.options.dtype
            )


def _disagree(stand: Stand, name: str, entry: Entry) -> Exception:
    found = entry.agreement
    assert found is not None
    return fail(
        "bench",
        f"{stand.title}: the {name} step does not compute what the {entry.compared_with} step does",
        facts=[
            ("value", f"off by {found.value:.1e}"),
            ("gradient", f"off by {found.gradient:.1e}, relative to its length"),
            ("worst", f"{found.parameter}, off by {found.worst:.1e}"),
            ("allowed", f"{found.tolerance:.0e}"),
        ],
        hint="is the network deterministic, and each row independent of the others? "
        "`flowdsl doctor` looks; if it is, this is a bug of flowdsl",
    )


def count_work(entry: Entry, known: Sequence[Tensor], device: torch.device) -> None:
    """Work and memory of one step; the memory of a compiled one is the allocator's."""
    clear(entry.parameters.values())
    if entry.refused:
        return
    if entry.compiled:
        on_gpu = device.type == "cuda"
        entry.peak = cuda_peak(entry.step, device) if on_gpu else allocator_peak(entry.step)
    else:
        entry.counts = count(entry.step, entry.networks, known, device)
        entry.peak = entry.counts.peak
