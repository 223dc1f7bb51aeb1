"""Does the network change buffers while it is evaluated, as BatchNorm does?"""

from __future__ import annotations

import torch

from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient

QUESTION = "does it change its buffers?"
AFTER = ("calls",)


def look(patient: Patient) -> Finding:
    """Compares all buffers before and after an evaluation in training mode."""
    network = patient.copy()
    before = {name: b.detach().clone() for name, b in network.named_buffers()}
    call = patient.evaluations[0]
    with torch.no_grad():
        network(*call.arguments, **call.conditions)
    changed = [
        name
        for name, b in network.named_buffers()
        if name not in before or not torch.equal(b, before[name])
    ]
    if not changed:
        return ok("no buffer changes" if before else "it has no buffers")
    shown = f"{', '.join(changed[:4])}{' …' if len(changed) > 4 else ''}"
    several = len(patient.calls) > 1
    return Finding(
        "fail" if several else "note",
        f"an evaluation changes {shown}",
        {"changed": float(len(changed))},
        remedy="an objective evaluates the network several times a step, at other times and "
        "without labels, and each time counts; use GroupNorm or LayerNorm in place of BatchNorm, "
        "or keep that layer in evaluation mode",
        place=patient.role.line,
    )
