"""Rules on dual numbers: how a layer computes its output and its forward derivative together.

`torch.func.jvp` carries a dual tensor, a value and its tangent, through a network. A layer that
knows a better rule than PyTorch's takes the pair apart, computes both, and puts them together
again. This is the right place for such a rule: Dynamo traces it faithfully, while it ignores the
`jvp` of a `torch.autograd.Function` inside a compiled `torch.func.jvp` without a word
(pytorch#192985); and the reverse graphs of value and tangent are recorded as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import TransformType, maybe_current_level, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

Transform = Literal["none", "jvp", "other"]
_F = TypeVar("_F", bound=Callable[..., object])


#: Whether the bundled layers leave derivatives to PyTorch; see `pytorch_rules`.
_LEFT_TO_PYTORCH: ContextVar[bool] = ContextVar("left to PyTorch", default=False)


#: The heads whose derivative is wanted, where not all are; and whether what runs leads to no other.
_MOVING: ContextVar[tuple[str, ...] | None] = ContextVar("heads with a derivative", default=None)
_STILL: ContextVar[bool] = ContextVar("needs no derivative", default=False)


@contextmanager
def moving_heads(names: tuple[str, ...]) -> Iterator[None]:
    """While entered, networks that compute head by head need the derivatives of these only."""
    token = _MOVING.set(names)
    try:
        yield
    finally:
        _MOVING.reset(token)


@contextmanager
def leads_to(head: str) -> Iterator[None]:
    """A network enters this around what serves one of its heads alone: no derivative is taken
    beside it where that of the head isn't wanted.
    """
    moving = None if torch.compiler.is_compiling() else _MOVING.get()
    if moving is None or head in moving:
        yield
        return
    token = _STILL.set(True)
    try:
        yield
    finally:
        _STILL.reset(token)


def is_still() -> bool:
    """Whether no derivative is wanted of what runs now."""
    return _STILL.get()


@contextmanager
def pytorch_rules() -> Iterator[None]:
    """While entered, the bundled layers are what anyone would write: their forward derivatives are
    PyTorch's own, zero products and all. To measure what the rules here save.
    """
    token = _LEFT_TO_PYTORCH.set(True)
    try:
        yield
    finally:
        _LEFT_TO_PYTORCH.reset(token)


def _constant(function: _F) -> _F:
    """What `torch.compiler.assume_constant_result` does, which imports the whole compiler for it.

    Dynamo takes the answers while it traces, where they are right, and guards on the transforms
    around a compiled function.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def innermost_transform() -> Transform:
    """The transform of torch.func that sees an operation first, here and now."""
    top = peek_interpreter_stack()
    if top is None:
        return "none"
    ruled = top.key() == TransformType.Jvp and not _LEFT_TO_PYTORCH.get()
    return "jvp" if ruled else "other"


class TangentMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that computes tangents beside a pass that is recorded as always."""

    def paired(
        self,
        value: Callable[[], tuple[Tensor, ...]],
        rule: Callable[..., Tensor],
        *inputs: Tensor,
    ) -> Tensor:
        """The first result of `value()`, which runs out of this mode's sight and is recorded, with
        the tangent `rule(results, *tangents)`, which is not.

        `tangents` are those of `inputs`, None for constants; without any the rule isn't asked. It
        may not write to them.
        """
        raise NotImplementedError


@_constant
def tangent_mode() -> TangentMode | None:
    """The mode that wants a tangent beside each value, where it is the first to see what runs."""
    mode = _get_current_dispatch_mode()
    return mode if isinstance(mode, TangentMode) else None


@_constant
def is_nested() -> bool:
    """Whether more than one transform of torch.func is at work."""
    return (maybe_current_level() or 0) > 1


def split(*tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Values and tangents in the innermost `torch.func.jvp`; a tangent has the type of its value.

    Only for where `innermost_transform()` is "jvp". Under `forward_ad.dual_level` alone, reverse
    mode may run inside and would miss the tangents that are split off here.
    """
    pairs = [forward_ad.unpack_dual(x) for x in tensors]  # type: ignore[no-untyped-call]
    values = tuple(x if t is None else p for x, (p, t) in zip(tensors, pairs, strict=True))
    tangents = tuple(None if t is None else t.to(p.dtype) for p, t in pairs)
    return values, tangents


def join(value: Tensor, tangent: Tensor) -> Tensor:
    """The dual tensor of a value and its tangent."""
    dual: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return dual


def product(x: Tensor, y: Tensor, dx: Tensor | None, dy: Tensor | None) -> Tensor | None:
    """The tangent of `x * y`, a new tensor."""
    if dx is None or dy is None:
        return dx * y if dx is not None else None if dy is None else x * dy
    first = dx * y
    fits = _takes(first, x) and _takes(first, dy)
    return first.addcmul_(x, dy) if fits else first + x * dy


def total(found: Tensor | None, other: Tensor | None) -> Tensor:
    """The sum of two tangents, of which one is there; the first is written to."""
    if found is None or other is None:
        one = other if found is None else found
        assert one is not None
        return one
    return found.add_(other) if _takes(found, other) else found + other


def _takes(x: Tensor, y: Tensor) -> bool:
    """Whether `y` can be added in place, both having as many dimensions."""
    return x.dtype == y.dtype and all(a >= b for a, b in zip(x.shape, y.shape, strict=True))


def is_dual(x: Tensor) -> bool:
    """Whether `x` carries a tangent of `forward_ad.dual_level`, without any transform around.

    No while compiling: to ask there makes Dynamo believe that no derivative follows later on.
    """
    if torch.compiler.is_compiling():
        return False
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
