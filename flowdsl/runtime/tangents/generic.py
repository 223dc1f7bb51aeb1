"""The tangent of an operation that has no rule of its own, from PyTorch's forward derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import enable_reentrant_dispatch
from torch.utils._pytree import tree_flatten, tree_unflatten

from flowdsl.runtime.tangents.ledger import NotShared
from flowdsl.runtime.tangents.rules.registry import Tangent

_aten = torch.ops.aten

#: Views with the memory of their input and another meaning: a place in memory no longer says which.
_AMBIGUOUS = (_aten._conj.default, _aten._neg_view.default, _aten.view.dtype)

_PYTHON = torch._C.DispatchKeySet(torch._C.DispatchKey.Python) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.PythonTLSSnapshot
)


def derive(
    find: Callable[[Any], Tensor | None],
    operation: OpOverload,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    out: Any,
) -> Tangent:
    """The tangent of `out = operation(*args, **kwargs)`, at the price of doing it again.

    `find` tells the tangents of tensors. Raises NotShared where PyTorch knows no forward
    derivative, where the operation draws random numbers, or is not PyTorch's own.
    """
    check(operation)
    flat, structure = tree_flatten((args, dict(kwargs)))
    pairs = [(i, t) for i, t in enumerate(map(find, flat)) if t is not None]
    if not pairs or not any(_real(x) for x in tree_flatten(out)[0]):
        return None

    def moved(*tensors: Tensor) -> Any:
        full = list(flat)
        for (i, _), x in zip(pairs, tensors, strict=True):
            full[i] = x
        positional, named = tree_unflatten(full, structure)
        return operation(*positional, **named)

    values = tuple(flat[i].detach() for i, _ in pairs)
    try:
        # As if called from the outside, where forward derivatives are, yet past the mode at work.
        with (
            enable_reentrant_dispatch(),
            torch._C._ExcludeDispatchKeyGuard(_PYTHON),
            torch.no_grad(),
        ):
            found: Tangent = torch.func.jvp(moved, values, tuple(t for _, t in pairs))[1]
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise NotShared(
            f"{operation} has no forward derivative: {str(error).splitlines()[0]}",
            "write it with operations that have one",
        ) from None
    return found


def check(operation: OpOverload) -> None:
    """Raises NotShared for operations whose tangent nobody can know."""
    if operation.namespace != "aten":
        raise NotShared(
            f"{operation} is not an operation of PyTorch itself",
            "use the plain PyTorch version of that layer",
        )
    if torch.Tag.nondeterministic_seeded in operation.tags:
        raise NotShared(
            f"{operation} draws random numbers with a law that depends on the state",
            "draw noise of a fixed law and transform it",
        )
    if operation in _AMBIGUOUS:
        raise NotShared(f"{operation}", "use real tensors, and cast instead of reinterpreting")


def _real(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
