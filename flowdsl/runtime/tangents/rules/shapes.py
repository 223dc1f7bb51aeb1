"""Operations that move, copy, pick, pad or add up numbers: linear, or nearly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowdsl.runtime.tangents.rules.registry import Tangent, constant, filled, fit, linear, rule

aten = torch.ops.aten

linear(
    aten.alias.default,
    aten.t.default,
    aten.transpose.int,
    aten.permute.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.slice.Tensor,
    aten.select.int,
    aten.diagonal.default,
    aten.unfold.default,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
    aten.clone.default,
    aten.neg.default,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.mean.default,
    aten.mean.dim,
    aten.cumsum.default,
    aten.flip.default,
    aten.roll.default,
    aten.repeat.default,
    aten.tril.default,
    aten.triu.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.gather.default,
    aten.embedding.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.im2col.default,
    aten.col2im.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_linear1d.default,
    aten.upsample_bilinear2d.default,
    aten.upsample_bicubic2d.default,
    aten.avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten.mul.Scalar,
    aten.div.Scalar,
)


@rule(aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)
def _view(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return t.reshape(out.shape)  # the layout of a tangent may be another


@rule(aten._to_copy.default)
def _to_copy(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return aten._to_copy(t, **kwargs) if out.is_floating_point() else None


@rule(aten.add.Scalar, aten.sub.Scalar)
def _shift(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return fit(t, out)


@rule(aten.rsub.Scalar)
def _turn(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    _, _, alpha = filled(args, None, None, 1)
    return fit(t * -alpha, out)


@rule(aten.constant_pad_nd.default)
def _pad(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return aten.constant_pad_nd(t, args[1])  # type: ignore[no-any-return]


@rule(aten.max_pool2d_with_indices.default)
def _max_pool(args: Any, kwargs: Any, out: tuple[Tensor, Tensor], t: Tensor) -> Tangent:
    _, indices = out
    return t.flatten(-2).gather(-1, indices.flatten(-2)).view(indices.shape), None


def _join(operation: Any, args: Any, kwargs: Any, out: Tensor, *ts: Tensor | None) -> Tangent:
    parts = [torch.zeros_like(x) if t is None else t for x, t in zip(args[0], ts, strict=True)]
    return fit(operation(parts, *args[1:], **kwargs), out)


@rule(aten.cat.default, tensors=-1)
def _cat(args: Any, kwargs: Any, out: Tensor, *ts: Tensor | None) -> Tangent:
    return _join(aten.cat.default, args, kwargs, out, *ts)


@rule(aten.stack.default, tensors=-1)
def _stack(args: Any, kwargs: Any, out: Tensor, *ts: Tensor | None) -> Tangent:
    return _join(aten.stack.default, args, kwargs, out, *ts)


@rule(aten.copy.default, tensors=2)
def _copy(args: Any, kwargs: Any, out: Tensor, _: Tensor | None, t: Tensor | None) -> Tangent:
    return None if t is None or not out.is_floating_point() else fit(t, out)


# The results of these depend on the shape of what they are given, or on no more than an order, or
# leave the tensors altogether.
constant(
    aten.zero.default,
    aten.fill.Scalar,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.eq.Scalar,
    aten.eq.Tensor,
    aten.ne.Scalar,
    aten.ne.Tensor,
    aten.lt.Scalar,
    aten.lt.Tensor,
    aten.le.Scalar,
    aten.le.Tensor,
    aten.gt.Scalar,
    aten.gt.Tensor,
    aten.ge.Scalar,
    aten.ge.Tensor,
    aten.isnan.default,
    aten.sign.default,
    aten._local_scalar_dense.default,
)
