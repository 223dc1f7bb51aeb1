"""Does its derivative share the pass of its value, or must it be taken by another?"""

from __future__ import annotations

from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient
from flowdsl.runtime.tangents import Differentiable

QUESTION = "do value and derivative share one pass?"
AFTER = ("calls",)


def look(patient: Patient) -> Finding | None:
    """The first derivative without gradient, beside a recorded value, as the loss takes it."""
    call = next((c for c in patient.derivatives if not c.gradient), None)
    if call is None or "shared_jvp(" not in patient.loss.source:
        return None
    engine = Differentiable(patient.awake())
    direction = call.direction or ()
    try:
        engine.shared_jvp(call.arguments, direction, **call.conditions)
    except Exception:  # it has no forward derivative at all, which another examination tells
        if engine.finding is None or engine.finding.refusal is None:
            return None
    found = engine.finding
    if found is None:
        return None
    figures = {} if found.error is None else {"error": found.error}
    if found.refusal is None:
        return ok(found.text, **figures)
    return Finding(
        "note",
        f"two passes, and the derivative costs twice as much: {found.refusal.what}",
        figures,
        remedy=found.refusal.remedy or "leave it so: the loss is right, only slower",
    )
