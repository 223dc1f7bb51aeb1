"""Is it the bare network, neither wrapped for distribution nor compiled?

A derivative that stands around a wrapper fails, or its gradients are never exchanged, or the
compiled network runs uncompiled: the wrapper belongs around the bound loss.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient

QUESTION = "is it the bare network?"
AFTER: tuple[str, ...] = ()


def look(patient: Patient) -> Finding:
    """Looks at its type."""
    network: nn.Module = patient.network
    name = type(network).__name__
    if isinstance(network, DataParallel | DistributedDataParallel) or "FSDP" in name:
        return Finding(
            "fail",
            f"the network is wrapped in {name}",
            remedy=f"wrap the bound loss, not the network: {name}(loss.bind(network))",
        )
    if hasattr(network, "_orig_mod"):
        return Finding(
            "fail",
            "the network is compiled by itself, and will run uncompiled inside a derivative",
            remedy="compile the bound loss: torch.compile(loss.bind(network))",
        )
    return ok("it is bare")
