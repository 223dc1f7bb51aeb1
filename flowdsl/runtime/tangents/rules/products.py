"""Products of matrices and convolutions: one product for each operand that moves, none for those
that don't. Weights never do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from flowdsl.runtime.tangents.rules.registry import RULES, Tangent, fit, rule, total

aten = torch.ops.aten


def _enter(product: OpOverload) -> None:
    def bilinear(
        args: Any, kwargs: Any, out: Tensor, a: Tensor | None, b: Tensor | None
    ) -> Tangent:
        x, y = args
        left = None if a is None else product(a, y)
        return total(left, None if b is None else product(x, b))

    RULES[product] = (2, bilinear)


for _product in (aten.mm.default, aten.mv.default, aten.dot.default):
    _enter(_product)


@rule(aten.bmm.default, tensors=2)
def _bmm(args: Any, kwargs: Any, out: Tensor, a: Tensor | None, b: Tensor | None) -> Tangent:
    x, y = args
    if a is None:
        return torch.bmm(x, b)  # type: ignore[arg-type]
    found = torch.bmm(a, y)
    return found if b is None else found.baddbmm_(x, b)


def _enter_with_sum(operation: OpOverload, product: OpOverload) -> None:
    def affine(
        args: Any, kwargs: Any, out: Tensor, c: Tensor | None, a: Tensor | None, b: Tensor | None
    ) -> Tangent:
        _, x, y = args
        left = None if a is None else product(a, y)
        found = total(left, None if b is None else product(x, b))
        alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
        if found is not None and alpha != 1:
            found = found * alpha
        found = total(found, c if c is None or beta == 1 else c * beta)
        return None if found is None else fit(found, out)

    RULES[operation] = (3, affine)


_enter_with_sum(aten.addmm.default, aten.mm.default)
_enter_with_sum(aten.addmv.default, aten.mv.default)
_enter_with_sum(aten.baddbmm.default, aten.bmm.default)


@rule(aten.linear.default, tensors=3)
def _linear(
    args: Any, kwargs: Any, out: Tensor, x: Tensor | None, w: Tensor | None, b: Tensor | None
) -> Tangent:
    found = None if x is None else torch.nn.functional.linear(x, args[1])
    found = total(found, None if w is None else torch.nn.functional.linear(args[0], w))
    found = total(found, b)
    return None if found is None else fit(found, out)


@rule(aten.convolution.default, tensors=3)
def _convolution(
    args: Any, kwargs: Any, out: Tensor, x: Tensor | None, w: Tensor | None, b: Tensor | None
) -> Tangent:
    value, weight, _, *rest = args
    found = None if x is None else aten.convolution(x, weight, None, *rest)
    found = total(found, None if w is None else aten.convolution(value, w, None, *rest))
    if b is not None:
        found = total(found, b.view(-1, *[1] * (out.ndim - 2)))
    return None if found is None else fit(found, out)
