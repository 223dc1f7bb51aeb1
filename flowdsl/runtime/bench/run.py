"""Training steps of objectives, side by side on one network: time, work, memory, equality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from flowdsl.diagnostics import fail
from flowdsl.runtime.agreement import Agreement, Outcome, compare, outcome, size
from flowdsl.runtime.bench.compiling import check_backend, compiled, verify_compiled
from flowdsl.runtime.bench.counting import Counts, FlopCounter, allocator_peak, count, cuda_peak
from flowdsl.runtime.bench.machine import this_machine
from flowdsl.runtime.bench.options import BenchOptions, Make, Setting, bundled
from flowdsl.runtime.bench.result import BenchResult, Group, Row
from flowdsl.runtime.bench.steps import (
    Batch,
    FlowMatching,
    Step,
    bound,
    loss_step,
    make_batch,
    trainable,
    unit_role,
    unit_step,
)
from flowdsl.runtime.bench.timing import Samples, interleaved, median_ratio, spread
from flowdsl.runtime.loss import Loss
from flowdsl.runtime.randomness import generator
from flowdsl.runtime.training.device import choose_device
from flowdsl.runtime.weights import wake

UNIT = "FM step"
COMPILED = ", compiled"

#: By objective, by name: ways to compute one loss. The first is what the others are held against.
Losses = Mapping[str, Mapping[str, Loss]]
#: By objective: where in training to measure, from 0 to 1, by the name of the phase.
Phases = Mapping[str, Mapping[str, float]]


def bench(
    losses: Losses,
    settings: Sequence[Setting] = (Setting(),),
    options: BenchOptions | None = None,
    *,
    phases: Phases | None = None,
    make: Make | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> BenchResult:
    """Measures a training step of each loss, on the same network, batch and draws.

    `losses` are by objective and name, as `{"meanflow": {"plain": …, "optimised": …}}`; all of one
    objective must compute the same, which is checked in value and every gradient. `make` makes a
    network for a role, by default the bundled one of the setting; zero weights are made random.
    `told` hears what goes on. Raises a diagnostic when two losses of one objective disagree.
    """
    options = options or BenchOptions()
    if options.compile is not None:
        check_backend(options.compile)
    device = choose_device(options.device)
    groups = []
    with _threads(options.threads):
        machine = this_machine(device)
        for setting in settings:
            for objective, ways in losses.items():
                named = (phases or {}).get(objective) or {"": options.progress}
                for phase, progress in named.items():
                    stand = _Stand(objective, phase, progress, setting, options, device)
                    groups.append(_group(stand, ways, make, told))
    return BenchResult(
        machine=machine,
        dtype=str(options.dtype).removeprefix("torch."),
        clock=options.clock,
        repeats=options.repeats,
        seed=options.seed,
        groups=tuple(groups),
    )


@dataclass(frozen=True)
class _Stand:
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
class _Entry:
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


def _group(
    stand: _Stand, ways: Mapping[str, Loss], make: Make | None, told: Callable[[str], None]
) -> Group:
    """Everything about one objective in one phase on one network."""
    options, device = stand.options, stand.device
    first = next(iter(ways.values()))
    make = make or bundled(stand.setting, options.classes)
    networks: dict[str, nn.Module] = {}
    for role in first.signature.networks:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(options.seed, "weights", role.name).initial_seed())
            network = make(role, stand.setting.shape)
        wake(network, generator(options.seed, "wake", role.name))
        networks[role.name] = network.to(device=device, dtype=options.dtype)
    batch = make_batch(
        first.signature, stand.setting.shape, options.batch, options.classes, options.dtype, device,
        generator(options.seed, "batch"),
    )  # fmt: skip
    draws = first.draw(
        batch.data,
        generator=generator(options.seed, "draws", device=device),
        progress=stand.progress,
        step=round(stand.progress * 1000),
        steps=1000,
    )
    told(f"{stand.title}: comparing")
    entries, forward = _entries(stand, ways, networks, batch, draws)
    _check(stand, entries, told)
    told(f"{stand.title}: counting")
    known = [*(t for n in networks.values() for t in (*n.parameters(), *n.buffers()))]
    known += [*batch.tensors, *draws.values()]
    for entry in entries.values():
        _count(entry, known, device)
    running = {name: e.step for name, e in entries.items() if not e.refused}
    for _ in range(options.warmup):
        for step in running.values():
            step()
    samples = interleaved(
        running,
        repeats=options.repeats,
        device=device,
        seed=options.seed,
        told=lambda done: told(f"{stand.title}: round {done} of {options.repeats}"),
    )
    return Group(
        objective=stand.objective,
        phase=stand.phase,
        progress=stand.progress,
        network=_described(networks, first),
        size=stand.setting.size.name,
        shape=stand.setting.shape,
        batch=options.batch,
        forward=forward,
        rows=tuple(_row(name, entries, samples, forward, stand) for name in entries),
    )


def _entries(
    stand: _Stand,
    ways: Mapping[str, Loss],
    networks: dict[str, nn.Module],
    batch: Batch,
    draws: Mapping[str, Tensor],
) -> tuple[dict[str, _Entry], int]:
    """The steps by name, and the operations of one forward pass of the batch."""
    plain, backend = next(iter(ways)), stand.options.compile
    parts: dict[str, tuple[nn.Module, Callable[[nn.Module], Step], str]] = {}
    for name, loss in ways.items():
        module = bound(loss, networks)
        make_step = partial(
            loss_step, parameters=trainable(module), batch=batch, draws=draws,
            progress=stand.progress,
        )  # fmt: skip
        parts[name] = (module, make_step, "" if name == plain else plain)
    role, forward, unit = unit_role(ways[plain].signature), 0, ""
    if role is not None:
        flow, unit = FlowMatching(networks[role.name], role), UNIT
        with torch.no_grad(), FlopCounter() as flops:
            flow.predict(batch)
        forward = flops.total
        parts[UNIT] = (flow, partial(unit_step, parameters=trainable(flow), batch=batch), "")
    entries = {
        name: _Entry(make_step(module), trainable(module), networks, unit, against)
        for name, (module, make_step, against) in parts.items()
    }
    if backend is not None:
        torch.compiler.reset()
        for name, (module, make_step, _) in parts.items():
            if name != plain:
                entries[name + COMPILED] = _Entry(
                    make_step(compiled(module, backend)), trainable(module), networks,
                    unit and UNIT + COMPILED, name, compiled=True,
                )  # fmt: skip
    return entries, forward


def _check(stand: _Stand, entries: dict[str, _Entry], told: Callable[[str], None]) -> None:
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
            if not entry.agreement.ok:
                raise _disagree(stand, name, entry)
    for name, entry in entries.items():
        if entry.compiled:
            told(f"{stand.title}: compiling {name.removesuffix(COMPILED)}")
            reference = entries[entry.compared_with].outcome
            assert reference is not None
            entry.agreement, entry.refused = verify_compiled(
                entry.step, entry.parameters, reference, stand.options.dtype
            )


def _disagree(stand: _Stand, name: str, entry: _Entry) -> Exception:
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


def _count(entry: _Entry, known: Sequence[Tensor], device: torch.device) -> None:
    """Work and memory of one step; the memory of a compiled one is the allocator's."""
    for parameter in entry.parameters.values():
        parameter.grad = None
    if entry.refused:
        return
    if entry.compiled:
        on_gpu = device.type == "cuda"
        entry.peak = cuda_peak(entry.step, device) if on_gpu else allocator_peak(entry.step)
    else:
        entry.counts = count(entry.step, entry.networks, known, device)
        entry.peak = entry.counts.peak


