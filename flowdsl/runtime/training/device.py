"""Where and in which precision a run computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from flowdsl.diagnostics import fail


def choose_device(name: str) -> torch.device:
    """The device of a config: "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise fail("config", f'device "{name}" cannot be used: {reason}', hint="auto") from error
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bfloat16 for the network's arithmetic where asked for. Times are float32 all the same."""
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def seeded_inside(device: torch.device) -> AbstractContextManager[None]:
    """torch's own generators may be seeded inside, and are as they were afterwards."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
