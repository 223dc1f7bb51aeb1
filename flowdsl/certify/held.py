"""Inner flows: the same objective while the outer state stands still, at the origin.

Given one outer state α data + σ noise = 0 at one time, the data have a known law (a Gaussian
mixture has Gaussian mixtures as posteriors), the outer noise is a multiple of them, and the inner
flow is an ordinary one: from fresh noise to a multiple of such data. What is left of the objective
has one path, and its loss is compiled and measured as any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.numbers import Numbers
from flowdsl.certify.path import affine_path
from flowdsl.exact.mixture import GaussianMixture
from flowdsl.spec.core import (
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Number,
    PathState,
    PathVelocity,
    Stop,
    mul,
    replace_formals,
    transform,
    walk,
)
from flowdsl.spec.objective import FlowMap, Network, Objective, Path, Term

MOMENT = Fraction(3, 5)  #: the time of the outer state
_DATA, _NOISE = Formal("data", Kind.STATE), Formal("noise", Kind.STATE)


@dataclass(frozen=True)
class Held:
    """An objective under one outer state, whose weights of data and noise were alpha and sigma."""

    objective: Objective
    alpha: float
    sigma: float

    def law(self, mixture: GaussianMixture) -> GaussianMixture:
        """The law of the data given the outer state."""
        return mixture.given(torch.zeros(mixture.dimension).double(), self.alpha, self.sigma)


def held(objective: Objective) -> Held | None:
    """The objective with its outer state held fixed; None where it has no inner flow.

    Raises `Uncertified` where more of the outer path is needed than one state.
    """
    inner = _inner_map(objective)
    if inner is None:
        return None
    outer = next(p for p in objective.paths.values() if p.state != inner.path)
    constants = {name: float(value) for name, value in objective.constants.items()}
    path = affine_path(objective, outer, Numbers(constants, {}))
    time = torch.tensor([float(MOMENT)], dtype=torch.float64)
    alpha, sigma = (float(f(time)) for f in (path.alpha, path.sigma))
    if not sigma:
        raise Uncertified("the outer path has no noise where its state would be held", outer.span)
    return Held(_Holding(objective, inner, outer, -alpha / sigma).run(), alpha, sigma)


def _inner_map(objective: Objective) -> FlowMap | None:
    """The one map, where it moves along the second of two paths."""
    if len(objective.paths) != 2 or len(objective.maps) != 1:
        return None
    (flow_map,) = objective.maps.values()
    first = next(iter(objective.paths))
    return None if flow_map.path == first else flow_map


class _Holding:
    """One objective, rewritten."""

    def __init__(self, objective: Objective, inner: FlowMap, outer: Path, share: float) -> None:
        self.objective, self.inner, self.outer = objective, inner, outer
        self.path = objective.paths[inner.path]
        self.share = Number(Fraction(share))
        fresh = {n for n in walk(self.path.body) if isinstance(n, Draw) and n.kind is Kind.STATE}
        if len(fresh) != 1:
            raise Uncertified("the inner path is not made of one fresh noise", self.path.span)
        (self.fresh,) = fresh
        self.times = self._times()
        self.call = next(n for n in walk(inner.body) if isinstance(n, Evaluate)
                         and inner.state in (m for a in n.args for m in walk(a)))  # fmt: skip

    def _times(self) -> set[Expr]:
        """The drawn times of outer states."""
        roots = [e for t in self.objective.terms for e in (t.loss, t.prediction, t.target) if e]
        found = {
            n.time
            for root in [*roots, self.inner.body]
            for n in walk(root)
            if isinstance(n, PathState | PathVelocity) and n.path == self.outer.state
        }
        if any(not isinstance(t, Draw) for t in found) or len(found) != 1:
            raise Uncertified("the outer path is needed at more than one drawn time")
        return found

    def run(self) -> Objective:
        objective = self.objective
        moving = objective.moving
        if moving is not None and moving.along is not None:
            moving = replace(moving, along=self.tree(moving.along))
        gone = {t.name for t in self.times if isinstance(t, Draw)} | {self.fresh.name}
        network = self._network()
        return replace(
            objective,
            paths={self.path.state: self._path()},
            draws={n: d for n, d in objective.draws.items() if n not in gone},
            networks={network.name: network},
            maps={self.inner.name: replace(self.inner, body=self.tree(self.inner.body))},
            moving=moving,
            terms=tuple(self._term(t) for t in objective.terms),
            definitions={},
            players=(),
            sampler=(),
        )

    def _path(self) -> Path:
        """The inner path between the data and a noise of its own."""

        def own(node: Expr) -> Expr:
            if node == _NOISE:
                return mul(self.share, _DATA)
            return _NOISE if node == self.fresh else node

        path = self.path
        return replace(path, body=transform(path.body, own), velocity=transform(path.velocity, own))

    def _term(self, term: Term) -> Term:
        target = None if term.target is None else self.tree(term.target)
        return replace(term, prediction=self.tree(term.prediction), target=target,
                       loss=self.tree(term.loss))  # fmt: skip

    def tree(self, expr: Expr) -> Expr:
        """An expression under the outer state."""
        return transform(expr, self._rule)

    def _rule(self, node: Expr) -> Expr:
        match node:
            case Evaluate():
                return self._call(node)
            case PathState(path) | PathVelocity(path) if path == self.path.state:
                return replace(node, data=Given("data"), noise=Given("noise"))
            case PathState() | PathVelocity():
                body = self.outer.body if isinstance(node, PathState) else self.outer.velocity
                ends = {self.outer.time: node.time, "data": node.data, "noise": node.noise}
                return replace_formals(body, ends)
            case Given("noise"):
                return mul(self.share, Given("data"))
            case Draw() if node in self.times:
                return Number(MOMENT)
            case Draw() if node == self.fresh:
                return Given("noise")
        return node

    # networks

    def _kept(self) -> list[int]:
        """The arguments of the inner network that belong to its flow."""
        formals = {self.inner.start, self.inner.end, self.inner.state}
        return [k for k, arg in enumerate(self.call.args) if formals & set(walk(arg))]

    def _call(self, node: Evaluate) -> Expr:
        if self.objective.kind(node) is Kind.FEATURES:
            return node  # only ever read through the conditions of the inner network
        if node.network != self.call.network:
            raise Uncertified(f"it is not known what {node.network} computes", node.span)
        kept = self._kept()
        return replace(
            node,
            args=tuple(node.args[k] for k in kept),
            conditions=tuple(sorted(_conditions(node).items())),
            directions=tuple(tuple(d[k] for k in kept) for d in node.directions),
        )

    def _network(self) -> Network:
        own = self.objective.networks[self.call.network]
        return replace(
            own,
            arguments=tuple(own.arguments[k] for k in self._kept()),
            conditions=tuple(sorted(_conditions(self.call))),
        )


def _conditions(node: Evaluate) -> dict[str, Expr]:
    """The conditions of a call, those of the networks that give it features included."""
    found: dict[str, Expr] = {}
    for name, value in node.conditions:
        inside = value
        while isinstance(inside, Stop):
            inside = inside.body
        if isinstance(inside, Evaluate):
            found |= _conditions(inside)
        else:
            found[name] = value
    return found
