"""By what is the derivative of its attention computed?"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient
from flowdsl.runtime.nets.kernel_attention import chosen

QUESTION = "how is its attention differentiated?"
AFTER = ("calls",)

_FUSED = "_scaled_dot_product"


def look(patient: Patient) -> Finding | None:
    """Looks for PyTorch's fused attention in an evaluation, in training mode, for else modules of
    PyTorch fuse more; says by what a loss derives it.
    """
    if not patient.derivatives:
        return None
    call, network = patient.evaluations[0], patient.awake()
    watch = _Watch()
    with torch.no_grad(), watch:
        network(*call.arguments, **call.conditions)
    if not watch.found:
        return None
    places = {"here": torch.device("cpu")}
    if torch.cuda.is_available():
        places["on the graphics processor"] = torch.device("cuda", torch.cuda.current_device())
    ways = "; ".join(f"{place}, by {chosen(device)}" for place, device in places.items())
    return ok(f"attention has a rule of its own: {ways}; compiled, by products of matrices")


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Whether fused attention runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.found = self.found or func._schema.name.startswith(f"aten::{_FUSED}")
        return func(*args, **(kwargs or {}))
