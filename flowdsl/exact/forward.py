"""Derivatives of functions that treat each row by itself, made of backward ones.

In forward mode PyTorch treats an operation of a differentiated tensor with a plain one far more
slowly than the operation itself, and imports its compiler at the first of them, which takes longer
than a certificate. A function of many small operations on rows is therefore differentiated
backward, once for each entry of its result: that gives the Jacobian of every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from flowdsl.runtime.nets.duals import tangent_mode


@contextmanager
def at_primals(ctx: Any) -> Iterator[tuple[Tensor, ...]]:
    """What was saved for a forward derivative, without the tangents of that derivative itself.

    PyTorch turns forward mode off inside such a rule, and with it the derivatives of whoever
    differentiates around it: they would silently be zero. Here it is on.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        unpack: Callable[[Tensor], Any] = forward_ad.unpack_dual
        yield tuple(unpack(x).primal for x in ctx.saved_tensors)


def applied(rule: type[torch.autograd.Function], *arguments: Any) -> Any:
    """A function with derivative rules of its own, called."""
    call: Callable[..., Any] = rule.apply
    return call(*arguments)


def pulled(function: Callable[..., Any], *point: Any) -> tuple[Any, Callable[..., Any]]:
    """The value of a function, and its derivative backward."""
    value, pull = torch.func.vjp(function, *point)[:2]
    return value, pull


def row_by_row(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """`function(*arguments)`, to be differentiated in any mode and to any order.

    Arguments are floating-point, (rows, …); so is the result, each row of it a function of the same
    row of the arguments. A tensor that is given twice reaches the function as one and the same.
    """
    distinct = list({id(a): a for a in arguments}.values())
    places = [next(i for i, d in enumerate(distinct) if d is a) for a in arguments]

    def spread(*few: Tensor) -> Tensor:
        return function(*(few[i] for i in places))

    def value() -> tuple[Tensor, ...]:
        return (applied(_Value, spread, *distinct),)

    def tangent(results: tuple[Tensor, ...], *moves: Tensor | None) -> Tensor:
        point = [x.detach() for x in distinct]
        return _pushed(spread, point, moves).reshape(results[0].shape)

    mode = tangent_mode()  # it would otherwise derive every operation inside
    return value()[0] if mode is None else mode.paired(value, tangent, *distinct)


def _pushed(
    function: Callable[..., Tensor], point: Sequence[Tensor], moves: Sequence[Tensor | None]
) -> Tensor:
    """How the results, (rows, results), move with the arguments that do."""
    found = {i: move for i, move in enumerate(moves) if move is not None}

    def of_these(*some: Tensor) -> Tensor:
        whole = list(point)
        for i, x in zip(found, some, strict=True):
            whole[i] = x
        return function(*whole)

    rates = applied(_Rates, of_these, *(point[i] for i in found))
    moved = [
        (rate * move.flatten(1)[:, None]).sum(2) if move.dim() > 1 else rate * move[:, None]
        for rate, move in zip(rates, found.values(), strict=True)
    ]
    return torch.stack(moved).sum(0)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        return function(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.function, *arguments = inputs
        ctx.shape = output.shape
        ctx.save_for_backward(*arguments)
        ctx.save_for_forward(*arguments)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Tensor:
        with at_primals(ctx) as point:
            return _pushed(ctx.function, point, tangents).reshape(ctx.shape)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        rates = applied(_Rates, ctx.function, *ctx.saved_tensors)
        slopes = slope.flatten(1)
        pulled = [
            (rate * (slopes[..., None] if x.dim() > 1 else slopes)).sum(1).reshape(x.shape)
            for rate, x in zip(rates, ctx.saved_tensors, strict=True)
        ]
        return (None, *pulled)


class _Rates(torch.autograd.Function):
    """Jacobians by each argument: (rows, results, entries), without entries for (rows,)."""

    @staticmethod
    def forward(function: Callable[..., Tensor], *arguments: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [a.detach().requires_grad_() for a in arguments]
            value = function(*leaves).flatten(1)
            columns = [
                torch.autograd.grad(
                    value[:, k].sum(), leaves, retain_graph=True, materialize_grads=True
                )
                if value.requires_grad
                else [torch.zeros_like(a) for a in arguments]
                for k in range(value.shape[1])
            ]
        return tuple(map(_beside, zip(*columns, strict=True)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.function, *arguments = inputs
        ctx.save_for_backward(*arguments)
        ctx.save_for_forward(*arguments)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        with at_primals(ctx) as point:
            moves = [
                torch.zeros_like(x) if m is None else m
                for x, m in zip(point, tangents, strict=True)
            ]
            values, pull = pulled(lambda *a: _jacobians(ctx.function, *a), *point)
            # linear in the slope: its transpose moves the arguments
            _, push = pulled(pull, tuple(torch.zeros_like(v) for v in values))
            moved: tuple[Tensor, ...] = push(tuple(moves))[0]
            return moved

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        _, pull = pulled(lambda *a: _jacobians(ctx.function, *a), *ctx.saved_tensors)
        return (None, *pull(slopes))


def _jacobians(function: Callable[..., Tensor], *arguments: Tensor) -> tuple[Tensor, ...]:
    """The Jacobians as ordinary torch, to be differentiated in turn."""
    value, pull = pulled(lambda *a: function(*a).flatten(1), *arguments)
    columns = [pull(one.expand_as(value)) for one in torch.eye(value.shape[1]).to(value)]
    return tuple(map(_beside, zip(*columns, strict=True)))


def _beside(parts: Sequence[Tensor]) -> Tensor:
    """Gradients of all results by one argument, (rows, results) or (rows, results, entries)."""
    stacked = torch.stack(tuple(parts), 1)
    return stacked.flatten(2) if stacked.dim() > 2 else stacked
