"""Do two evaluations at one point give one result, in training mode?

The prediction, its derivative and the target are evaluations of one function in an objective. With
dropout each sees another function.
"""

from __future__ import annotations

import torch
from torch import nn

from flowdsl.runtime.doctor.derivatives import relative, value
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient

QUESTION = "does it return the same twice?"
AFTER = ("calls",)


def look(patient: Patient) -> Finding:
    """Evaluates twice, in training mode."""
    network = patient.awake()
    call = max(patient.evaluations, key=lambda c: c.rows)
    with torch.no_grad():
        error = relative(value(network, call), value(network, call))
    if error == 0:
        return ok("two evaluations in training mode are equal, bit by bit")
    drops = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    ]
    several = len(patient.calls) > 1
    what = (
        f"dropout in {', '.join(drops[:4])}{' …' if len(drops) > 4 else ''}"
        if drops
        else ("it draws random numbers, or changes while it runs")
    )
    return Finding(
        "fail" if several and error > 1e-5 else "note",
        f"two evaluations in training mode differ by {error:.0e}: {what}",
        {"difference": error},
        remedy=(
            "set the probability of dropout to 0: prediction, derivative and target must be of one "
            "function" if drops else "make the result a function of the arguments alone"
        ),
        place=patient.role.line,
    )  # fmt: skip
