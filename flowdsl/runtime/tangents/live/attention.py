"""Attention: value and tangent from one softmax, whichever kernel the network asks for."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from flowdsl.runtime.nets.attention import attention
from flowdsl.runtime.nets.duals import join, split


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if all(t is None for t in split(query, key, value)[1]):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        shared = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(shared, dim=-3) for x in (key, value))
    if scale is not None:
        query = query * (scale * query.shape[-1] ** 0.5)
    alike = query.shape == key.shape == value.shape
    if alike and attn_mask is None and not is_causal and dropout_p == 0:
        return attention(query, key, value)
    bias = _causal(query, key) if is_causal else attn_mask
    return _plain(query, key, value, bias, dropout_p)


def _plain(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float
) -> Tensor:
    """From operations that have all derivatives: a mask, or dropout, is inside."""
    scores = _multiply(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    if bias is not None and bias.dtype == torch.bool:
        scores = scores.masked_fill(~bias, -torch.inf)
    elif bias is not None:
        scores = scores + bias
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, -1, dtype=wide).to(value.dtype)
    if dropout > 0:
        weights = functional.dropout(weights, dropout)
    return _multiply(weights, value)


def _multiply(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y` where operands may stay, whose tangents then cost nothing."""
    (a, b), (da, db) = split(x, y)
    if da is None and db is None:
        return x @ y
    terms = [u @ v for u, v in ((da, b), (a, db)) if u is not None and v is not None]
    return join(a @ b, sum(terms[1:], terms[0]))


def _causal(query: Tensor, key: Tensor) -> Tensor:
    shape = (query.shape[-2], key.shape[-2])
    return torch.ones(shape, dtype=torch.bool, device=query.device).tril()


def _open(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `torch.nn.functional` that doesn't hand itself to the mode as a whole, so that
    the mode sees what it is made of.
    """
    plain = cast(FunctionType, function)

    def never(*tensors: Any) -> bool:
        return False

    names = [n for n in plain.__code__.co_names if n.startswith("has_torch_function")]
    scope = {**plain.__globals__, **dict.fromkeys(names, never)}
    opened = FunctionType(
        plain.__code__, scope, plain.__name__, plain.__defaults__, plain.__closure__
    )
    opened.__kwdefaults__ = plain.__kwdefaults__
    return opened


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.scaled_dot_product_attention: _attention,
}

#: Functions made of others, which have rules.
COMPOSED: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.multi_head_attention_forward: _open(functional.multi_head_attention_forward),
}
