"""Where the objective's gradient flows through a derivative: is that gradient right?

Not a matter of course: PyTorch's `layer_norm`, for one, has a forward derivative whose gradient is
wrong without a warning (2.13).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from flowdsl.runtime.doctor.calls import Call
from flowdsl.runtime.doctor.derivatives import forward_derivative
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient
from flowdsl.runtime.doctor.remedies import known_remedy
from flowdsl.runtime.errors import first_line, place_of

QUESTION = "is the gradient through its derivative right?"
AFTER = ("derivative",)

TOLERANCE = 1e-4


def look(patient: Patient) -> Finding | None:
    """Compares the slope of the derivative along a random change of all weights."""
    calls = [call for call in patient.derivatives if call.gradient]
    if not patient.derivatives:
        return None
    if not calls:
        return ok("not needed: no gradient flows through a derivative of this objective")
    double = patient.precise is not None
    network = copy.deepcopy(patient.precise if patient.precise is not None else patient.settled)
    worst = 0.0
    for call in calls:
        try:
            worst = max(worst, _error(network, call.to(torch.float64) if double else call, double))
        except Exception as error:
            where = place_of(error)
            return Finding(
                "fail",
                f"no gradient through {call.text}: {first_line(error)}",
                remedy=known_remedy(
                    f"{type(error).__name__}: {error}",
                    "replace the operation by one that can be derived twice",
                )
                + (f"; it is at {where}" if where else ""),
                place=patient.role.line,
            )
    allowed = TOLERANCE if double else 0.05
    if not worst <= allowed:
        return Finding(
            "fail",
            f"the gradient through the derivative is wrong: off by {worst:.0e} from a difference "
            "quotient of the derivative",
            {"error": worst},
            remedy="an operation has a forward derivative that cannot itself be derived: "
            "torch's layer_norm is one (2.13); write the norm out in elementary operations, or use "
            "rms_norm",
            place=patient.role.line,
        )
    return ok(f"off by {worst:.0e} from a difference quotient", error=worst)


def _error(network: nn.Module, call: Call, double: bool) -> float:
    """The relative error of the slope that gradients imply, against a central difference."""
    generator = torch.Generator().manual_seed(0)
    weights = [p for p in network.parameters() if p.is_floating_point()]
    changes = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in weights]
    length = sum(float(c.square().sum()) for c in changes) ** 0.5
    scale = sum(float(p.detach().double().square().sum()) for p in weights) ** 0.5
    changes = [c * scale / length for c in changes]

    def measured() -> Tensor:
        derivative = forward_derivative(network, call)
        seen = torch.Generator().manual_seed(1)
        weight = torch.randn(derivative.shape, generator=seen, dtype=torch.float64)
        return (derivative.double() * weight).sum()

    gradients = torch.autograd.grad(measured(), weights, allow_unused=True)
    slope = sum(
        float((g.double() * c).sum())
        for g, c in zip(gradients, changes, strict=True)
        if g is not None
    )
    step = 1e-5 if double else 1e-3
    with torch.no_grad():
        ends = []
        for sign in (1, -2):
            for p, c in zip(weights, changes, strict=True):
                p.add_((sign * step * c).to(p.dtype))
            ends.append(float(measured()))
        for p, c in zip(weights, changes, strict=True):
            p.add_((step * c).to(p.dtype))
    quotient = (ends[0] - ends[1]) / (2 * step)
    return abs(slope - quotient) / max(abs(quotient), abs(slope), 1e-30)
