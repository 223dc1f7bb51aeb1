"""Products: one more product for each operand that moves, none for weights, which don't."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowdsl.runtime.nets.duals import join, split

_Product = Callable[..., Tensor]


def product(apply: _Product, operands: tuple[Tensor, ...], bias: Tensor | None = None) -> Tensor:
    """`apply(*operands, bias)`, linear in each operand, as a dual tensor.

    `apply` must take None for the bias, and isn't given one where there can be none.
    """
    biases = () if bias is None else (bias,)
    values, tangents = split(*operands, *biases)
    moving = [i for i, t in enumerate(tangents) if t is not None]
    if not moving or len(operands) in moving:
        return apply(*operands, bias)
    parts = values[: len(operands)]
    value = apply(*parts, bias)
    terms = [apply(*parts[:i], tangents[i], *parts[i + 1 :], None) for i in moving]
    tangent = terms[0]
    for term in terms[1:]:
        tangent = tangent + term
    return join(value, tangent.to(value.dtype))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return product(functional.linear, (input, weight), bias)


def _bilinear(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return product(functional.bilinear, (left, right, weight), bias)


def _convolution(
    function: _Product,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *options: Any,
    **named: Any,
) -> Tensor:
    def apply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return function(x, w, b, *options, **named)

    return product(apply, (input, weight), bias)


def _two(function: _Product, left: Tensor, right: Tensor) -> Tensor:
    def apply(x: Tensor, y: Tensor, _: None) -> Tensor:
        return function(x, y)

    return product(apply, (left, right))


def _matmul(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    return _two(torch.matmul, input, other) if out is None else torch.matmul(input, other, out=out)


def _matmul_reversed(other: Tensor, input: Tensor) -> Tensor:
    return _two(torch.matmul, input, other)


def _mm(input: Tensor, mat2: Tensor, *, out: Tensor | None = None) -> Tensor:
    return _two(torch.mm, input, mat2) if out is None else torch.mm(input, mat2, out=out)


def _bmm(input: Tensor, mat2: Tensor, *, out: Tensor | None = None) -> Tensor:
    return _two(torch.bmm, input, mat2) if out is None else torch.bmm(input, mat2, out=out)


def _addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    return beta * input + alpha * _two(torch.mm, mat1, mat2)


def _baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    return beta * input + alpha * _two(torch.bmm, batch1, batch2)


def _einsum(equation: Any, *operands: Any) -> Tensor:
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str):  # operands and subscripts in turn
        return torch.einsum(equation, *operands)

    def apply(*factors: Tensor | None) -> Tensor:
        return torch.einsum(equation, *factors[:-1])

    return product(apply, operands)


_CONVOLUTIONS = (
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
)

RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: _linear,
    functional.bilinear: _bilinear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    Tensor.__rmatmul__: _matmul_reversed,
    torch.mm: _mm,
    Tensor.mm: _mm,
    torch.bmm: _bmm,
    Tensor.bmm: _bmm,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.baddbmm: _baddbmm,
    Tensor.baddbmm: _baddbmm,
    torch.einsum: _einsum,
    **{function: partial(_convolution, function) for function in _CONVOLUTIONS},
}
