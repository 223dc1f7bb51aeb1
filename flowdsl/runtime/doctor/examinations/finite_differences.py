"""How good would finite differences be, in place of the forward derivative?"""

from __future__ import annotations

import torch

from flowdsl.runtime.doctor.derivatives import central_difference, relative
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient

QUESTION = "how good are finite differences?"
AFTER = ("calls",)

#: An error of the derivative that is about that of bfloat16.
USABLE = 1e-2
STEPS = (1e-1, 1e-2, 1e-3, 1e-4)


def look(patient: Patient) -> Finding | None:
    """Central differences in float32, with the step of a compiled loss and with others."""
    if not patient.derivatives:
        return None
    step = patient.options.difference_step
    errors = dict.fromkeys((step, *STEPS), 0.0)
    with torch.no_grad():
        for call in patient.derivatives:
            exact = patient.reference(call)
            if exact is None:
                return None
            for size in errors:
                found = central_difference(patient.settled, call, size)
                errors[size] = max(errors[size], relative(found, exact))
    best = min(errors, key=lambda size: errors[size])
    figures = {"error": errors[step], "best": errors[best], "best_step": best}
    sentence = f"with a step of {step:g} the derivative is off by {errors[step]:.0e} in float32"
    if best != step:
        sentence += f"; best, with {best:g}, by {errors[best]:.0e}"
    if errors[step] <= USABLE:
        return ok(sentence, **figures)
    return Finding(
        "note",
        sentence,
        figures,
        remedy=f"write STEP = {best:g} in the compiled text for this network"
        if errors[best] <= USABLE
        else "no substitute for this network: let it be differentiated forward",
    )
