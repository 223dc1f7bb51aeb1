"""Scaled dot-product attention with a forward derivative of its own.

PyTorch's fused attention kernels have no forward derivative, and its plain fallback computes the
softmax anew for the tangent. Here output and tangent of a dual input are computed together and
share the attention matrix P:

    S = a q kᵀ             P = softmax(S)   o = P v
    Ṡ = a (q̇ kᵀ + q k̇ᵀ)   Ṗ = J Ṡ         ȯ = Ṗ v + P v̇      J Y = P ∘ (Y − rowsum(P ∘ Y))

On a graphics processor with Triton, kernels of our own do this without ever holding P
(`kernel_attention`); elsewhere, products of matrices do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowdsl.runtime.nets import kernel_attention
from flowdsl.runtime.nets.duals import innermost_transform, is_dual, is_nested, join, split


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`softmax(query keyᵀ / √head_dim) value` with derivatives forward, backward, and backward
    through forward.

    All three are `(batch, heads, tokens, head_dim)`, and so is the result. Where no derivative but
    reverse mode is around, this is PyTorch's fused kernel (derivable once); under `torch.func.jvp`
    it is the dual formula above; anywhere else the plain formula, which can be derived in any
    order. Under autocast the products are taken in its type, the softmax in float32.
    """
    query, key, value = (_autocast(x) for x in (query, key, value))
    transform = innermost_transform()
    if transform == "jvp":
        return _under_jvp(query, key, value)
    if transform == "none" and not any(is_dual(x) for x in (query, key, value)):
        return functional.scaled_dot_product_attention(query, key, value)
    return plain_attention(query, key, value)


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same from elementary operations, with the derivatives that PyTorch has for them."""
    scores = (query * query.shape[-1] ** -0.5) @ _t(key)
    return _softmax(scores).to(value.dtype) @ value


def dual_attention(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor]:
    """Output and tangent from elementary operations; everything is `(…, tokens, head_dim)`."""
    scale = q.shape[-1] ** -0.5
    q, dq, keys = q * scale, dq * scale, _t(k)
    p = _softmax(q @ keys)
    slope = (dq @ keys + q @ _t(dk)).to(p.dtype)
    dp = (p * (slope - (p * slope).sum(-1, keepdim=True))).to(v.dtype)
    p = p.to(v.dtype)
    return p @ v, dp @ v + p @ dv


def _under_jvp(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    values, tangents = split(query, key, value)
    if all(t is None for t in tangents):
        return plain_attention(query, key, value)
    filled = (
        torch.zeros_like(x) if t is None else t for x, t in zip(values, tangents, strict=True)
    )
    inputs = (*values, *filled)
    # The reverse rules by hand are for the everyday case. A compiler fuses elementary operations by
    # itself, and further transforms around can only derive those.
    by_itself = not torch.compiler.is_compiling() and not is_nested()
    if by_itself and kernel_attention.usable(*inputs):
        return join(*_KernelAttention.call(*inputs))
    rows = [x.reshape(-1, *x.shape[-2:]) for x in inputs]
    if not by_itself:
        output, tangent = dual_attention(*rows)
    elif torch.is_grad_enabled():
        output, tangent = _DualAttention.call(*rows)
    else:
        output, tangent, _, _ = _fused_dual_attention(*rows)
    return join(output.view(value.shape), tangent.view(value.shape))


def _fused_dual_attention(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`dual_attention` in few kernels that cannot be derived; also returns P and Ṗ."""
    scale = q.shape[-1] ** -0.5
    q, dq, keys = q * scale, dq * scale, _t(k)
    p = _softmax(torch.bmm(q, keys))
    slope = torch.bmm(dq, keys).baddbmm_(q, _t(dk)).to(p.dtype)
    dp = _jacobian(slope, p).to(v.dtype)
    p = p.to(v.dtype)
    return torch.bmm(p, v), torch.bmm(dp, v).baddbmm_(p, dv), p, dp


