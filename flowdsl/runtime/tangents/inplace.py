"""Operations that write to their arguments, and the ones that do the same without writing."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch._ops import OpOverload

from flowdsl.runtime.tangents.ledger import NotShared

_aten = torch.ops.aten

Kind = Literal["plain", "in place", "other writes"]

#: In-place operations whose tangent doesn't need the value that they overwrite.
FORGETFUL = frozenset(
    (
        _aten.add_.Tensor,
        _aten.add_.Scalar,
        _aten.sub_.Tensor,
        _aten.sub_.Scalar,
        _aten.mul_.Scalar,
        _aten.div_.Scalar,
        _aten.copy_.default,
        _aten.zero_.default,
        _aten.fill_.Scalar,
        _aten.relu_.default,
        _aten.sigmoid_.default,
        _aten.tanh_.default,
        _aten.exp_.default,
        _aten.masked_fill_.Scalar,
    )
)


@cache
def kind_of(operation: OpOverload) -> Kind:
    """Whether an operation returns something new, changes its first argument and returns it, or
    writes to its arguments in another way.
    """
    written = [
        i
        for i, argument in enumerate(operation._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if not written:
        return "plain"
    name = operation._schema.name
    return "in place" if written == [0] and name.endswith("_") else "other writes"


@cache
def functional(operation: OpOverload) -> OpOverload:
    """The operation that returns what an in-place one writes. Raises NotShared without any."""
    packet = getattr(_aten, operation._schema.name.split("::")[1].removesuffix("_"), None)
    wanted = _arguments(operation)
    for overload in packet.overloads() if packet is not None else ():
        found: OpOverload = getattr(packet, overload)
        if _arguments(found) == wanted:
            return found
    raise NotShared(f"{operation} on a value with a tangent", "write out of place")


def _arguments(operation: OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in operation._schema.arguments]
