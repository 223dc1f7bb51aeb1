"""Are times taken as they are, or scaled up (by 1000, as diffusion models do)?

A scale of the time comes back as a factor of every derivative along it.
"""

from __future__ import annotations

import torch

from flowdsl.runtime.doctor.derivatives import along_argument, forward_derivative, value
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient

QUESTION = "are its times scaled?"
AFTER = ("forward_derivative",)

LARGE = 30.0


def look(patient: Patient) -> Finding | None:
    """The derivative along each time, against the size of the result."""
    times = [i for i, a in enumerate(patient.role.arguments) if a.kind == "time"]
    if not times or not patient.derivatives:
        return None
    call = patient.derivatives[0]
    found: dict[str, float] = {}
    with torch.no_grad():
        size = float(value(patient.settled, call).norm())
        for i in times:
            slope = forward_derivative(patient.settled, along_argument(call, i))
            found[patient.role.arguments[i].name] = float(slope.norm()) / max(size, 1e-30)
    steep = max(found, key=lambda name: found[name])
    if found[steep] <= LARGE:
        return ok(f"along {steep} the derivative is {found[steep]:.2g} times the result", **found)
    return Finding(
        "note",
        f"along {steep} the derivative is {found[steep]:.0f} times the result",
        found,
        remedy=f"is {steep} scaled before it is embedded, as by 1000 in diffusion models? Targets "
        "contain this derivative: take times as they are, with angular frequencies up to about 10",
        place=patient.role.line,
    )