class _DualAttention(torch.autograd.Function):
    """`dual_attention` with a reverse rule by hand: 6 products forward, 12 backward, and two
    buffers of token × token kept in between.
    """

    @classmethod
    def call(cls, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        output, tangent, _, _ = cls.apply(*inputs)  # type: ignore[no-untyped-call]
        return output, tangent

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _fused_dual_attention(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs, *output[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, p, dp = ctx.saved_tensors
        g, dg = grads[:2]
        if torch.is_grad_enabled():  # to be derived once more: P and Ṗ must be functions again
            return _differentiable_backward(inputs, g, dg)
        if dg is not None:
            return _dual_backward(inputs, p, dp, g, dg)
        return (None,) * 6 if g is None else (*_value_backward(inputs, p, g), None, None, None)


class _KernelAttention(torch.autograd.Function):
    """The same by kernels that keep two numbers per query instead of the two buffers."""

    @classmethod
    def call(cls, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        output, tangent, _, _ = cls.apply(*inputs)  # type: ignore[no-untyped-call]
        return output, tangent

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        scale = inputs[0].shape[-1] ** -0.5
        found: tuple[Tensor, ...] = kernel_attention.forward(*inputs, scale)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, output = list(ctx.saved_tensors[:6]), ctx.saved_tensors[6]
        g, dg = grads[:2]
        if torch.is_grad_enabled():  # to be derived once more
            return _differentiable_backward(inputs, g, dg)
        if g is None and dg is None:
            return (None,) * 6
        given = torch.zeros_like(output) if g is None else g
        scale = output.shape[-1] ** -0.5
        found = kernel_attention.backward(*ctx.saved_tensors, given, dg, scale)
        return tuple(found) if dg is not None else (*found, None, None, None)


def _dual_backward(
    inputs: list[Tensor], p: Tensor, dp: Tensor, g: Tensor | None, dg: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the six inputs from gradients `g` of the output and `dg` of the tangent.

    With A = g vᵀ + ġ v̇ᵀ, C = ġ vᵀ and E = Ṗ ∘ (C − rowsum(P ∘ C)), the gradient of S is
    J A + E − P rowsum(E), and that of Ṡ is J C.
    """
    q, k, v, dq, dk, dv = inputs
    scale = q.shape[-1] ** -0.5
    wide = _wide(p.dtype)
    weights = p.to(wide)
    gv = torch.bmm(_t(dp), dg)
    a, c = torch.bmm(dg, _t(dv)), torch.bmm(dg, _t(v)).to(wide)
    if g is not None:
        gv.baddbmm_(_t(p), g)
        a.baddbmm_(g, _t(v))
    slopes = _jacobian(c, weights).to(p.dtype)
    e = (c - torch.linalg.vecdot(weights, c).unsqueeze(-1)).mul_(dp)
    scores = _jacobian(a.to(wide), weights).add_(e)
    scores = scores.addcmul_(weights, e.sum(-1, keepdim=True), value=-1).to(p.dtype)
    return (
        torch.bmm(scores, k).baddbmm_(slopes, dk).mul_(scale),
        torch.bmm(_t(scores), q).baddbmm_(_t(slopes), dq).mul_(scale),
        gv,
        torch.bmm(slopes, k).mul_(scale),
        torch.bmm(_t(slopes), q).mul_(scale),
        torch.bmm(_t(p), dg),
    )


def _value_backward(inputs: list[Tensor], p: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value when no gradient flows through the tangent."""
    q, k, v = inputs[:3]
    scale = q.shape[-1] ** -0.5
    wide = _wide(p.dtype)
    scores = _jacobian(torch.bmm(g, _t(v)).to(wide), p.to(wide)).to(p.dtype)
    return (
        torch.bmm(scores, k).mul_(scale),
        torch.bmm(_t(scores), q).mul_(scale),
        torch.bmm(_t(p), g),
    )


def _differentiable_backward(
    inputs: list[Tensor], g: Tensor | None, dg: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients as functions of everything, by deriving the elementary operations."""
    pairs = zip(dual_attention(*inputs), (g, dg), strict=True)
    outputs, weights = zip(*[(y, w) for y, w in pairs if w is not None], strict=True)
    wanted = [x for x in inputs if x.requires_grad]
    found = torch.autograd.grad(outputs, wanted, weights, create_graph=True, allow_unused=True)
    gradient = iter(found)
    return tuple(next(gradient) if x.requires_grad else None for x in inputs)


def _autocast(x: Tensor) -> Tensor:
    """As autocast would cast an operand of a product; it doesn't see into the rules here."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1, dtype=_wide(scores.dtype))


def _jacobian(y: Tensor, p: Tensor) -> Tensor:
    """`J Y = P ∘ (Y − rowsum(P ∘ Y))` in one kernel; J is symmetric, so it serves both ways."""
    product: Tensor = torch.ops.aten._softmax_backward_data(y, p, -1, p.dtype)
    return product


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _t(x: Tensor) -> Tensor:
    return x.transpose(-1, -2)
