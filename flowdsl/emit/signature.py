"""What a compiled objective tells the runtime about itself, read off the typed objective."""

from __future__ import annotations

from typing import cast

from flowdsl.emit.draws import uses_noise
from flowdsl.emit.ends import ends_of
from flowdsl.emit.inner import inner_of
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
from flowdsl.spec.core import Evaluate, Expr, Formal, Kind, walk
from flowdsl.spec.objective import Network, Objective

_KINDS = {Kind.TRUTH: "scalar"}


def signature(objective: Objective) -> ObjectiveSignature:
    """The signature of an objective."""
    data_time, noise_time = ends_of(objective)
    flow, inner = objective.maps.get("map"), inner_of(objective)
    noise = ("noise",) if uses_noise(objective) else ()
    return ObjectiveSignature(
        name=objective.name,
        title=objective.title,
        networks=tuple(_network(objective, n) for n in objective.networks.values()),
        terms=tuple(term.name for term in objective.terms),
        draws=(*noise, *objective.draws),
        data_time=data_time,
        noise_time=noise_time,
        sampler=("map" if learns_map(objective) else "velocity" if inner is None else "transition"),
        inner=None if inner is None else (inner.start, inner.end),
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
            Argument(name, _condition_kind(objective, network.name, name))
            for name in network.conditions
        ),
        heads=tuple(Argument(name, _kind(kind)) for name, kind in network.heads),
        frozen=network.frozen,
        average_of=network.average_of,
        decay=None if decay is None else float(decay),
        line=line,
    )


def _condition_kind(objective: Objective, network: str, name: str) -> ArgumentKind:
    """What a network sees under a condition's name, as the calls of the objective show it."""
    roots = [term.loss for term in objective.terms] + [m.body for m in objective.maps.values()]
    for root in roots:
        for node in walk(root):
            if isinstance(node, Evaluate) and node.network == network:
                kind = objective.kind(dict(node.conditions)[name])
                return _kind(kind) if kind in (Kind.LABEL, Kind.FEATURES) else "scalar"
    return "label" if name in ("label", "text") else "scalar"


def _kind(kind: Kind) -> ArgumentKind:
    return cast(ArgumentKind, _KINDS.get(kind, kind.value))
