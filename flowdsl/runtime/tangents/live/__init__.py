"""Derivatives that are themselves learnt from: rules on dual numbers for the layers of any network.

Inside `torch.func.jvp`, PyTorch multiplies by the tangent of every weight, which is zero, at full
price (pytorch#69687); it has no forward derivative of fused attention; and the gradient of its
forward derivative of `layer_norm`, `batch_norm` and `instance_norm` is wrong without a warning
(2.13: by about a hundred per cent). While `Live` is entered, a network computes value and tangent
by the rules here instead, both with their reverse graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

from flowdsl.runtime.nets.duals import innermost_transform
from flowdsl.runtime.tangents.live import attention, norms, products

_Function = Callable[..., Any]

_RULES: dict[_Function, _Function] = {**products.RULES, **norms.RULES, **attention.RULES}


class Live(TorchFunctionMode):
    """Applies the rules to what is called inside, where `torch.func.jvp` is the innermost."""

    def __torch_function__(
        self,
        func: _Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if innermost_transform() == "jvp":
            if func in _RULES:
                return _RULES[func](*args, **named)
            if func in attention.COMPOSED:
                with self:
                    return attention.COMPOSED[func](*args, **named)
        return func(*args, **named)
