"""What a compiled objective tells the runtime about itself: plain data, nothing of the compiler.

The trainer, the sampler and the bundled network read these records; none of them knows any
objective by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ArgumentKind = Literal["state", "time", "scalar", "label", "features"]

#: The label of no class, as it is passed to a network.
NULL_LABEL = -1


@dataclass(frozen=True)
class Argument:
    """One argument of a network, by the name it has in the spec."""

    name: str
    kind: ArgumentKind


@dataclass(frozen=True)
class NetworkSignature:
    """How a network role is called: `role(*arguments, **conditions)`, and what it returns.

    One head: it returns a tensor. Several: a tuple in this order. `state` heads have the shape of
    the data, `scalar` heads the shape `(batch,)`. `decay` is that of an average; None where it
    changes while training. `line` is the line of the spec, for messages.
    """

    name: str
    arguments: tuple[Argument, ...]
    conditions: tuple[Argument, ...] = ()
    heads: tuple[Argument, ...] = ()
    frozen: bool = False
    average_of: str | None = None
    decay: float | None = None
    line: str = ""


@dataclass(frozen=True)
class Condition:
    """A scalar that networks see beside state and time, with its value when sampling."""

    name: str
    default: float


@dataclass(frozen=True)
class Share:
    """Rows drawn by exact count: floor(numerator / denominator) of the batch, or of the rows of the
    share `on` (with `on_others`: of the rows outside it)."""

    name: str
    numerator: int
    denominator: int
    on: str | None = None
    on_others: bool = False


@dataclass(frozen=True)
class PlayerSignature:
    """Who learns what: these networks, from these terms, each at every so-many-th step,
    or with a negative number at all others."""

    name: str
    networks: tuple[str, ...]
    terms: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ObjectiveSignature:
    """One compiled objective, as the runtime sees it.

    `sampler` is "map" when the objective learns jumps between two times, "velocity" when it learns
    a velocity, which is integrated, and "transition" when an inner flow draws what lies ahead of a
    state; `inner` are then its times, from fresh noise to the end. `data_time` and `noise_time`
    are the ends of the path.
    """

    name: str
    title: str
    networks: tuple[NetworkSignature, ...]
    terms: tuple[str, ...]
    draws: tuple[str, ...]
    data_time: float = 0.0
    noise_time: float = 1.0
    sampler: Literal["map", "velocity", "transition"] = "map"
    conditions: tuple[Condition, ...] = ()
    constants: dict[str, float] = field(default_factory=dict)
    shares: tuple[Share, ...] = ()
    #: Empty: one player, who owns every learned network and learns from every term.
    players: tuple[PlayerSignature, ...] = ()
    #: For a map with a fixed end (consistency models): the only end it can jump to, else None.
    fixed_end: float | None = None
    #: For a map with a fixed start: the only time it can jump from, so that it makes one step.
    fixed_start: float | None = None
    #: How a velocity is integrated unless asked otherwise: "ddim" where it was solved from a
    #: prediction of data or noise.
    integrator: Literal["euler", "ddim"] = "euler"
    inner: tuple[float, float] | None = None

    def network(self, name: str) -> NetworkSignature:
        return next(n for n in self.networks if n.name == name)

    @property
    def learned(self) -> tuple[NetworkSignature, ...]:
        """The networks whose parameters are trained."""
        return tuple(n for n in self.networks if not n.frozen and n.average_of is None)
