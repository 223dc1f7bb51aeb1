"""The Triton kernels of `kernels` as operations of PyTorch, and where they run.

Being operations, they are counted, seen by modes, and known to fake tensors. They have no reverse
rule by themselves; `attention` gives them one.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

#: NVIDIA's generation from which on there is what the kernels are compiled to.
OLDEST = (8, 0)


class Blocks(NamedTuple):
    """Queries and keys in a block, and warps and stages of a kernel that works on it."""

    rows: int
    columns: int
    warps: int
    stages: int


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels run on these: `(batch, heads, tokens, width)` each, of one type and
    width, on a graphics processor with Triton installed; in Triton's interpreter, anywhere.
    """
    first = tensors[0]
    if any(x.ndim != 4 or x.dtype != first.dtype or x.device != first.device for x in tensors):
        return False
    if any(x.shape[-1] != first.shape[-1] or x.numel() == 0 for x in tensors):
        return False
    if blocks(first.shape[-1], first.dtype) is None or not _installed():
        return False
    return interpreted() or (first.dtype != torch.float64 and _fits(first.device))


def chosen(device: torch.device) -> str:
    """By what attention is derived on a device, in words."""
    if interpreted() and _installed():
        return "Triton kernels in the interpreter"
    if device.type != "cuda":
        return "products of matrices"
    if not _installed():
        return "products of matrices, for Triton is not installed"
    if not _fits(device):
        return "products of matrices, for this device is older than the Triton kernels allow"
    return "Triton kernels (heads of at most 128 features, 64 in float32)"


def interpreted() -> bool:
    """Whether Triton was told to interpret kernels, which shows what they compute, slowly."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def blocks(width: int, dtype: torch.dtype) -> Blocks | None:
    """How the kernels cut up heads of this width. None for those that would not stay on chip:
    these take 100 KiB of shared memory at most, and their sums stay in registers.
    """
    if dtype in (torch.float16, torch.bfloat16):
        return (
            Blocks(64, 32, 8, 2) if width <= 64 else Blocks(32, 32, 8, 2) if width <= 128 else None
        )
    return Blocks(16, 16, 4, 1) if width <= 64 else None


@cache
def _fits(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.library.custom_op("flowdsl::dual_attention", mutates_args=())
def forward(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output and tangent of attention, laid out such that the heads of a token are neighbours, and
    two numbers per query for `backward`. All inputs are `(batch, heads, tokens, width)`, in any
    layout; the scores are `scale q kᵀ`.
    """
    inputs = (q, k, v, dq, dk, dv)
    o, do, lse, mean = _outputs(q)
    strides = [tuple(x.stride()) for x in (*inputs, o, do)]
    numbers = (q.shape[1], q.shape[2], k.shape[2], q.shape[3])
    _launch("dual_forward", q, q.shape[2], scale, (*inputs, o, do, lse, mean, *strides, *numbers))
    return o, do, lse, mean


@forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(q)


def _outputs(q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for output, tangent, and two numbers per query."""
    batch, heads, tokens, width = q.shape
    room = [q.new_empty(batch, tokens, heads, width).transpose(1, 2) for _ in range(2)]
    lines = [q.new_empty(batch, heads, tokens, dtype=_wide(q.dtype)) for _ in range(2)]
    return room[0], room[1], lines[0], lines[1]


@torch.library.custom_op("flowdsl::dual_attention_backward", mutates_args=())
def backward(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    o: Tensor, do: Tensor, lse: Tensor, mean: Tensor, g: Tensor, dg: Tensor | None,
    scale: float,
) -> list[Tensor]:  # fmt: skip
    """The gradients of the six inputs from those of output and tangent; of q, k and v alone where
    none comes from the tangent.
    """
    dual = dg is not None
    outgrad = g if dg is None else dg
    found = _gradients(q, k, v, dual)
    gq, gk, gv, gdq, gdk, gdv = found if dual else (*found, *found)
    inner, outer = (torch.empty_like(lse) for _ in range(2))
    inputs, further = (q, k, v, dq, dk, dv), (lse, mean, inner, outer)
    numbers = (q.shape[1], q.shape[2], k.shape[2], q.shape[3], dual)

    def strides(*tensors: Tensor) -> list[tuple[int, ...]]:
        return [tuple(x.stride()) for x in tensors]

    tensors: tuple[Tensor, ...] = (*inputs, o, do, g, outgrad, gq, gdq)
    _launch(
        "backward_queries", q, q.shape[2], scale,
        (*tensors[:10], lse, mean, gq, gdq, inner, outer, *strides(*tensors), *numbers),
    )  # fmt: skip
    tensors = (*inputs, g, outgrad, gk, gv, gdk, gdv)
    _launch(
        "backward_keys", q, k.shape[2], scale,
        (*tensors[:8], *further, gk, gv, gdk, gdv, *strides(*tensors), *numbers),
    )  # fmt: skip
    return found


@backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    o: Tensor, do: Tensor, lse: Tensor, mean: Tensor, g: Tensor, dg: Tensor | None,
    scale: float,
) -> list[Tensor]:  # fmt: skip
    return _gradients(q, k, v, dg is not None)


def _gradients(q: Tensor, k: Tensor, v: Tensor, dual: bool) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (q, k, v) * (2 if dual else 1)]


def _launch(name: str, q: Tensor, lines: int, scale: float, arguments: tuple[Any, ...]) -> None:
    """Runs a kernel for every head and every block of `lines`."""
    chosen = settings(q.shape[-1], q.dtype, scale)
    block = chosen["COLUMNS" if name == "backward_keys" else "ROWS"]
    grid = (q.shape[0] * q.shape[1], -(-lines // block))
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        getattr(_kernels(), name)[grid](*arguments, **chosen)


def settings(width: int, dtype: torch.dtype, scale: float) -> dict[str, Any]:
    """What a kernel is specialised for. Products of float32 are exact as far as a sum of three in
    tf32 is, unless torch was told that less will do (`set_float32_matmul_precision`).
    """
    import triton
    import triton.language as tl

    found = blocks(width, dtype)
    assert found is not None
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "SCALE": scale,
        "ROWS": found.rows,
        "COLUMNS": found.columns,
        "FEATURES": max(16, triton.next_power_of_2(width)),
        "WIDE": tl.float64 if dtype == torch.float64 else tl.float32,
        "PRECISION": "interpreted" if interpreted() else "tf32x3" if exact else "tf32",
        "num_warps": found.warps,
        "num_stages": found.stages,
    }


@cache
def _kernels() -> ModuleType:
    from flowdsl.runtime.nets import kernels

    return kernels


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _products(count: int, q: Any, k: Any) -> int:
    batch, heads, queries, width = q
    return int(2 * count * batch * heads * queries * k[2] * width)


@register_flop_formula(torch.ops.flowdsl.dual_attention)
def _forward_flops(q: Any, k: Any, *rest: Any, **named: Any) -> int:
    return _products(6, q, k)


@register_flop_formula(torch.ops.flowdsl.dual_attention_backward)
def _backward_flops(q: Any, k: Any, *rest: Any, **named: Any) -> int:
    """Scores and slopes are made anew in each of two kernels."""
    dual = rest[-2] is not None
    return _products(21 if dual else 7, q, k)
