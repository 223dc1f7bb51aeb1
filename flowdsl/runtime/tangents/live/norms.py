"""Normalisation with a forward derivative that can itself be derived.

With y = s (x − μ), where s = 1 / √(var + ε), the tangent is ẏ = s (ẋ − mean ẋ − y mean(y ẋ)).
Both are spelt out, or have a reverse rule of their own, so that the gradients of both are right.
Computed in float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowdsl.runtime.nets.duals import is_nested, join, split
from flowdsl.runtime.tangents.live.dual_norm import dual_norm, spelt_out


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not _moves(input):
        return functional.layer_norm(input, normalized_shape, weight, bias, eps)
    dims = tuple(range(-len(normalized_shape), 0))
    return _scaled(input, dims, eps, weight, bias)


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    if not _moves(input):
        return functional.rms_norm(input, normalized_shape, weight, eps)
    dims = tuple(range(-len(normalized_shape), 0))
    tiny = torch.finfo(input.dtype).eps if eps is None else eps
    return _scaled(input, dims, tiny, weight, None, centred=False)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or running_mean is not None or not _moves(input):
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    dims = (0, *range(2, input.ndim))
    return _scaled(input, dims, eps, _by_channel(weight, input), _by_channel(bias, input))


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats or not _moves(input) or running_mean is not None:
        return functional.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    dims = tuple(range(2, input.ndim))
    return _scaled(input, dims, eps, _by_channel(weight, input), _by_channel(bias, input))


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    # PyTorch's own derivative is right, but only for this layout
    return functional.group_norm(input.contiguous(), num_groups, weight, bias, eps)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    gated, gate = input.chunk(2, dim)
    return gated * torch.sigmoid(gate)


def _scaled(
    x: Tensor,
    dims: tuple[int, ...],
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    centred: bool = True,
) -> Tensor:
    """The normalised `x`, times the weight, plus the bias, as a dual tensor."""
    (value,), (tangent,) = split(x)
    assert tangent is not None
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    slope = tangent.to(wide.dtype)
    last = centred and dims == tuple(range(-len(dims), 0))
    if last and torch.is_grad_enabled() and not (torch.compiler.is_compiling() or is_nested()):
        y, dy = dual_norm(wide, slope, tuple(x.shape[-len(dims) :]), eps)
    else:
        y, dy = spelt_out(wide, slope, dims, eps, centred)
    kind = wide.dtype if _kept_wide(x) else x.dtype
    if any(p is not None and _moves(p) for p in (weight, bias)):
        dual = join(y, dy)
        dual = dual if weight is None else dual * weight
        return (dual if bias is None else dual + bias).to(kind)
    if weight is not None:
        y, dy = y * weight, dy * weight
    return join((y if bias is None else y + bias).to(kind), dy.to(kind))


def _kept_wide(x: Tensor) -> bool:
    """Autocast has these operations return float32."""
    return x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)


def _moves(x: Tensor) -> bool:
    return split(x)[1][0] is not None


def _by_channel(x: Tensor | None, like: Tensor) -> Tensor | None:
    return None if x is None else x.view(-1, *[1] * (like.ndim - 2))


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    functional.batch_norm: _batch_norm,
    functional.instance_norm: _instance_norm,
    functional.group_norm: _group_norm,
    functional.glu: _glu,
}
