"""Timing of several ways to do the same, side by side.

Each round runs every way once, in random order: what the machine does meanwhile (other work, heat,
clock rates) then meets all of them alike. Ratios are taken within rounds, and their median is
reported.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    lower: float
    upper: float

    @property
    def range(self) -> float:
        """The interquartile range."""
        return self.upper - self.lower


@dataclass(frozen=True)
class Samples:
    """Milliseconds of each round, in the order of the rounds: on the clock on the wall, and of the
    processor's time spent in this process by all threads.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of one value, all three are that value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


def median_ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """The median over rounds of the ratio within the round."""
    return statistics.median(a / b for a, b in zip(values, reference, strict=True))


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    device: torch.device,
    seed: int = 0,
    told: Callable[[int], None] = lambda done: None,
) -> dict[str, Samples]:
    """Runs every step once per round, in an order drawn anew for each; `told` hears of each round.

    Python's garbage is collected between steps and not while one runs.
    """
    order = list(steps)
    shuffled = random.Random(seed)
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()  # what is there already need not be looked at before every step
    try:
        for done in range(repeats):
            shuffled.shuffle(order)
            for name in order:
                gc.collect()
                elapsed, spent = _timed(steps[name], device)
                wall[name].append(elapsed)
                cpu[name].append(spent)
            told(done + 1)
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return {name: Samples(tuple(wall[name]), tuple(cpu[name])) for name in steps}


def _timed(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    _wait(device)
    began, spent = time.perf_counter(), time.process_time()
    step()
    _wait(device)
    return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - spent)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
