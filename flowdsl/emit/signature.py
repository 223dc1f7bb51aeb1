"""What a compiled objective tells the runtime about itself, read off the typed objective."""

from __future__ import annotations

from typing import cast

from flowdsl.emit.draws import uses_noise
from flowdsl.emit.ends import ends_of
from flowdsl.emit.sampling import learns_map, predicts_velocity, sampling_conditions
from flowdsl.ir.shares import exact, static_shares
from flowdsl.runtime.contract import (
    Argument,
    ArgumentKind,
    Condition,
    NetworkSignature,
    ObjectiveSignature,
    PlayerSignature,
)
from flowdsl.spec.core import Expr, Formal, Kind
from flowdsl.spec.objective import Network, Objective

_KINDS = {Kind.TRUTH: "scalar"}


def signature(objective: Objective) -> ObjectiveSignature:
    """The signature of an objective."""
    data_time, noise_time = ends_of(objective)
    flow = objective.maps.get("map")
    noise = ("noise",) if uses_noise(objective) else ()
    return ObjectiveSignature(
        name=objective.name,
        title=objective.title,
        networks=tuple(_network(objective, n) for n in objective.networks.values()),
        terms=tuple(term.name for term in objective.terms),
        draws=(*noise, *objective.draws),
        data_time=data_time,
        noise_time=noise_time,
        sampler="map" if learns_map(objective) else "velocity",
        conditions=tuple(
            Condition(name, float(value))
            for name, (_, value) in sampling_conditions(objective).items()
        ),
        constants={name: float(value) for name, value in objective.constants.items()},
        shares=tuple(static_shares(objective).values()),
        players=tuple(PlayerSignature(p.name, p.networks, p.terms) for p in objective.players),
        fixed_start=None if flow is None else _fixed(objective, flow.start),
        fixed_end=None if flow is None else _fixed(objective, flow.end),
        integrator="euler" if predicts_velocity(objective) else "ddim",
    )


def _fixed(objective: Objective, time: Expr) -> float | None:
    """The time of a map's fixed end."""
    value = None if isinstance(time, Formal) else exact(objective, time)
    return None if value is None else float(value)


def _network(objective: Objective, network: Network) -> NetworkSignature:
    decay = None if network.decay is None else exact(objective, network.decay)
    span = network.span
    line = (
        ""
        if span is None
        else f"{span.source.name}:{span.line}: {span.source.line(span.line).strip()}"
    )
    return NetworkSignature(
        name=network.name,
        arguments=tuple(Argument(name, _kind(kind)) for name, kind in network.arguments),
        conditions=tuple(
            Argument(name, "label" if name == "label" else "scalar") for name in network.conditions
        ),
        heads=tuple(Argument(name, _kind(kind)) for name, kind in network.heads),
        frozen=network.frozen,
        average_of=network.average_of,
        decay=None if decay is None else float(decay),
        line=line,
    )


def _kind(kind: Kind) -> ArgumentKind:
    return cast(ArgumentKind, _KINDS.get(kind, kind.value))
