"""Does `torch.compile` of the bound loss compute the same?"""

from __future__ import annotations

from functools import partial

import torch

from flowdsl.runtime.agreement import outcome
from flowdsl.runtime.bench.compiling import check_backend, compiled, verify_compiled
from flowdsl.runtime.bench.steps import trainable
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient

QUESTION = "does torch.compile keep its loss and gradients?"
AFTER = ("determinism", "parameters")


def look(patient: Patient) -> Finding | None:
    """Compiles the loss at the first point of training, and compares value and gradients."""
    backend = patient.options.compile
    if backend is None:
        return None
    check_backend(backend)
    module = patient.bound(patient.awake()).eval()  # dropout falls differently when compiled
    parameters, step = trainable(module), patient.steps[0]
    torch.compiler.reset()
    turned = compiled(module, backend)

    reference = outcome(parameters, partial(step.run, module))
    agreement, refused = verify_compiled(
        partial(step.run, turned), parameters, reference, torch.float32
    )
    figures = {}
    if agreement is not None:
        figures = {"value": agreement.value, "gradient": agreement.gradient}
    if refused:
        return Finding(
            "fail", refused, figures,
            remedy="leave this network uncompiled, or find the layer: call .contiguous() after "
            "patches are embedded, and keep autograd.Functions with a jvp out of it",
        )  # fmt: skip
    return ok(f"compiled by {backend}, value and gradients agree to {figures['gradient']:.0e}",
              **figures)  # fmt: skip
