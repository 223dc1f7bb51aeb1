"""How often a classifier sees the class that was asked for."""

from __future__ import annotations

from flowdsl.runtime.metrics import Better, Evidence

SUMMARY = "share of class-conditional samples that a classifier takes for the class asked for"
BETTER: Better = "higher"


def measure(evidence: Evidence) -> dict[str, float]:
    wanted = evidence.generated.label
    seen = evidence.features.classify(evidence.generated.data)
    if wanted is None or seen is None:
        return {}
    return {"accuracy": float((seen == wanted.cpu()).double().mean())}
