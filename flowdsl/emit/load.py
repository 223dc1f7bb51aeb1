"""From emitted source to a loss: one code path, what is printed is what runs."""

from __future__ import annotations

from flowdsl.runtime.contract import ObjectiveSignature
from flowdsl.runtime.loss import Loss
from flowdsl.runtime.source import functions


def load(source: str, signature: ObjectiveSignature) -> Loss:
    """The loss whose functions are those of `source`."""
    return Loss(source, signature, functions(source, signature.name))


__all__ = ["functions", "load"]
