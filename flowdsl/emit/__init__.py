"""From a graph to readable torch source, and from source to a loss.

The names below are resolved on first use, so that reading a spec never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowdsl.emit.glue import compile_objective, emit_objective
    from flowdsl.emit.module import emit
    from flowdsl.emit.signature import signature

_HOMES = {
    "compile_objective": "glue",
    "emit_objective": "glue",
    "emit": "module",
    "signature": "signature",
}

__all__ = ["compile_objective", "emit", "emit_objective", "signature"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(name)
