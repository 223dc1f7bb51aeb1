"""Fused scaled dot-product attention, whose kernels have no forward derivative.

With P = softmax(S), S = a q kᵀ + bias, the tangent of P v is Ṗ v + P v̇, where
Ṗ = P ∘ (Ṡ − rowsum(P ∘ Ṡ)) and Ṡ = a (q̇ kᵀ + q k̇ᵀ). P is made anew, from the row sums that the
kernel returns if these are known to be such; a few rows of the batch at a time, so that the
matrices of token × token stay small. Where kernels of our own run (`kernel_attention`), there are
no such matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowdsl.runtime.nets import kernel_attention
from flowdsl.runtime.tangents.ledger import NotShared
from flowdsl.runtime.tangents.rules.registry import Tangent, filled, rule

aten = torch.ops.aten

#: Numbers in matrices of token × token that are held at a time: a cache on a CPU, little on a GPU.
_BUDGET = 1 << 17
_BUDGET_ELSEWHERE = 1 << 26


class _Attention(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    causal: bool
    scale: float
    sums: Tensor | None  # log of the row sums of exp(S)


@rule(aten._scaled_dot_product_flash_attention_for_cpu.default, tensors=3)
def _flash_cpu(args: Any, kwargs: Any, out: Any, *ts: Tensor | None) -> Tangent:
    q, k, v, dropout, causal = filled(args, None, None, None, 0.0, False)[:5]
    _without_dropout(dropout)
    bias = kwargs.get("attn_mask")
    plain = bias is None and not causal
    given = _Attention(q, k, v, bias, causal, _scale(q, kwargs), out[1] if plain else None)
    return _tangent(given, out[0], *ts), None


@rule(aten._scaled_dot_product_flash_attention.default, tensors=3)
def _flash(args: Any, kwargs: Any, out: Any, *ts: Tensor | None) -> Tangent:
    q, k, v, dropout, causal = filled(args, None, None, None, 0.0, False)[:5]
    _without_dropout(dropout)
    given = _Attention(q, k, v, None, causal, _scale(q, kwargs), None)
    return _tangent(given, out[0], *ts), *[None] * 8


@rule(aten._scaled_dot_product_efficient_attention.default, tensors=4)
def _efficient(args: Any, kwargs: Any, out: Any, *ts: Tensor | None) -> Tangent:
    q, k, v, bias, _, dropout, causal = filled(args, *[None] * 5, 0.0, False)[:7]
    _without_dropout(dropout)
    given = _Attention(q, k, v, bias, causal, _scale(q, kwargs), None)
    return _tangent(given, out[0], *_without_bias(ts)), *[None] * 3


@rule(aten._scaled_dot_product_cudnn_attention.default, tensors=4)
def _cudnn(args: Any, kwargs: Any, out: Any, *ts: Tensor | None) -> Tangent:
    q, k, v, bias, _, dropout, causal = filled(args, *[None] * 5, 0.0, False)[:7]
    _without_dropout(dropout)
    given = _Attention(q, k, v, bias, causal, _scale(q, kwargs), None)
    return _tangent(given, out[0], *_without_bias(ts)), *[None] * 8


def _scale(query: Tensor, kwargs: Any) -> float:
    scale = kwargs.get("scale")
    return query.shape[-1] ** -0.5 if scale is None else float(scale)


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
    q, heads = given.query, given.query.shape[1]
    key, value = _repeated(given.key, heads), _repeated(given.value, heads)
    moved = [None if t is None else _repeated(t, heads) for t in (dq, dk, dv)]
    bias = given.bias
    if bias is None and not given.causal:
        whole = (q, key, value, *map(_still, moved, (q, key, value)))
        if kernel_attention.usable(*whole):
            tangent: Tensor = kernel_attention.forward(*whole, given.scale)[1]
            return tangent
    if bias is not None:
        bias = bias.expand(*q.shape[:3], key.shape[2])
    found = torch.empty_like(out)  # laid out as the value is, which the network reshapes next
    for part in _parts(q, key, q.device.type):
        optional = (bias, given.sums, *moved)
        bias_, sums, *ts = (None if x is None else _matrices(x, part) for x in optional)
        piece = given._replace(
            query=_matrices(q, part),
            key=_matrices(key, part),
            value=_matrices(value, part),
            bias=bias_,
            sums=sums,
        )
        found[part] = _piece(piece, *ts).view_as(found[part])
    return found


def _still(tangent: Tensor | None, x: Tensor) -> Tensor:
    """A tangent, zero where there is none; which takes no memory."""
    return x.new_zeros(()).expand_as(x) if tangent is None else tangent


def _parts(query: Tensor, key: Tensor, device: str) -> Iterator[tuple[slice, int | slice]]:
    """Some rows of the batch at a time. On a CPU head by head: the entries of one head are a batch
    of matrices where they lie, so that no product needs a copy of them.
    """
    rows, heads, tokens, _ = query.shape
    size = tokens * key.shape[2]
    if device == "cpu":
        step, chosen = max(1, _BUDGET // size), list[int | slice](range(heads))
    else:
        step, chosen = max(1, _BUDGET_ELSEWHERE // (heads * size)), [slice(None)]
    for first in range(0, rows, step):
        yield from ((slice(first, first + step), head) for head in chosen)


def _repeated(x: Tensor, heads: int) -> Tensor:
    """With an entry for each head of the query, where several share one of the key."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _matrices(x: Tensor, part: tuple[slice, int | slice]) -> Tensor:
    """These rows and heads of a tensor, as one batch of matrices, or of vectors."""
    some = x[part]
    return some.flatten(0, 1) if some.ndim == x.ndim else some


def _piece(given: _Attention, dq: Tensor | None, dk: Tensor | None, dv: Tensor | None) -> Tensor:
    """The tangent for batches of matrices `(rows, tokens, features)`."""
    q, keys, v, scale = given.query, given.key.transpose(1, 2), given.value, given.scale
    p = _weights(given, q, keys)
    low = p.to(v.dtype)
    found = None if dv is None else torch.bmm(low, dv)
    slope = None if dq is None else torch.bmm(dq, keys)
    if dk is not None:
        moved = dk.transpose(1, 2)
        slope = torch.bmm(q, moved) if slope is None else slope.baddbmm_(q, moved)
    if slope is not None:
        dp = aten._softmax_backward_data(slope.to(p.dtype), p, -1, p.dtype).to(v.dtype)
        product = torch.bmm(dp, v) if found is None else found.baddbmm_(dp, v, alpha=scale)
        found = product.mul_(scale) if found is None else product
    assert found is not None
    return found


def _weights(given: _Attention, q: Tensor, keys: Tensor) -> Tensor:
    """P, in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    if given.sums is not None and q.dtype == wide:
        sums = given.sums.to(wide)[..., None]
        return torch.baddbmm(sums, q, keys, beta=-1, alpha=given.scale).exp_()
    scores = torch.bmm(q, keys).to(wide).mul_(given.scale)
    if given.causal:
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu_(1)
        scores.masked_fill_(later, -torch.inf)
    if given.bias is not None:
        return aten._safe_softmax(scores.add_(given.bias), -1)  # type: ignore[no-any-return]
    return torch.softmax(scores, -1)
