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
    returns, but those of its outputs; and in a `Sequential`, all that one member computes but its
    outputs, and what went into it.

    Watches every module in this thread. Modules at work in other threads are a reason to refuse:
    no mode reaches them.
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
        if self._open and type(self._open[-1][0]) is nn.Sequential:
            mark = self._open[-1][1]
        if isinstance(output, Tensor):
            self._mode.ledger.close(mark, (output,))
            return
        leaves = tree_leaves(output)
        if all(isinstance(x, _PLAIN) for x in leaves):  # else an object that may hold anything
            self._mode.ledger.close(mark, [x for x in leaves if isinstance(x, Tensor)])
