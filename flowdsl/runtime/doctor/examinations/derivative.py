"""Is the forward derivative right: equal to double precision, and to central differences?"""

from __future__ import annotations

import torch

from flowdsl.runtime.doctor.derivatives import (
    best_difference,
    central_difference,
    forward_derivative,
    relative,
)
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient

QUESTION = "is its derivative right?"
AFTER = ("forward_derivative",)

#: Errors of a derivative in float32 against float64: rounding of an ordinary network is below the
#: first; above the second the derivative is not to be trusted.
ROUNDING, WRONG = 1e-4, 1e-2
#: Errors of the best central difference in float64: below the first the derivative is confirmed,
#: above the second it is another function. Between them something inside rounds to float32.
CONFIRMED, OTHER = 1e-4, 2e-2


def look(patient: Patient) -> Finding | None:
    """Each derivative of the objective, without chance (in evaluation mode)."""
    if not patient.derivatives:
        return None
    if patient.precise is None:
        return _single(patient)
    precise = patient.precise
    rounding = difference = 0.0
    with torch.no_grad():
        for call in patient.derivatives:
            exact = forward_derivative(precise, call.to(torch.float64))
            rounding = max(rounding, relative(forward_derivative(patient.settled, call), exact))
            found, _ = best_difference(precise, call.to(torch.float64), exact)
            difference = max(difference, found)
    figures = {"float32": rounding, "central_difference": difference}
    if not difference <= OTHER:
        return Finding(
            "fail",
            f"the forward derivative is not the derivative: off by {difference:.0e} from the best "
            "central difference in float64",
            figures,
            remedy="look for detach(), no_grad() or rounding inside the network, and for an "
            "autograd.Function whose jvp is wrong",
            place=patient.role.line,
        )
    if difference > CONFIRMED and rounding <= ROUNDING:
        return Finding(
            "note",
            f"central differences in float64 confirm the derivative to {difference:.0e} only",
            figures,
            remedy="something inside computes in float32, or times are scaled up; the derivative "
            f"in float32 is off by {rounding:.0e} from that in float64",
        )
    if not rounding <= ROUNDING:
        return Finding(
            "note" if rounding <= WRONG else "fail",
            f"the derivative in float32 is off by {rounding:.0e} from float64",
            figures,
            remedy="something in the network rounds: keep times and their embedding in float32, "
            "and do not scale times up",
            place=patient.role.line,
        )
    return ok(
        f"off by {rounding:.0e} in float32, and central differences agree to {difference:.0e}",
        **figures,
    )


def _single(patient: Patient) -> Finding:
    """For networks that cannot compute in float64: against central differences in float32."""
    worst = 0.0
    with torch.no_grad():
        for call in patient.derivatives:
            found = forward_derivative(patient.settled, call)
            errors = [
                relative(found, central_difference(patient.settled, call, step))
                for step in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
            ]
            worst = max(worst, min(errors))
    figures = {"central_difference": worst}
    sentence = f"it cannot compute in float64; in float32 central differences agree to {worst:.0e}"
    if worst <= 1e-2:
        return Finding(
            "note", sentence, figures,
            remedy="let tensors keep their type inside the network to have the derivative checked",
        )  # fmt: skip
    return Finding(
        "fail" if worst > 0.2 else "note",
        sentence,
        figures,
        remedy="something in the network rounds, or stops a derivative: look for casts to half "
        "precision, detach() and no_grad()",
        place=patient.role.line,
    )
