"""Small networks with weights that matter, batches for them, and how to compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowdsl.runtime.contract import NULL_LABEL, Argument
from flowdsl.runtime.nets import (
    NetworkConfig,
    Size,
    network_from_config,
)

TINY = Size("tiny", depth=2, width=16, heads=2)
SHAPE = (2, 4, 6)


def arguments(text: str) -> tuple[Argument, ...]:
    """`z:state t:time` as arguments."""
    return tuple(Argument(*part.split(":")) for part in text.split())  # type: ignore[arg-type]


def config(
    call: str = "z:state t:time r:time",
    conditions: str = "label:label w:scalar",
    heads: str = "u:state",
    **changes: Any,
) -> NetworkConfig:
    base = NetworkConfig(
        "u", arguments(call), arguments(conditions), arguments(heads), SHAPE, 3, TINY, 2
    )
    return replace(base, **changes)


def stirred(settings: NetworkConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A network whose zeros are replaced, so that every part matters."""
    g = torch.Generator().manual_seed(seed)
    network = network_from_config(settings, generator=g)
    for p in network.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3, generator=g)
    return network.to(dtype)


def batch(rows: int = 3, shape: tuple[int, ...] = SHAPE, seed: int = 1, dtype: Any = torch.float64):
    g = torch.Generator().manual_seed(seed)
    z, dz = (torch.randn(rows, *shape, generator=g, dtype=torch.float64) for _ in range(2))
    t, r, w = (torch.rand(rows, generator=g, dtype=torch.float64) for _ in range(3))
    label = torch.tensor([NULL_LABEL, 0, 2, 1][:rows])
    return (*(x.to(dtype) for x in (z, t, r, w)), label, dz.to(dtype))


def gap(ours: Any, theirs: Any) -> float:
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True)]
    assert pairs
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in pairs)


def closed(network: Any, label: Tensor, w: Tensor) -> Callable[..., Tensor]:
    return lambda z, t, r: network(z, t, r, label=label, w=w)
