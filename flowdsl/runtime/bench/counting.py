"""What a step costs, counted instead of timed: products of matrices, network calls, live memory.

Counts have no noise. They are taken below all derivatives, where every operation that runs passes
by: those of forward-mode derivatives, of hand-written rules (`torch.autograd.Function`), and of
the backward pass alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    bmm_flop,
    flop_registry,
    sdpa_backward_flop,
    sdpa_flop,
)
from torch.utils.hooks import RemovableHandle

aten = torch.ops.aten


@dataclass(frozen=True)
class Counts:
    """One step: floating-point operations in products of matrices, convolutions and attention;
    calls of each network by role; most bytes that lived at once above the level at entry.
    """

    flops: int
    calls: Mapping[str, int]
    peak: int


def count(
    step: Callable[[], Any],
    networks: Mapping[str, nn.Module],
    known: Iterable[Tensor],
    device: torch.device,
) -> Counts:
    """Runs `step` once and counts. `known` are the tensors that exist before: weights, data."""
    flops, calls = FlopCounter(), dict.fromkeys(networks, 0)
    with _counted(networks, calls):
        if device.type == "cuda":
            with flops:
                step()
            return Counts(flops.total, calls, cuda_peak(step, device))
        memory = LiveBytes(known)
        with memory, flops:
            step()
    return Counts(flops.total, calls, memory.peak)


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the floating-point operations of products, convolutions and attention: twice the
    number of multiplications.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func._overloadpacket
        rule = _RULES.get(packet) or flop_registry.get(packet)
        if rule is not None:
            self.total += rule(*args, **kwargs, out_val=result)
        return result


def _baddbmm(_: Any, a: Any, b: Any, out_shape: Any = None, **rest: Any) -> int:
    return int(bmm_flop(a, b))


def _shaped(rule: Callable[..., Any]) -> Callable[..., int]:
    """A rule on shapes as a rule on tensors."""

    def counted(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return int(rule(*[x.shape if isinstance(x, Tensor) else x for x in args]))

    return counted


def _attention(query: Any, key: Any, value: Any, *rest: Any) -> int:
    return int(sdpa_flop(query, key, value))


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any) -> int:
    return int(sdpa_backward_flop(grad, query, key, value))


#: Rules that PyTorch's registry lacks.
_RULES: dict[Any, Callable[..., Any]] = {
    aten.baddbmm_: _shaped(_baddbmm),
    aten._scaled_dot_product_flash_attention_for_cpu: _shaped(_attention),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _shaped(_attention_backward),
}


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of every storage that operations return, until it is freed.

    What an operation allocates and frees inside is not seen; with the bundled networks this is
    within 0.4 % of what the allocator reports.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._level = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._kept = [x.untyped_storage() for x in known]
        self._seen.update(self._kept)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.layout == torch.strided:
                self._follow(x.untyped_storage())
        self.peak = max(self.peak, self._level)
        return result

    def _follow(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._level += size
        weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self._level -= size


def cuda_peak(step: Callable[[], Any], device: torch.device) -> int:
    """Most bytes of CUDA's allocator above the level at entry, during `step`."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def allocator_peak(step: Callable[[], Any]) -> int:
    """The same for the CPU's allocator, from the profiler's records: this also sees inside
    compiled code. May print a line or two of the profiler's own.
    """
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        step()
    records: list[tuple[int, int]] = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.kineto_results.events()
        if event.name() == "[memory]"
    )
    level = peak = 0
    for _, change in records:
        level += change
        peak = max(peak, level)
    return peak


@contextmanager
def _counted(networks: Mapping[str, nn.Module], calls: dict[str, int]) -> Iterator[None]:
    handles: list[RemovableHandle] = []

    def watch(role: str) -> Callable[..., None]:
        def called(*_: Any) -> None:
            calls[role] += 1

        return called

    for role, network in networks.items():
        handles.append(network.register_forward_pre_hook(watch(role)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
