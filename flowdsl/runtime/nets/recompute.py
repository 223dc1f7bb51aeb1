"""Blocks whose activations are computed again in the backward pass, to save their memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowdsl.diagnostics import fail
from flowdsl.runtime.nets.duals import innermost_transform


def through(block: nn.Module, *inputs: Tensor | None, again: bool) -> Tensor:
    """A block's output. With `again`, the backward pass computes what is inside once more: about a
    third more time, for memory that grows with the inputs of the blocks alone.

    Inside `torch.func.jvp` everything is kept: PyTorch cannot compute such a block again (2.13).
    """
    if again and torch.is_grad_enabled() and innermost_transform() == "none":
        return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
    return cast(Tensor, block(*inputs))


@contextmanager
def recomputing(networks: Iterable[nn.Module]) -> Iterator[None]:
    """While entered, those of the networks that can do so recompute their blocks."""
    able: list[Any] = [n for n in networks if hasattr(n, "recompute")]
    before = [n.recompute for n in able]
    for network in able:
        network.recompute = True
    try:
        yield
    finally:
        for network, was in zip(able, before, strict=True):
            network.recompute = was


def recompute_blocks(networks: Iterable[nn.Module]) -> None:
    """Has the networks recompute their blocks from now on. Raises a diagnostic where none can."""
    able: list[Any] = [n for n in networks if hasattr(n, "recompute")]
    if not able:
        raise fail(
            "network",
            "no network here can compute its blocks again",
            hint="the bundled DiT can; in your own, use torch.utils.checkpoint where no derivative "
            "is taken",
        )
    for network in able:
        network.recompute = True
