"""Does the derivative survive bfloat16?

A time in bfloat16 has steps of 1/256: the result is off by little, and its derivative by anything.
"""

from __future__ import annotations

import torch

from flowdsl.runtime.doctor.derivatives import forward_derivative, relative, value
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient
from flowdsl.runtime.errors import first_line

QUESTION = "does its derivative survive bfloat16?"
AFTER = ("derivative",)

#: Errors of the derivative under autocast: ordinary below the first, useless above the second.
ORDINARY, USELESS = 0.05, 0.2


def look(patient: Patient) -> Finding | None:
    """Result and derivative under autocast to bfloat16, against full precision."""
    if not patient.derivatives:
        return None
    exactly = patient.settled if patient.precise is None else patient.precise
    wide = torch.float32 if patient.precise is None else torch.float64
    result = derivative = 0.0
    device = patient.calls[0].arguments[0].device.type
    for call in patient.derivatives:
        double = call.to(wide)
        with torch.no_grad():
            exact, slope = (
                value(exactly, double),
                forward_derivative(exactly, double),
            )
            try:
                with torch.autocast(device, torch.bfloat16):
                    rough = value(patient.settled, call)
                    rough_slope = forward_derivative(patient.settled, call)
            except Exception as error:
                return Finding(
                    "note" if patient.options.precision == "float32" else "fail",
                    f"it cannot compute under autocast to bfloat16: {first_line(error)}",
                    remedy="train it in float32",
                )
        result = max(result, relative(rough, exact))
        derivative = max(derivative, relative(rough_slope, slope))
    figures = {"result": result, "derivative": derivative}
    sentence = (
        f"under autocast to bfloat16 the result is off by {_percent(result)}, its derivative by "
        f"{_percent(derivative)}"
    )
    if derivative <= ORDINARY:
        return ok(sentence, **figures)
    planned = patient.options.precision == "bfloat16"
    return Finding(
        "fail" if planned and not derivative <= USELESS else "note",
        sentence,
        figures,
        remedy="keep times and their embedding in float32: compute them under "
        "torch.autocast(device_type, enabled=False), from times that are not scaled; or train in "
        "float32",
        place=patient.role.line,
    )


def _percent(error: float) -> str:
    return f"{100 * error:.1f} %" if error < 0.1 else f"{100 * error:.0f} %"
