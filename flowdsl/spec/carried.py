"""Which network of another stage a network of this one goes on from."""

from __future__ import annotations

from flowdsl.spec.core import Kind
from flowdsl.spec.objective import Objective, Stage


def source_stage(objective: Objective, owner: str) -> Stage | None:
    """The stage of another objective from which a network of this one is carried."""
    stages = {stage.name: stage for stage in objective.stages}
    for stage in objective.stages:
        carried = dict(stage.carried)
        if stage.objective == "this" and owner in carried:
            found = stages.get(carried[owner])
            return None if found is None or found.objective == "this" else found
    return None


def carried_role(other: Objective, owner: str) -> str | None:
    """The network whose weights are carried: that of the same name, else the only one that
    gives a state."""
    learned = [
        name
        for name, network in other.networks.items()
        if not network.frozen
        and network.average_of is None
        and sum(kind is Kind.STATE for _, kind in network.heads) == 1
    ]
    return owner if owner in learned else learned[0] if len(learned) == 1 else None
