"""Normalisation and softmax.

The Jacobian of a normalisation without gain is symmetric: of x ↦ s (x − μ), with mean μ and scale
s = 1 / √(var + ε) over a group of n, it is s (I − 1 1ᵀ/n − y yᵀ/n). So the kernel that carries
gradients backward carries tangents forward, in one pass over memory; the gain comes afterwards.
That of softmax, diag p − p pᵀ, is symmetric too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from flowdsl.runtime.tangents.rules.registry import Tangent, filled, fit, rule

aten = torch.ops.aten


@rule(aten._softmax.default)
def _softmax(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return fit(aten._softmax_backward_data(t, out, args[1], out.dtype), out)


@rule(aten._safe_softmax.default)
def _safe_softmax(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return fit(aten._softmax_backward_data(t.to(out.dtype), out, args[1], out.dtype), out)


@rule(aten._log_softmax.default)
def _log_softmax(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return fit(t - (out.exp() * t).sum(args[1], keepdim=True), out)


@rule(aten.native_layer_norm.default, tensors=4)
def _layer_norm(
    args: Any, kwargs: Any, out: Any, t: Tensor | None, _: None, w: Tensor | None, b: Tensor | None
) -> Tangent:
    x, shape, gain, _, _ = args
    y, mean, scale = out
    found = None
    if t is not None:
        found = aten.native_layer_norm_backward(
            t.contiguous(), x, shape, mean, scale, None, None, [True, False, False]
        )[0]
        found = found if gain is None else found * gain
    if w is not None:
        plain = aten.native_layer_norm(x, shape, None, None, args[4])[0]
        found = plain * w if found is None else found.addcmul(plain, w)
    if b is not None:
        found = b if found is None else found + b
    assert found is not None
    return fit(found, y), None, None


@rule(aten._fused_rms_norm.default, tensors=3)
def _rms_norm(
    args: Any, kwargs: Any, out: Any, t: Tensor | None, _: None, w: Tensor | None
) -> Tangent:
    x, shape, gain, *_ = args
    y, scale = out
    found = None
    if t is not None:
        found = aten._fused_rms_norm_backward(t.contiguous(), x, shape, scale, None, [True, False])[
            0
        ]
        found = found if gain is None else found * gain
    if w is not None:
        plain = x * scale
        found = plain * w if found is None else found.addcmul(plain, w)
    assert found is not None
    return fit(found, y), None


@rule(aten.native_group_norm.default)
def _group_norm(args: Any, kwargs: Any, out: Any, t: Tensor) -> Tangent:
    x, gain, _, batch, channels, pixels, groups, _ = args
    y, mean, scale = out
    t = t.contiguous(memory_format=suggest_memory_format(x))
    found = aten.native_group_norm_backward(
        t, x, mean, scale, None, batch, channels, pixels, groups, [True, False, False]
    )[0]
    if gain is not None:
        found = found * gain.view(-1, *[1] * (x.ndim - 2))
    return fit(found, y), None, None


@rule(aten.native_batch_norm.default, aten.cudnn_batch_norm.default)
def _batch_norm(args: Any, kwargs: Any, out: Any, t: Tensor) -> Tangent:
    x, gain, _, mean, variance, train, _, eps = args
    y, batch_mean, batch_scale = out[:3]
    found = aten.native_batch_norm_backward(
        t.contiguous(), x, None, mean, variance, batch_mean, batch_scale, train, eps,
        [True, False, False],
    )[0]  # fmt: skip
    if gain is not None:
        found = found * gain.view(-1, *[1] * (x.ndim - 2))
    return fit(found, y), *[None] * (len(out) - 1)


@rule(aten.var.correction)
def _var(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return _variance_slope(args, kwargs, out, t)


@rule(aten.std.correction)
def _std(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return _variance_slope(args, kwargs, out, t).div_(2 * out)


@rule(aten.var_mean.correction)
def _var_mean(args: Any, kwargs: Any, out: Any, t: Tensor) -> Tangent:
    _, dims = filled(args, None, None)
    keep = kwargs.get("keepdim", False)
    mean = t.mean() if dims is None else t.mean(dims, keepdim=keep)
    return _variance_slope(args, kwargs, out[0], t), fit(mean, out[1])


def _variance_slope(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tensor:
    """2 Σ (x − μ) ẋ / (n − correction)."""
    x, dims = filled(args, None, None)
    dims = dims or list(range(x.ndim))
    correction = kwargs.get("correction")
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    centred = x - x.mean(dims, keepdim=True)
    found = (centred * t).sum(dims, keepdim=kwargs.get("keepdim", False))
    return fit(found.mul_(2 / (count - (1 if correction is None else correction))), out)


@rule(aten.linalg_vector_norm.default)
def _vector_norm(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    x, order, dims, keep = filled(args, None, 2, None, False)[:4]
    if order != 2:
        return NotImplemented  # type: ignore[no-any-return]
    dims = list(range(x.ndim)) if dims is None else dims
    along = (x * t).sum(dims, keepdim=keep)
    # at zero, where the norm has no derivative, PyTorch's choice
    return fit((along / out).masked_fill_(out == 0, 0), out)
