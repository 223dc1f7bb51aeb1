"""Does the loss give every parameter its gradient?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowdsl.runtime.doctor.derivatives import value
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient
from flowdsl.runtime.doctor.remedies import known_remedy
from flowdsl.runtime.errors import first_line

QUESTION = "does every parameter get a gradient?"
AFTER = ("forward_derivative",)


def look(patient: Patient) -> Finding:
    """A step of the loss in every phase; then, which of those without a gradient matter?"""
    network = patient.awake()
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not learning:
        return Finding(
            "fail", "no parameter requires a gradient",
            remedy="call requires_grad_(True) on what is to be trained",
        )  # fmt: skip
    try:
        finite = _backward(patient, network)
    except Exception as error:
        return Finding(
            "fail",
            f"the loss has no backward pass: {first_line(error)}",
            remedy=known_remedy(
                f"{type(error).__name__}: {error}",
                "look for operations in place on what is needed later, and for detach()",
            ),
            place=patient.role.line,
        )
    if not finite:
        return Finding(
            "fail",
            "the loss is not finite",
            remedy="look for overflow, and for roots and divisions at times that are equal",
            place=patient.role.line,
        )
    without = [n for n, p in learning.items() if p.grad is None or not bool(p.grad.any())]
    figures = {"parameters": float(len(learning)), "without": float(len(without))}
    if not without:
        return ok(f"all {len(learning)} parameters get a gradient", **figures)
    cut = [name for name in without if _matters(patient, name)]
    if cut:
        return Finding(
            "fail",
            f"{_names(cut)} matter{'s' if len(cut) == 1 else ''} for the result but get"
            f"{'s' if len(cut) == 1 else ''} no gradient",
            figures | {"cut": float(len(cut))},
            remedy="look for detach(), no_grad(), .data or numpy between there and the result",
            place=patient.role.line,
        )
    return Finding(
        "note",
        f"{_names(without)} change{'s' if len(without) == 1 else ''} nothing and get"
        f"{'s' if len(without) == 1 else ''} no gradient",
        figures,
        remedy="leave them out, or tell DistributedDataParallel: find_unused_parameters=True",
    )


def _backward(patient: Patient, network: nn.Module) -> bool:
    """Gradients of every step, added up; whether all losses were finite."""
    module = patient.bound(network)
    values = [step.run(module) for step in patient.steps]
    return all(bool(torch.isfinite(value)) for value in values)


def _matters(patient: Patient, name: str) -> bool:
    """Whether the result of some call changes with the parameter."""
    network = patient.awake().eval()
    with torch.no_grad():
        before = [value(network, call) for call in patient.calls]
        parameter = dict(network.named_parameters())[name]
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        parameter.add_(0.1 * noise.to(parameter))
        after = [value(network, call) for call in patient.calls]
    return any(_differ(a, b) for a, b in zip(before, after, strict=True))


def _differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
