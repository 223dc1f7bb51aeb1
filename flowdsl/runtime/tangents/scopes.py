"""Calls of modules, as far as they bound the life of what is computed inside."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from flowdsl.runtime.tangents.ledger import NotShared
from flowdsl.runtime.tangents.mode import Beside

_PLAIN = (Tensor, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class Scopes:
    """While entered, the tangents of all values that a module computes are dropped when its call
    returns, but those of its outputs; and then, of those that the caller computed before, the
    tangents of all values that it cannot reach any more.

    Watches every module in this thread. A module that works on values of this pass in another
    thread, where no mode reaches it, is a reason to refuse.
    """

    def __init__(self, mode: Beside) -> None:
        self._mode = mode
        self._thread = threading.get_ident()
        self._open: list[tuple[nn.Module, int]] = []

    def __enter__(self) -> None:
        self._handles = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
        )

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != self._thread:
            if any(isinstance(x, Tensor) and self._mode.ledger.moves(x) for x in inputs):
                self._mode.refusal = NotShared(
                    "the network runs in several threads", "use DistributedDataParallel"
                )
            return
        self._open.append((module, self._mode.ledger.mark))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        while self._open:
            opened, mark = self._open.pop()
            if opened is module:
                break
        else:
            return
        ledger = self._mode.ledger
        leaves = [output] if isinstance(output, Tensor) else tree_leaves(output)
        if all(isinstance(x, _PLAIN) for x in leaves):  # else an object that may hold anything
            ledger.close(mark, [x for x in leaves if isinstance(x, Tensor)])
        ledger.drop_unreachable(self._open[-1][1] if self._open else 0)
