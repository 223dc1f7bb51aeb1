"""Training steps of objectives, side by side on one network: time, work, memory, equality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from flowdsl.runtime.bench.compiling import check_backend
from flowdsl.runtime.bench.contest import Entry, Stand, check, count_work, make_entries
from flowdsl.runtime.bench.machine import this_machine
from flowdsl.runtime.bench.options import BenchOptions, Make, Setting, bundled
from flowdsl.runtime.bench.result import BenchResult, Group, Row
from flowdsl.runtime.bench.steps import make_batch, unit_role
from flowdsl.runtime.bench.timing import Samples, interleaved, median_ratio, spread
from flowdsl.runtime.loss import Loss
from flowdsl.runtime.randomness import generator
from flowdsl.runtime.training.device import choose_device
from flowdsl.runtime.weights import wake

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
                    stand = Stand(objective, phase, progress, setting, options, device)
                    groups.append(_group(stand, ways, make, told))
    return BenchResult(
        machine=machine,
        dtype=str(options.dtype).removeprefix("torch."),
        clock=options.clock,
        repeats=options.repeats,
        seed=options.seed,
        groups=tuple(groups),
    )


def _group(
    stand: Stand, ways: Mapping[str, Loss], make: Make | None, told: Callable[[str], None]
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
    entries, forward = make_entries(stand, ways, networks, batch, draws)
    check(stand, entries, told)
    told(f"{stand.title}: counting")
    known = [*(t for n in networks.values() for t in (*n.parameters(), *n.buffers()))]
    known += [*batch.tensors, *draws.values()]
    for entry in entries.values():
        count_work(entry, known, device)
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


def _row(
    name: str,
    entries: Mapping[str, Entry],
    samples: Mapping[str, Samples],
    forward: int,
    stand: Stand,
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
