"""A bound loss under `torch.compile`, trusted only where it was seen to compute the same.

PyTorch 2.13 has compiled such losses to wrong gradients, without a word. So the loss is compiled as
one graph or not at all, and whenever a graph was compiled (at the start, in a new phase of a run,
for another batch size), value and all gradients of that step are compared with those of the same
step as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowdsl.diagnostics import DiagnosticError, did_you_mean, fail
from flowdsl.runtime.agreement import TOLERANCE, Outcome, compare
from flowdsl.runtime.errors import first_line
from flowdsl.runtime.tangents.state import Buffers, keep_random_state

#: Value and gradients of arithmetic in half precision agree to about this much, rounded or not.
_COARSE = 0.05

_Result = tuple[Tensor, dict[str, Tensor]]


def check_backend(name: str) -> None:
    """Raises a diagnostic for a compiler that torch does not have."""
    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        raise fail(
            "compile",
            f'torch has no compiler "{name}"',
            facts=[("known", ", ".join(known))],
            hint=did_you_mean(name, known),
        )


def whole_graph(module: nn.Module, backend: str, dynamic: bool | None = None) -> Any:
    """The module, to be compiled at its first call: as one graph, with the random numbers that it
    would draw uncompiled. `dynamic` false is for one shape only; None lets numbers change from step
    to step.
    """
    # inductor would draw random numbers of its own, and dropout could not be compared
    options: dict[str, Any] | None = {"fallback_random": True} if backend == "inductor" else None
    return torch.compile(module, backend=backend, fullgraph=True, dynamic=dynamic, options=options)


class CheckedCompiled:
    """A bound loss, compiled; called as the loss is.

    Raises DiagnosticError where the loss does not compile as one graph, and where it computes
    something else then.
    """

    def __init__(self, module: nn.Module, backend: str = "inductor") -> None:
        check_backend(backend)
        self.module = module
        self.backend = backend
        self.checks = 0
        self._compiled = whole_graph(module, backend)

    def __call__(self, data: Tensor, **given: Any) -> _Result:
        """Value and terms. A step that compiled something is taken three times: compiled and as it
        was written, which are compared, and once more.
        """
        before = self._graphs()
        rewind = self._keep(data)
        result = self._run(data, given)
        if self._graphs() == before:
            return result
        self._check(result, data, given, rewind)
        rewind()
        return self._run(data, given)

    def _keep(self, data: Tensor) -> Callable[[], None]:
        """What puts everything back that a step changes: random numbers, and buffers the first
        time.
        """
        rewind = keep_random_state((data,))
        if self.checks:
            return rewind
        buffers = Buffers(self.module)

        def restore() -> None:
            rewind()
            buffers.restore()

        return restore

    def _run(self, data: Tensor, given: Mapping[str, Any]) -> _Result:
        try:
            found: _Result = self._compiled(data, **given)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._told_uncompiled(data, given)
            raise fail(
                "compile",
                f"the loss does not compile as one graph: {first_line(error)}",
                hint="leave it uncompiled; or compile the objective with fixed_shapes=True, and "
                "find what of the network torch.compile cannot follow with `flowdsl doctor "
                "--compile`",
            ) from error
        return found

    def _told_uncompiled(self, data: Tensor, given: Mapping[str, Any]) -> None:
        """Raises what is wrong with the loss as it was written, if anything is: a compiler hides
        it.
        """
        try:
            with torch.no_grad():
                self.module(data, **given)
        except DiagnosticError as error:
            raise error from None
        except Exception:
            return

    def _check(
        self, result: _Result, data: Tensor, given: Mapping[str, Any], rewind: Callable[[], None]
    ) -> None:
        self.checks += 1
        found = self._outcome(result[0])
        rewind()
        reference = self._outcome(self.module(data, **given)[0])
        agreement = compare(found, reference, data.dtype)
        coarse = torch.is_autocast_enabled(data.device.type) or data.dtype not in TOLERANCE
        tolerance = _COARSE if coarse else agreement.tolerance
        if not agreement.within(tolerance):
            raise fail(
                "compile",
                f"compiled by {self.backend}, the loss computes something else: {agreement.text}",
                facts=[("allowed", f"{tolerance:.0e}")],
                hint="leave it uncompiled, or find the layer: call .contiguous() after patches are "
                "embedded, and keep autograd.Functions with a jvp out of the network",
            )

    def _outcome(self, value: Tensor) -> Outcome:
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        return Outcome(
            float(value.detach()),
            {n: g for n, g in zip(named, grads, strict=True) if g is not None},
        )

    @staticmethod
    def _graphs() -> int:
        from torch._dynamo.utils import counters

        return int(counters["stats"]["unique_graphs"])
