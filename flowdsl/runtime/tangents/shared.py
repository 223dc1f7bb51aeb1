"""The value of a network, recorded, and its derivative beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only

from flowdsl.runtime.tangents.ledger import NotShared
from flowdsl.runtime.tangents.mode import Beside
from flowdsl.runtime.tangents.scopes import Scopes

Direction = Sequence[Tensor | float | None]


def value_and_derivative(
    network: Callable[..., Any], point: Sequence[Any], direction: Direction, /, **conditions: Any
) -> tuple[Any, Any]:
    """A network at a point, and its derivative along a direction, which carries no gradient.

    `direction` has one entry for each argument in `point`: a tensor of its shape, a number for all
    its entries, or None for one that stays. Value and gradients are those of
    `network(*point, **conditions)` bit by bit; the derivative is that of `torch.func.jvp`, for one
    further pass over the network instead of two, and without a graph of its own. The derivative has
    the structure of the value.

    Raises NotShared where this cannot be done; buffers that the network updates and random numbers
    that it drew before are then used up.
    """
    mode = Beside()
    arguments = list(point)
    for i, along in enumerate(direction):
        if along is not None:
            # A place in memory of its own: the same tensor may be given twice, and stay elsewhere.
            arguments[i] = point[i].clone()
            with torch.no_grad():
                mode.ledger.note(arguments[i], tangent_of(point[i], along))
    with _nothing_compiled(), mode, Scopes(mode):
        value = network(*arguments, **conditions)
    if mode.refusal is not None:
        raise mode.refusal
    other = next((x for x in tree_iter(value) if not isinstance(x, Tensor)), None)
    if other is not None:
        raise NotShared(f"the network returns a {type(other).__name__}", "return tensors")
    return value, tree_map_only(Tensor, lambda x: _derivative(mode, x), value)


def _nothing_compiled() -> AbstractContextManager[Any]:
    """Has functions that the network compiled run as they were written: kernels hide operations."""
    if "torch._dynamo" not in sys.modules:  # nothing was ever compiled
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def tangent_of(x: Tensor, along: Tensor | float) -> Tensor:
    """A direction in the shape, type and layout of an argument."""
    return (torch.zeros_like(x) + along).to(x)


def _derivative(mode: Beside, x: Tensor) -> Tensor:
    found = mode.ledger.find(x)
    return torch.zeros_like(x) if found is None else found
