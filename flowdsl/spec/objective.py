"""The typed objective: everything a spec says, with names resolved and kinds known."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from flowdsl.diagnostics import Source, Span
from flowdsl.spec.core import (
    Draw,
    Expr,
    Formal,
    Kind,
    Level,
    PathState,
    PathVelocity,
    replace_formals,
    transform,
)
from flowdsl.spec.kinds import kind_of
from flowdsl.syntax.tree import Expression


@dataclass(frozen=True)
class LawCall:
    """A probability law with its arguments: numbers, times already drawn, or further laws."""

    law: str
    args: tuple[Expr | LawCall, ...]
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class DrawLine:
    """`names ~ law on rows`. For `share(p) on rows` the share is one of those rows."""

    names: tuple[str, ...]
    law: LawCall
    rows: Expr | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class DrawDeclaration:
    """One random quantity: its first line draws it, later lines replace it on their rows."""

    name: str
    kind: Kind
    level: Level
    lines: tuple[DrawLine, ...]

    @property
    def symbol(self) -> Draw:
        return Draw(self.name, self.kind, self.level)


@dataclass(frozen=True)
class Path:
    """`z(t) = …`: `body` and `velocity` over `Formal(time)`, `Formal("data")`,
    `Formal("noise")`."""

    state: str
    time: str
    body: Expr
    velocity: Expr
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Network:
    """A network role: arguments in calling order, conditions by keyword, heads in order of
    return."""

    name: str
    arguments: tuple[tuple[str, Kind], ...]
    conditions: tuple[str, ...] = ()
    heads: tuple[
        tuple[str, Kind], ...
    ] = ()  # one head of the network's own name when it has one output
    frozen: bool = False
    average_of: str | None = None  # an exponential moving average of this network's parameters
    decay: Expr | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class FlowMap:
    """`map z(t) -> z(r) = body`, over the formals `state`, and of `start` and `end` where these
    are names."""

    name: str  # "map" when the spec gives none
    path: str
    state: Formal
    start: Expr  # Formal or Number
    end: Expr  # Formal or Number
    body: Expr
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Term:
    """`match prediction to target` or `minimise prediction`, with the row's loss.

    `loss` is a scalar per row; for a matched term it contains `sum_squares` or `mean_squares` of
    `Apply("sub", (prediction, target))`. The term adds the batch mean of `loss` where `rows` holds
    and of 0 elsewhere.
    """

    name: str
    group: str
    prediction: Expr
    target: Expr | None
    loss: Expr
    rows: Expr | None = None
    span: Span | None = field(default=None, compare=False, repr=False)
    loss_span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Player:
    """`name: networks on terms`; each term is `(name, every)`: learnt at every so-many-th step,
    or for a negative number at all but these."""

    name: str
    networks: tuple[str, ...]
    terms: tuple[tuple[str, int], ...]
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Stage:
    """`name: objective for share, network from stage, …`."""

    name: str
    objective: str  # "this" is the spec itself
    share: Fraction
    carried: tuple[tuple[str, str], ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Claim:
    """`same gradient as OTHER up to TERM at CONDITION`: a theorem about this objective.

    `upto` names a term, or a group of terms, that is left out on either side.
    """

    relation: Literal["value", "gradient"]
    other: str
    mode: Literal["always", "at", "near"]
    parameter: str | None = None
    value: Expr | None = None
    upto: str | None = None
    span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Moving:
    """`differentiate time along direction`; the direction is an expression of kind state, and
    `written` is that direction as the spec writes it."""

    time: str
    along: Expr | None
    span: Span | None = field(default=None, compare=False, repr=False)
    written: Expression | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Objective:
    """One training objective for a flow map."""

    name: str
    title: str
    arxiv: str
    source: Source
    constants: dict[str, Fraction]
    paths: dict[str, Path]
    draws: dict[str, DrawDeclaration]  # in the order in which they are drawn
    networks: dict[str, Network]
    maps: dict[str, FlowMap]
    moving: Moving | None
    terms: tuple[Term, ...]
    definitions: dict[str, Expr]  # names of the spec, for messages and for names in emitted code
    players: tuple[Player, ...] = ()
    stages: tuple[Stage, ...] = ()
    claims: tuple[Claim, ...] = ()
    sampler: tuple[tuple[str, Expr], ...] = ()
    extends: str | None = None
    line: int = 1  # where the spec's heading stands

    def expand_path(self, expr: Expr) -> Expr:
        """The expression with path states and velocities written out in data and noise."""

        def rule(node: Expr) -> Expr:
            if isinstance(node, PathState | PathVelocity):
                path = self.paths[node.path]
                body = path.body if isinstance(node, PathState) else path.velocity
                ends = {path.time: node.time, "data": node.data, "noise": node.noise}
                return replace_formals(body, ends)
            return node

        return transform(expr, rule)

    def origin(self, network: str, head: str) -> tuple[str, str]:
        """The network whose parameters are used, and its head: an average has those of its
        source."""
        own = self.networks[network]
        if own.average_of is None:
            return network, head
        place = [name for name, _ in own.heads].index(head)
        return own.average_of, self.networks[own.average_of].heads[place][0]

    def kind(self, expr: Expr) -> Kind:
        """The kind of a core expression of this objective."""
        return kind_of(expr, self.networks)
