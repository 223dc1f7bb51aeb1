"""Is each row computed by itself?

Derivatives, guidance and the compiled loss take this for granted: it evaluates some rows only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowdsl.runtime.doctor.calls import Call
from flowdsl.runtime.doctor.derivatives import relative, value
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient
from flowdsl.runtime.errors import first_line, place_of

QUESTION = "is each row computed by itself?"
AFTER = ("calls",)

TOLERANCE = 1e-4
REMEDY = (
    "use GroupNorm or LayerNorm in place of BatchNorm: the compiled loss evaluates some rows, "
    "or one, apart from the others"
)


def look(patient: Patient) -> Finding:
    """Compares the first rows in a batch with the same rows, and one row, alone."""
    call = _plain(max(patient.evaluations, key=lambda c: c.rows))
    error = 0.0
    with torch.no_grad():
        together = _evaluated(patient, call)
        for count in (max(2, call.rows // 3), 1):
            some = slice(0, count)
            try:
                alone = _evaluated(patient, call.on(some))
            except Exception as problem:
                where = place_of(problem)
                return Finding(
                    "fail",
                    f"it cannot compute {'one row' if count == 1 else f'{count} rows'} alone: "
                    f"{first_line(problem)}",
                    remedy=REMEDY + (f"; the error is at {where}" if where else ""),
                    place=patient.role.line,
                )
            error = max(error, relative(alone, together[some]))
    if error <= TOLERANCE:
        return ok("rows do not depend on the others in the batch", difference=error)
    return Finding(
        "fail",
        f"rows depend on the others in the batch: alone they differ by {error:.0e}",
        {"difference": error},
        remedy=REMEDY,
        place=patient.role.line,
    )


def _evaluated(patient: Patient, call: Call) -> Tensor:
    """An evaluation by a fresh copy, without dropout: chance is not to be taken for a neighbour."""
    network = patient.awake()
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return value(network, call)


def _plain(call: Call) -> Call:
    return Call(call.role, call.arguments, call.conditions)
