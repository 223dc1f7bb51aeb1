"""The kinds of rows a loss has, and where the network that learns stands on each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.linear import Combination, combination
from flowdsl.certify.numbers import Numbers
from flowdsl.certify.shape import parameters_of, with_parameters
from flowdsl.exact.estimation import LossLike
from flowdsl.spec.core import (
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Level,
    Null,
    PathState,
    PathVelocity,
    Stop,
    assume,
    children,
    conditions_of,
    walk,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective, Term

Facts = dict[Expr, bool]


@dataclass(frozen=True, eq=False)
class Place:
    """One term on one kind of row, and the evaluation that learns there.

    `base` is the path state it sees; `unlabelled` says that it is shown the null label, or none.
    """

    term: Term
    facts: Facts
    learner: Evaluate
    base: PathState

    @cached_property
    def unlabelled(self) -> bool:
        return not isinstance(label_of(self.learner), Given)

    @cached_property
    def parameters(self) -> dict[Expr, Formal]:
        """The learner's scalar conditions, each with the parameter that stands for it."""
        return parameters_of(self.learner)

    @cached_property
    def conditions(self) -> tuple[tuple[str, Expr], ...]:
        """What the learner is shown beside state and times, as `reduce` writes it."""
        same = self.reduce(self.learner)
        assert isinstance(same, Evaluate)
        return same.conditions

    def reduce(self, expr: Expr) -> Expr:
        """A tree on such rows, with the learner's scalar conditions as parameters."""
        return with_parameters(assume(expr, self.facts), self.learner)


def label_of(call: Evaluate) -> Expr:
    """The label that a call shows its network; Null where it shows none. Raises `Uncertified`."""
    label = dict(call.conditions).get("label", Null())
    if not isinstance(label, Null | Given):
        raise Uncertified("a network is shown a label that is not the row's own", label.span)
    return label


@dataclass(frozen=True)
class RowKind:
    """Drawn conditions that hold together, and the share of the rows on which they do."""

    facts: Facts
    share: float


def row_kinds(objective: Objective, loss: LossLike, data: torch.Tensor) -> list[RowKind]:
    """Which drawn conditions hold together, on the rows that the loss draws."""
    flags = [d.symbol for d in objective.draws.values() if d.kind is Kind.TRUTH]
    counts: Counter[tuple[bool, ...]] = Counter()
    generator = torch.Generator().manual_seed(7)
    for _ in range(12):  # several batches: some conditions are drawn once for all rows
        draws = loss.draw(data, generator=generator)
        columns = [draws[f.name].expand(len(data)) for f in flags]
        rows = torch.stack(columns, 1) if columns else torch.zeros(len(data), 0)
        counts.update(tuple(bool(x) for x in row) for row in rows.tolist())
    total = sum(counts.values())
    return [
        RowKind(dict(zip(flags, kind, strict=True)), count / total)
        for kind, count in counts.items()
    ]


def places(objective: Objective, kinds: list[RowKind], numbers: Numbers) -> Iterator[Place]:
    """Every term on every kind of row on which it teaches a network at a state of the path."""
    for term in objective.terms:
        for kind in kinds:
            assert term.target is not None
            facts = {**kind.facts, **_steps(term, kind.facts, numbers)}
            prediction, target = assume(term.prediction, facts), assume(term.target, facts)
            for call in [*live_calls(objective, prediction), *live_calls(objective, target)]:
                base = seen_state(objective, call)
                if base is not None:
                    yield Place(term, facts, call, base)
                    break


def _steps(term: Term, kind: Facts, numbers: Numbers) -> Facts:
    """The conditions that are decided once per step, at this moment of training."""
    found: Facts = {}
    for expr in (term.prediction, term.target):
        if expr is None:
            continue
        for condition in conditions_of(assume(expr, kind)):
            if level_of(condition) is not Level.ROW and condition not in kind:
                found[condition] = bool(numbers(condition))
    return found


def live_calls(objective: Objective, expr: Expr) -> list[Evaluate]:
    """Evaluations of learning networks outside `stop`, outermost first."""
    found: dict[Evaluate, None] = {}

    def visit(node: Expr) -> None:
        if isinstance(node, Stop):
            return
        if isinstance(node, Evaluate):
            network = objective.networks[node.network]
            if not network.frozen and network.average_of is None:
                found[node] = None
        for child in children(node):
            visit(child)

    visit(expr)
    return list(found)


def seen_state(objective: Objective, call: Evaluate) -> PathState | None:
    """The path state that a call sees, perhaps scaled; None where it sees something else."""
    read = state_argument(objective, call)
    if read is None or len(read) != 1:
        return None
    (state,) = read
    return state if isinstance(state, PathState) else None


def state_argument(objective: Objective, call: Evaluate) -> Combination | None:
    """The state a call is given, as a combination; None where it is none."""
    kinds: Mapping[str, Kind] = dict(objective.networks[call.network].arguments)
    place = next((i for i, kind in enumerate(kinds.values()) if kind is Kind.STATE), None)
    if place is None:
        return None
    try:
        return combination(call.args[place], objective.networks)
    except Uncertified:
        return None


def of_data(objective: Objective) -> tuple[Objective, tuple[Term, ...]]:
    """The objective's matched terms on data, and those on samples that it generates itself.

    What these alone teach, and what is only minimised, has no part in the rest: no truth of it need
    be known.
    """
    matched = tuple(term for term in objective.terms if term.target is not None)
    generated = tuple(term for term in matched if _generated(term))
    terms = tuple(term for term in matched if term not in generated)
    if terms == objective.terms:
        return objective, ()
    roots = [e for t in terms for e in (t.loss, t.prediction, t.target) if e is not None]
    roots += [flow_map.body for flow_map in objective.maps.values()]
    if objective.moving is not None and objective.moving.along is not None:
        roots.append(objective.moving.along)
    used = {n.network for root in roots for n in walk(root) if isinstance(n, Evaluate)}
    used |= {source for n in used if (source := objective.networks[n].average_of) is not None}
    networks = {name: n for name, n in objective.networks.items() if name in used}
    return replace(objective, terms=terms, networks=networks, players=(), sampler=()), generated


def _generated(term: Term) -> bool:
    """Does a path run from samples that networks made?"""
    return any(
        isinstance(node, PathState | PathVelocity)
        and any(isinstance(inner, Evaluate) for inner in walk(node))
        for expr in (term.prediction, term.target)
        if expr is not None
        for node in walk(expr)
    )
