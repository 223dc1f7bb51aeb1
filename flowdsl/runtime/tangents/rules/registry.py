"""The table of rules: how the tangent of an operation follows from those of its inputs.

A rule is called as `rule(args, kwargs, out, *tangents)` with the arguments and the result of an
aten operation and the tangents of its first `tensors` arguments, None for constants; at least one
is there. It returns the tangent of the result, None for zero, in the shape and type of the result;
a tuple or list of these where the operation has several results; or NotImplemented for arguments
that it doesn't know. It runs below autograd, so nothing that it does is recorded, and it must not
write to its inputs: a tangent may belong to several values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

Tangent = Tensor | Sequence[Tensor | None] | None
Rule = Callable[..., Tangent]

RULES: dict[OpOverload, tuple[int, Rule]] = {}


def rule(*operations: OpOverload, tensors: int = 1) -> Callable[[Rule], Rule]:
    """Enters a function as the rule of these operations, of whose arguments the first `tensors`
    may carry tangents; -1 for all members of the first argument, a list.
    """

    def enter(function: Rule) -> Rule:
        for operation in operations:
            RULES[operation] = (tensors, function)
        return function

    return enter


def linear(*operations: OpOverload) -> None:
    """Enters operations that are linear in their first argument: they do to the tangent what they
    do to the value.
    """
    for operation in operations:
        RULES[operation] = (1, partial(_again, operation))


def constant(*operations: OpOverload) -> None:
    """Enters operations whose results have no tangent, whatever they are given."""
    for operation in operations:
        RULES[operation] = (0, _never)


def _never(args: Any, kwargs: Any, out: Any) -> Tangent:
    raise AssertionError("a constant has no tangent")


def _again(operation: OpOverload, args: Any, kwargs: Any, out: Any, tangent: Tensor) -> Tangent:
    found: Tangent = operation(tangent, *args[1:], **kwargs)
    return found


def filled(args: tuple[Any, ...], *defaults: Any) -> tuple[Any, ...]:
    """Positional arguments, with the defaults of those that were left out."""
    return (*args, *defaults[len(args) :])


def fit(tangent: Tensor, out: Tensor) -> Tensor:
    """The tangent in the shape and type of its value."""
    if tangent.dtype != out.dtype:
        tangent = tangent.to(out.dtype)
    return tangent if tangent.shape == out.shape else tangent.expand(out.shape)


def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two tangents, None being zero."""
    if a is None:
        return b
    return a if b is None else a + b
