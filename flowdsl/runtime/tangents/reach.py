"""Whether a network can still reach a value, or autograd alone holds it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

Holder = weakref.ref[Tensor]


@cache
def unreachable() -> Callable[[Holder], bool]:
    """A test of whether nothing in Python refers to a tensor.

    It compares reference counts with those of a tensor that autograd alone holds, since what they
    include depends on the versions of Python and PyTorch. Where they don't tell the two apart, a
    tensor counts as reachable as long as it exists. To be asked only while no operation is under
    way: one that is made of others holds its intermediate values in C++.
    """
    with torch.enable_grad():
        weight = torch.ones(1, requires_grad=True)
        saved, lost, plain = weight * 2, weight * 2, weight * 2
        graph = (saved.sin(), lost.sin())
    reachable, alone = (weakref.ref(saved), weakref.ref(plain)), weakref.ref(lost)
    del lost
    count = _references(alone)

    def test(holder: Holder) -> bool:
        return holder() is None or (_held_in_cpp(holder) and _references(holder) == count)

    sound = test(alone) and not any(test(holder) for holder in reachable)
    del graph, saved, plain
    return test if sound else _gone


def _gone(holder: Holder) -> bool:
    return holder() is None


def _references(holder: Holder) -> int:
    return sys.getrefcount(holder())


def _held_in_cpp(holder: Holder) -> bool:
    uses = getattr(holder(), "_use_count", None)
    return uses is not None and uses() > 1
