"""Operations that work number by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from flowdsl.runtime.tangents.rules.registry import RULES, Tangent, filled, fit, rule, total

aten = torch.ops.aten

#: f'(x) ẋ from x, f(x) and ẋ.
_UNARY: dict[OpOverload, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    aten.silu.default: lambda x, y, t: aten.silu_backward(t, x),
    aten.sigmoid.default: lambda x, y, t: aten.sigmoid_backward(t, y),
    aten.tanh.default: lambda x, y, t: aten.tanh_backward(t, y),
    aten.mish.default: lambda x, y, t: aten.mish_backward(t, x),
    aten.hardswish.default: lambda x, y, t: aten.hardswish_backward(t, x),
    aten.relu.default: lambda x, y, t: aten.threshold_backward(t, y, 0),
    aten.sin.default: lambda x, y, t: x.cos().mul_(t),
    aten.cos.default: lambda x, y, t: x.sin().neg_().mul_(t),
    aten.exp.default: lambda x, y, t: t * y,
    aten.expm1.default: lambda x, y, t: torch.addcmul(t, t, y),
    aten.log.default: lambda x, y, t: t / x,
    aten.log1p.default: lambda x, y, t: t / (1 + x),
    aten.sqrt.default: lambda x, y, t: t / (2 * y),
    aten.rsqrt.default: lambda x, y, t: y.pow(3).mul_(-0.5).mul_(t),
    aten.reciprocal.default: lambda x, y, t: y.square().neg_().mul_(t),
    aten.abs.default: lambda x, y, t: x.sign().mul_(t),
    aten.erf.default: lambda x, y, t: x.square().neg_().exp_().mul_(2 / torch.pi**0.5).mul_(t),
}


def _enter(operation: OpOverload, slope: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    def unary(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
        return fit(slope(args[0], out, t), out)

    RULES[operation] = (1, unary)


for _operation, _slope in _UNARY.items():
    _enter(_operation, _slope)


@rule(aten.gelu.default)
def _gelu(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return aten.gelu_backward(t, args[0], **kwargs)  # type: ignore[no-any-return]


@rule(aten.leaky_relu.default)
def _leaky_relu(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    _, slope = filled(args, None, 0.01)
    return aten.leaky_relu_backward(t, args[0], slope, False)  # type: ignore[no-any-return]


@rule(aten.elu.default)
def _elu(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    x, alpha, scale, inner = filled(args, None, 1, 1, 1)
    return aten.elu_backward(t, alpha, scale, inner, False, x)  # type: ignore[no-any-return]


@rule(aten.softplus.default)
def _softplus(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    x, beta, threshold = filled(args, None, 1, 20)
    return aten.softplus_backward(t, x, beta, threshold)  # type: ignore[no-any-return]


@rule(aten.pow.Tensor_Scalar)
def _pow(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    x, exponent = args
    if exponent == 0:
        return None
    if exponent == 2:
        return fit((x * t).mul_(2), out)
    return fit(x.pow(exponent - 1).mul_(exponent).mul_(t), out)


@rule(aten.add.Tensor, tensors=2)
def _add(args: Any, kwargs: Any, out: Tensor, a: Tensor | None, b: Tensor | None) -> Tangent:
    return _sum(kwargs.get("alpha", 1), out, a, b)


@rule(aten.sub.Tensor, tensors=2)
def _sub(args: Any, kwargs: Any, out: Tensor, a: Tensor | None, b: Tensor | None) -> Tangent:
    return _sum(-kwargs.get("alpha", 1), out, a, b)


def _sum(factor: float, out: Tensor, a: Tensor | None, b: Tensor | None) -> Tangent:
    if b is None:
        assert a is not None
        return fit(a, out)
    if a is None:
        return fit(b if factor == 1 else b * factor, out)
    if factor == 1 and b.is_contiguous():
        a, b = b, a  # the sum is laid out as its first operand
    return fit(torch.add(a, b, alpha=factor), out)


@rule(aten.mul.Tensor, tensors=2)
def _mul(args: Any, kwargs: Any, out: Tensor, a: Tensor | None, b: Tensor | None) -> Tangent:
    x, y = args
    if b is None:
        assert a is not None
        return fit(a * y, out)
    if a is None:
        return fit(x * b, out)
    product = fit(a * y, out)
    if 0 in product.stride() or not product.dtype == x.dtype == b.dtype:
        return fit(product + x * b, out)
    return product.addcmul_(x, b)


@rule(aten.div.Tensor, tensors=2)
def _div(args: Any, kwargs: Any, out: Tensor, a: Tensor | None, b: Tensor | None) -> Tangent:
    _, y = args
    if b is None:
        assert a is not None
        return fit(a / y, out)
    part = out * b
    return fit((part.neg() if a is None else a - part) / y, out)


@rule(aten.addcmul.default, tensors=3)
def _addcmul(
    args: Any, kwargs: Any, out: Tensor, a: Tensor | None, b: Tensor | None, c: Tensor | None
) -> Tangent:
    _, x, y = args
    value = kwargs.get("value", 1)
    product = total(None if b is None else b * y, None if c is None else x * c)
    if product is not None and value != 1:
        product = product * value
    found = total(a, product)
    return None if found is None else fit(found, out)


@rule(aten.lerp.Scalar, aten.lerp.Tensor, tensors=3)
def _lerp(
    args: Any, kwargs: Any, out: Tensor, a: Tensor | None, b: Tensor | None, c: Tensor | None
) -> Tangent:
    x, y, weight = args
    found = None if c is None else (y - x) * c
    found = total(found, None if a is None else a * (1 - weight))
    found = total(found, None if b is None else b * weight)
    return None if found is None else fit(found, out)


@rule(aten.where.self, tensors=3)
def _where(
    args: Any, kwargs: Any, out: Tensor, _: None, a: Tensor | None, b: Tensor | None
) -> Tangent:
    zero = out.new_zeros(())
    found = torch.where(args[0], zero if a is None else a, zero if b is None else b)
    return fit(found, out)


@rule(aten.masked_fill.Scalar)
def _masked_fill(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return fit(t.masked_fill(args[1], 0), out)


@rule(aten.clamp.default)
def _clamp(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    x, low, high = filled(args, None, None, None)
    inside = torch.ones_like(x, dtype=torch.bool)
    inside = inside if low is None else inside & (x >= low)
    inside = inside if high is None else inside & (x <= high)
    return fit(t * inside, out)


@rule(aten.clamp_min.default)
def _clamp_min(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return fit(t * (args[0] >= args[1]), out)


@rule(aten.clamp_max.default)
def _clamp_max(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tangent:
    return fit(t * (args[0] <= args[1]), out)


@rule(aten.native_dropout.default)
def _dropout(args: Any, kwargs: Any, out: tuple[Tensor, Tensor], t: Tensor) -> Tangent:
    _, probability, train = args
    if train is False:
        return t, None
    scale = 0.0 if probability == 1 else 1 / (1 - probability)
    return aten.native_dropout_backward(t, out[1], scale), None
