"""A plain reference of attention and its derivatives, and how to compare with it.

The reference spells the formula with einsum; its tangents come from reverse mode applied twice, so
no forward rule, neither PyTorch's nor ours, is on both sides of a comparison.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

EXACT = 1e-10


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    weights = (scores - scores.logsumexp(-1, keepdim=True)).exp()
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def tangent_by_reverse(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Output and tangent: the transpose of the transpose of the derivative."""
    output = function(*primals)
    probe = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, primals, probe, create_graph=True)
    paired = sum((p * t).sum() for p, t in zip(pulled, tangents, strict=True))
    (tangent,) = torch.autograd.grad(paired, probe, create_graph=True)
    return output, tangent


def draw(
    shape: tuple[int, ...] = (2, 3, 5, 4), count: int = 6, seed: int = 0, dtype: Any = torch.float64
) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(count)]
    return [x.to(dtype).requires_grad_() for x in tensors]


def gap(ours: Any, theirs: Any) -> float:
    """The largest relative deviation between two collections of tensors."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True)]
    assert pairs
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in pairs)


class Kernels(TorchDispatchMode):
    """Counts the kernels that run, and those that write a token × token buffer."""

    def __init__(self, tokens: int = 0) -> None:
        super().__init__()
        self.tokens, self.calls, self.square = tokens, Counter[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        fresh = isinstance(out, Tensor) and not func.is_view and out.ndim > 1
        self.square += bool(fresh and tuple(out.shape[-2:]) == (self.tokens, self.tokens))
        return out

    @property
    def products(self) -> int:
        return sum(n for name, n in self.calls.items() if name in ("bmm", "baddbmm", "baddbmm_"))


def weigh(output: Tensor, tangent: Tensor) -> Tensor:
    return output.sin().sum() + (tangent**2 + output * tangent).sum()
