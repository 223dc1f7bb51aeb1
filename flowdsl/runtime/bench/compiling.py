"""`torch.compile` of a step, trusted only after it was checked against the step as it is.

PyTorch 2.13 has compiled such losses to silently wrong gradients, and to nothing at all: a network
compiled by itself runs uncompiled when the derivative stands around it. So the number of graphs is
looked at, and value and gradients are compared, every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

from flowdsl.runtime.agreement import Agreement, Outcome, compare, outcome
from flowdsl.runtime.compiling import check_backend, whole_graph
from flowdsl.runtime.errors import first_line

__all__ = ["check_backend", "compiled", "verify_compiled"]


def compiled(module: nn.Module, backend: str) -> Any:
    """The module, to be compiled as one graph, for fixed shapes, at its first call."""
    return whole_graph(module, backend, dynamic=False)


def verify_compiled(
    step: Callable[[], Any],
    parameters: Mapping[str, nn.Parameter],
    reference: Outcome,
    dtype: torch.dtype,
) -> tuple[Agreement | None, str]:
    """Runs a compiled step for the first time and compares it with the step as it is.

    Returns how far they agree, and why the compiled one must be refused, or nothing.
    """
    before = int(counters["stats"]["unique_graphs"])
    try:
        found = outcome(parameters, step)
    except Exception as error:
        return None, f"torch.compile fails: {first_line(error)}"
    agreement = compare(found, reference, dtype)
    if int(counters["stats"]["unique_graphs"]) == before:
        return agreement, "torch.compile compiled nothing, without an error"
    if not agreement.ok:
        return agreement, f"compiled, it computes something else: {agreement.text}"
    return agreement, ""
