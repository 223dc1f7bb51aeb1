"""Fused scaled dot-product attention, whose kernels have no forward derivative.

With P = softmax(S), S = a q kᵀ + bias, the tangent of P v is Ṗ v + P v̇, where
Ṗ = P ∘ (Ṡ − rowsum(P ∘ Ṡ)) and Ṡ = a (q̇ kᵀ + q k̇ᵀ). P is made anew, from the row sums that the
kernel returns if these are known to be such; a few rows of the batch at a time, so that the
matrices of token × token stay small.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowdsl.runtime.tangents.ledger import NotShared
from flowdsl.runtime.tangents.rules.registry import Tangent, filled, rule

aten = torch.ops.aten

#: Numbers in a matrix of token × token that is held at a time: a cache on a CPU, little on a GPU.
_BUDGET = {"cpu": 1 << 17}
_BUDGET_ELSEWHERE = 1 << 26


class _Attention(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    causal: bool
    scale: float | None
    sums: Tensor | None  # log of the row sums of exp(S)


@rule(aten._scaled_dot_product_flash_attention_for_cpu.default, tensors=3)
def _flash_cpu(args: Any, kwargs: Any, out: Any, *ts: Tensor | None) -> Tangent:
    q, k, v, dropout, causal = filled(args, None, None, None, 0.0, False)[:5]
    _without_dropout(dropout)
    bias = kwargs.get("attn_mask")
    plain = bias is None and not causal
    given = _Attention(q, k, v, bias, causal, kwargs.get("scale"), out[1] if plain else None)
    return _tangent(given, out[0], *ts), None


@rule(aten._scaled_dot_product_flash_attention.default, tensors=3)
def _flash(args: Any, kwargs: Any, out: Any, *ts: Tensor | None) -> Tangent:
    q, k, v, dropout, causal = filled(args, None, None, None, 0.0, False)[:5]
    _without_dropout(dropout)
    given = _Attention(q, k, v, None, causal, kwargs.get("scale"), None)
    return _tangent(given, out[0], *ts), *[None] * 8


@rule(aten._scaled_dot_product_efficient_attention.default, tensors=4)
def _efficient(args: Any, kwargs: Any, out: Any, *ts: Tensor | None) -> Tangent:
    q, k, v, bias, _, dropout, causal = filled(args, *[None] * 5, 0.0, False)[:7]
    _without_dropout(dropout)
    given = _Attention(q, k, v, bias, causal, kwargs.get("scale"), None)
    return _tangent(given, out[0], *_without_bias(ts)), *[None] * 3


@rule(aten._scaled_dot_product_cudnn_attention.default, tensors=4)
def _cudnn(args: Any, kwargs: Any, out: Any, *ts: Tensor | None) -> Tangent:
    q, k, v, bias, _, dropout, causal = filled(args, *[None] * 5, 0.0, False)[:7]
    _without_dropout(dropout)
    given = _Attention(q, k, v, bias, causal, kwargs.get("scale"), None)
    return _tangent(given, out[0], *_without_bias(ts)), *[None] * 8


def _without_dropout(probability: float) -> None:
    if probability > 0:
        raise NotShared(
            "dropout inside a fused attention kernel", "set its dropout to 0, or use the plain one"
        )


def _without_bias(ts: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    if ts[3] is not None:
        raise NotShared("an attention bias that depends on the state", "add it to the scores")
    return ts[:3]


def _tangent(
    given: _Attention, out: Tensor, dq: Tensor | None, dk: Tensor | None, dv: Tensor | None
) -> Tensor:
    q, k, v = given.query, given.key, given.value
    budget = _BUDGET.get(q.device.type, _BUDGET_ELSEWHERE)
    rows = max(1, budget // (q.shape[1] * q.shape[2] * k.shape[2]))
    if rows >= len(q):
        return _piece(given, out, dq, dk, dv)
    found = torch.empty_like(out)
    for first in range(0, len(q), rows):
        piece = slice(first, first + rows)
        part = given._replace(
            query=q[piece],
            key=k[piece],
            value=v[piece],
            bias=_rows(given.bias, piece, len(q)),
            sums=None if given.sums is None else given.sums[piece],
        )
        ts = (None if t is None else t[piece] for t in (dq, dk, dv))
        found[piece] = _piece(part, out[piece], *ts)
    return found


def _rows(bias: Tensor | None, piece: slice, count: int) -> Tensor | None:
    varies = bias is not None and bias.ndim == 4 and len(bias) == count
    return bias[piece] if varies and bias is not None else bias


def _piece(
    given: _Attention, out: Tensor, dq: Tensor | None, dk: Tensor | None, dv: Tensor | None
) -> Tensor:
    scale = given.query.shape[-1] ** -0.5 if given.scale is None else given.scale
    heads = given.query.shape[1]
    q = _flat(given.query, heads)
    keys, v = _flat(given.key, heads).transpose(1, 2), _flat(given.value, heads)
    p = _weights(given, q, keys, scale)
    low = p.to(v.dtype)
    found = None if dv is None else torch.bmm(low, _flat(dv, heads))
    slope = None if dq is None else torch.bmm(_flat(dq, heads), keys)
    if dk is not None:
        moved = _flat(dk, heads).transpose(1, 2)
        slope = torch.bmm(q, moved) if slope is None else slope.baddbmm_(q, moved)
    if slope is not None:
        dp = aten._softmax_backward_data(slope.to(p.dtype), p, -1, p.dtype).to(v.dtype)
        product = torch.bmm(dp, v) if found is None else found.baddbmm_(dp, v, alpha=scale)
        found = product.mul_(scale) if found is None else product
    assert found is not None
    return found.view(*given.query.shape[:-1], -1)


def _weights(given: _Attention, q: Tensor, keys: Tensor, scale: float) -> Tensor:
    """P, in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    if given.sums is not None and q.dtype == wide:
        sums = given.sums.reshape(-1, q.shape[1], 1).to(wide)
        return torch.baddbmm(sums, q, keys, beta=-1, alpha=scale).exp_()
    scores = torch.bmm(q, keys).to(wide).mul_(scale)
    if given.causal:
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(later, -torch.inf)
    if given.bias is not None:
        shape = (*given.query.shape[:3], given.key.shape[2])
        scores.add_(given.bias.expand(shape).reshape(scores.shape))
        return aten._safe_softmax(scores, -1)  # type: ignore[no-any-return]
    return torch.softmax(scores, -1)


def _flat(x: Tensor, heads: int) -> Tensor:
    """`(batch, heads, tokens, features)` as a batch of matrices, shared heads repeated."""
    if x.shape[1] != heads:
        x = x.repeat_interleave(heads // x.shape[1], dim=1)
    return x.reshape(-1, *x.shape[2:])
