"""What to measure, and on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from flowdsl.diagnostics import fail
from flowdsl.runtime.bench.result import Clock
from flowdsl.runtime.contract import NetworkSignature
from flowdsl.runtime.doctor.loading import load_network
from flowdsl.runtime.nets import SIZES, Size, configure, network_from_config
from flowdsl.runtime.nets.sizes import choose_patch

#: Makes the network of a role, for data of a shape without the batch.
Make = Callable[[NetworkSignature, tuple[int, ...]], nn.Module]


@dataclass(frozen=True)
class Setting:
    """One network: a size, and the shape (channels, height, width) of one sample. `patch` is in
    pixels, None to choose one; `own_blocks` are the last blocks, of which each of several outputs
    has its own.
    """

    size: Size = SIZES["nano"]
    shape: tuple[int, ...] = (1, 8, 8)
    patch: int | None = None
    own_blocks: int = 0


@dataclass(frozen=True)
class BenchOptions:
    """How to measure. `compile` names a compiler of torch, None to leave it; `clock` is what
    ratios are taken of: "wall", or "cpu" for this process's processor time, which is steadier where
    other work shares the cores. `threads` None leaves torch's number. `progress` is where in
    training, for objectives whose phases are not named. `recompute` adds the best way once more,
    with blocks computed again in the backward pass.
    """

    batch: int = 64
    repeats: int = 7
    warmup: int = 1
    seed: int = 0
    progress: float = 0.5
    classes: int | None = 10
    dtype: torch.dtype = torch.float32
    clock: Clock = "wall"
    threads: int | None = None
    device: str = "cpu"
    compile: str | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("repeats", 1), ("warmup", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise fail("bench", f"{name} must be at least {least}, not {value}")
        if self.clock == "cpu" and self.device != "cpu":
            raise fail(
                "bench", "processor time says nothing about a GPU", hint="use the wall clock"
            )


def bundled(setting: Setting, classes: int | None) -> Make:
    """The bundled networks of a setting."""

    def make(role: NetworkSignature, shape: tuple[int, ...]) -> nn.Module:
        if len(shape) != 3:
            raise fail(
                "bench",
                f"the bundled network takes (channels, height, width), not {shape}",
                hint="pass a function that makes your own network",
            )
        patch = setting.patch or choose_patch(setting.size, *shape[1:])
        config = configure(role, shape=(shape[0], shape[1], shape[2]), classes=classes, patch=patch)
        own = setting.own_blocks if len(role.heads) > 1 else 0
        return network_from_config(replace(config, size=setting.size, own_blocks=own))

    return make


def own_network(path: str) -> Make:
    """Makes the user's own network, `path/to/file.py:NAME` or `module:NAME`, whatever its role."""

    def make(role: NetworkSignature, shape: tuple[int, ...]) -> nn.Module:
        return load_network(path)

    return make


def resized(
    size: Size, *, depth: int | None = None, width: int | None = None, heads: int | None = None
) -> Size:
    """A size with some of its numbers replaced, and a name that says so."""
    changes = {"depth": depth, "width": width, "heads": heads}
    given = {n: v for n, v in changes.items() if v is not None and v != getattr(size, n)}
    if not given:
        return size
    words = "".join(f" {name} {value}" for name, value in given.items())
    return replace(size, name=f"{size.name},{words}", **given)
