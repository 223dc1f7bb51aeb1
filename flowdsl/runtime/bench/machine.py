"""The machine that a measurement was made on, without its name."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Machine:
    """Processor, cores that this process may use, threads of torch, and versions. `gpu` is empty
    when everything ran on the processor.
    """

    cpu: str
    cores: int
    threads: int
    gpu: str
    torch: str
    python: str
    system: str

    @property
    def text(self) -> str:
        where = f"{self.gpu}, " if self.gpu else ""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{where}{self.cpu}, {self.cores} cores, {threads}, torch {self.torch}"


def this_machine(device: torch.device) -> Machine:
    """The machine that runs this."""
    return Machine(
        cpu=_processor(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        torch=torch.__version__,
        python=platform.python_version(),
        system=platform.system(),
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