def _row(
    name: str,
    entries: Mapping[str, _Entry],
    samples: Mapping[str, Samples],
    forward: int,
    stand: _Stand,
) -> Row:
    entry, first = entries[name], next(iter(entries))
    if entry.refused:
        return Row(
            name, compared_with=entry.compared_with, agreement=entry.agreement,
            refused=entry.refused,
        )  # fmt: skip
    times = {n: s.wall if stand.options.clock == "wall" else s.cpu for n, s in samples.items()}
    peak, first_peak = entry.peak, entries[first].peak
    return Row(
        name=name,
        ms=spread(times[name]),
        samples=samples[name],
        of_first=median_ratio(times[name], times[first]),
        of_unit=median_ratio(times[name], times[entry.unit]) if entry.unit in times else None,
        flops=entry.counts.flops / forward if entry.counts and forward else None,
        calls=entry.counts.calls if entry.counts else None,
        peak=peak,
        peak_of_first=peak / first_peak if peak is not None and first_peak else None,
        compared_with=entry.compared_with,
        agreement=entry.agreement,
    )


def _described(networks: Mapping[str, nn.Module], loss: Loss) -> str:
    role = unit_role(loss.signature) or loss.signature.networks[0]
    network = networks[role.name]
    describe = getattr(network, "describe", None)
    if describe is not None:
        return str(describe())
    count = sum(p.numel() for p in network.parameters())
    return f"{type(network).__name__}: {count:,} parameters"


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
