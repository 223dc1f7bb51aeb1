"""Normalisation of dual numbers in few kernels, with a reverse rule by hand.

With y = s (x − μ), s = 1 / √(var x + ε) over a group of n numbers, and the symmetric Jacobian
J = s (I − 1 1ᵀ/n − y yᵀ/n), the tangent of y is ẏ = J ẋ. From gradients g of y and h of ẏ,

    gradient of ẋ  =  J h
    gradient of x  =  J g − s/n · (⟨h, ẏ⟩ y + ⟨y, ẋ⟩ J h + ⟨y, h⟩ ẏ)

because ∂s/∂x = −s² y/n and ∂y/∂x = J. The kernel that PyTorch has for the gradient of a layer norm
is J times a vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def dual_norm(x: Tensor, dx: Tensor, shape: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """`x` normalised over its last dimensions, of this shape, and the tangent along `dx`."""
    output: tuple[Tensor, Tensor, Tensor, Tensor] = _DualNorm.apply(x, dx, shape, eps)  # type: ignore[no-untyped-call]
    return output[:2]


class _DualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, dx: Tensor, shape: tuple[int, ...], eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, mean, scale = _aten.native_layer_norm(x, shape, None, None, eps)
        return y, _jacobian(dx, x, shape, mean, scale), mean, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, dx, ctx.shape, ctx.eps = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(x, dx, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dx, y, dy, mean, scale = ctx.saved_tensors
        g, h = grads[:2]
        if torch.is_grad_enabled():  # to be derived once more
            return *_differentiable(x, dx, ctx.shape, ctx.eps, (g, h)), None, None
        of_x = None if g is None else _jacobian(g, x, ctx.shape, mean, scale)
        if h is None:
            return of_x, None, None, None
        of_dx = _jacobian(h, x, ctx.shape, mean, scale)
        of_x = torch.zeros_like(x) if of_x is None else of_x
        share = scale / -torch.Size(ctx.shape).numel()
        for one, other, vector in ((h, dy, y), (y, dx, of_dx), (y, h, dy)):
            along = torch.linalg.vecdot(
                one.flatten(-len(ctx.shape)), other.flatten(-len(ctx.shape))
            )
            of_x.addcmul_(vector, along.view(scale.shape) * share)
        return of_x, of_dx, None, None


def spelt_out(
    x: Tensor, dx: Tensor, dims: tuple[int, ...], eps: float, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """The same over any dimensions, and without the mean if need be, from operations that have all
    derivatives.
    """
    if centred:
        x = x - x.mean(dims, keepdim=True)
        dx = dx - dx.mean(dims, keepdim=True)
    scale = torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
    y = x * scale
    return y, scale * (dx - y * (y * dx).mean(dims, keepdim=True))


def _differentiable(
    x: Tensor, dx: Tensor, shape: tuple[int, ...], eps: float, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    outputs = spelt_out(x, dx, tuple(range(-len(shape), 0)), eps)
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
    wanted = [v for v in (x, dx) if v.requires_grad]
    found = torch.autograd.grad(
        [y for y, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
    )
    gradient = iter(found)
    return tuple(next(gradient) if v.requires_grad else None for v in (x, dx))


def _jacobian(v: Tensor, x: Tensor, shape: tuple[int, ...], mean: Tensor, scale: Tensor) -> Tensor:
    found: Tensor = _aten.native_layer_norm_backward(
        v.contiguous(), x, shape, mean, scale, None, None, [True, False, False]
    )[0]
    return found
