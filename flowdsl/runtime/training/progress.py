"""What a person sees of a run: a bar on a terminal, plain lines in a file, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter(Protocol):
    """Told what happens, in order: start, step ..., with lines and messages between, stop."""

    def start(self, title: str, step: int, steps: int) -> None: ...
    def step(self, step: int) -> None: ...
    def line(self, step: int, values: Mapping[str, float], rate: float) -> None:
        """The means at a line of the log; `rate` is in steps per second."""

    def message(self, text: str) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """Says nothing."""

    def start(self, title: str, step: int, steps: int) -> None: ...
    def step(self, step: int) -> None: ...
    def line(self, step: int, values: Mapping[str, float], rate: float) -> None: ...
    def message(self, text: str) -> None: ...
    def stop(self) -> None: ...


class Lines:
    """Plain lines, for output that is not a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps = 0

    def start(self, title: str, step: int, steps: int) -> None:
        self._steps = steps
        self.message(title)

    def step(self, step: int) -> None: ...

    def line(self, step: int, values: Mapping[str, float], rate: float) -> None:
        left = (self._steps - step) / rate if rate > 0 else 0.0
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.message(
            f"step {step:>{len(str(self._steps))}}/{self._steps}  {numbers}  "
            f"{rate:.1f} steps/s  {duration(left)} left"
        )

    def message(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None: ...


class Bar:
    """A bar with the loss, the speed and the time left; messages scroll above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = TaskID(0)

    def start(self, title: str, step: int, steps: int) -> None:
        self._progress.start()
        self.message(title)
        self._task = self._progress.add_task("train", total=steps, completed=step, numbers="")

    def step(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def line(self, step: int, values: Mapping[str, float], rate: float) -> None:
        words = [
            f"{name} {value:.4g}"
            for name, value in values.items()
            if name == "loss" or name.rpartition(".")[2] in ("error", "mse")
        ]
        numbers = "  ".join([*words[:3], f"{rate:.1f} steps/s"])
        self._progress.update(self._task, numbers=numbers)

    def message(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        self._progress.stop()


def reporter(progress: bool) -> Reporter:
    """A bar when standard error is a terminal, else lines; nothing when `progress` is false."""
    if not progress:
        return Silent()
    console = Console(file=sys.stderr)
    return Bar(console) if console.is_terminal else Lines(console)


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s or 45 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
