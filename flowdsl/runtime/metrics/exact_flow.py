"""How far samples are from where the exact flow carries the same noise; for data whose flow is
known.
"""

from __future__ import annotations

from flowdsl.runtime.metrics import Better, Evidence

SUMMARY = "root mean square distance to where the exact flow carries the same noise"
BETTER: Better = "lower"


def measure(evidence: Evidence) -> dict[str, float]:
    if evidence.noise is None or evidence.carried is None:
        return {}
    gap = (evidence.generated.data.double() - evidence.carried.double()).flatten(1)
    return {"exact-flow error": float(gap.square().sum(1).mean().sqrt())}
