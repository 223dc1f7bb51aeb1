"""Does the bound loss give the same gradients inside DistributedDataParallel?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from flowdsl.runtime.agreement import compare, outcome
from flowdsl.runtime.bench.steps import trainable
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient
from flowdsl.runtime.errors import first_line

QUESTION = "can it be distributed?"
AFTER = ("parameters", "determinism", "wrapping")

ADVICE = "wrap the bound loss, never the network: DistributedDataParallel(loss.bind(network))"


def look(patient: Patient) -> Finding:
    """Three steps under DistributedDataParallel, in one process, against the loss by itself."""
    with _one_process() as ready:
        if not ready:
            return Finding("note", "not tried: no process group can be made here", remedy=ADVICE)
        try:
            error = _difference(patient)
        except RuntimeError as problem:
            unused = "finished reduction" in str(problem)
            return Finding(
                "note",
                f"DistributedDataParallel fails: {first_line(problem)}",
                remedy="parameters without a gradient: find_unused_parameters=True, or leave them "
                "out" if unused else ADVICE,
            )  # fmt: skip
    if not error <= 1e-5:
        return Finding(
            "fail",
            f"under DistributedDataParallel the gradient is off by {error:.0e}",
            {"gradient": error},
            remedy=ADVICE,
        )
    return ok(f"gradients are the same inside DistributedDataParallel; {ADVICE}", gradient=error)


@contextmanager
def _one_process() -> Iterator[bool]:
    """A process group of this process alone; False where there is one already, or can be none."""
    if not distributed.is_available() or distributed.is_initialized():
        yield False
        return
    try:
        store = torch._C._distributed_c10d.HashStore()
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    except Exception:
        yield False
        return
    try:
        yield True
    finally:
        distributed.destroy_process_group()


def _difference(patient: Patient) -> float:
    """The largest error of the gradient in three rounds of steps, against a copy that is bare."""
    bare, module = (patient.bound(patient.awake()) for _ in range(2))
    around = DistributedDataParallel(module)
    worst = 0.0
    for step in 3 * patient.steps:
        torch.manual_seed(0)  # dropout falls alike
        reference = outcome(trainable(bare), partial(step.run, bare))
        torch.manual_seed(0)
        found = outcome(trainable(module), partial(step.run, around))
        worst = max(worst, compare(found, reference, torch.float32).gradient)
    return worst
