"""Random numbers as a function of (seed, purpose, step): what makes a resumed run equal to an
uninterrupted one.

No generator's state is ever saved. Every draw comes from a fresh generator whose seed is computed
from the run's seed, the purpose and the step, so that step 1000 draws the same numbers whether the
run got there in one go or in five.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for one purpose; different purposes give unrelated seeds."""
    text = ":".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(
    seed: int, *purpose: str | int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator on `device` for one purpose."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))
