"""What every network of an objective computes on each kind of its rows once it has learned.

A network is known by its map, by the target that it is matched to, by the stage from which it is
carried, or by what other rows say; the files beside this one each do one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from flowdsl.calculus.context import Conditions, Context
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import NoNetwork, Reader
from flowdsl.calculus.state import State
from flowdsl.spec.core import Evaluate, Expr, Given, walk
from flowdsl.spec.objective import Objective
from flowdsl.truth.cases import Case
from flowdsl.truth.learnt import Regression
from flowdsl.truth.lessons import lesson
from flowdsl.truth.live import taught
from flowdsl.truth.maps import MapNetwork, shape_of
from flowdsl.truth.marginal import Guidance
from flowdsl.truth.networks import Networks
from flowdsl.truth.regression import regress
from flowdsl.truth.sample import Row, X, check_law
from flowdsl.truth.siblings import Siblings
from flowdsl.truth.solver import Relation, Solver


@dataclass
class Truth(Solver):
    """The networks of one objective, each found once."""

    _regressions: dict[object, Regression] = field(default_factory=dict)
    _lessons: dict[tuple[str, str], Regression | None] = field(default_factory=dict)

    @cached_property
    def guidance(self) -> Guidance:
        return Guidance()

    @cached_property
    def siblings(self) -> Siblings:
        return Siblings()

    def of(self, other: Objective) -> Truth:
        """Another objective under the same calculus."""
        return Truth(other, self.identities, self.clock, find=self.find)

    def networks(self, case: Case, context: Context, kind: str) -> Networks:
        """The networks on the rows of a case, with the truth or another flow in the maps."""
        networks = self.mapped_networks(case, context, kind)
        if kind != "free":
            networks.regression.update(self._regressed(case, context, networks))
            networks.elsewhere = self._elsewhere(case, context)
        return networks

    def mapped_networks(self, case: Case, context: Context, kind: str) -> Networks:
        """As `networks`, where those that no map uses are not asked what they learned."""
        maps: dict[str, MapNetwork] = {}
        for flow_map in self.objective.maps.values():
            try:
                shape = shape_of(flow_map, case.reduce)
            except Undecided:
                if self._needs(case, flow_map.body):
                    raise
                continue
            maps.setdefault(shape.call.network, MapNetwork(context, shape))

        def marginal(conditions: Conditions, point: State, time: Element) -> State:
            return self._marginal(case, context, conditions, point, time)

        return Networks(context, kind, maps, marginal, aliases=self.aliases,
                        own=self.conditions(case, context),
                        lesson=lambda owner: self.lesson(case, owner))  # fmt: skip

    def lesson(self, case: Case, owner: str) -> Regression | None:
        """What a frozen network learned in the stage from which it is carried (see lessons.py)."""
        key = (owner, self.base(case).path)
        if key not in self._lessons:
            self._lessons[key] = lesson(self, *key)
        return self._lessons[key]

    def _elsewhere(self, case: Case, context: Context) -> Callable[[State], State]:
        """Puts in what other rows say about velocities at the place of this one."""

        def rewritten(state: State) -> State:
            time = Reader(context, NoNetwork("scalar")).scalar(self.base(case).time)
            return self.siblings.rewritten(self, case, context, state, time)

        return rewritten

    def _needs(self, case: Case, body: Expr) -> bool:
        own = {n.network for n in walk(body) if isinstance(n, Evaluate)}
        return bool(own & {owner for owner, _ in self._sources(case)})

    def _sources(self, case: Case) -> dict[tuple[str, str], None]:
        """The networks and heads that a case evaluates, or that its tangents do."""
        return {
            self.objective.origin(n.network, n.head): None
            for e in (case.prediction, case.target)
            if e is not None
            for n in walk(e)
            if isinstance(n, Evaluate)
        }

    def _regressed(self, case: Case, context: Context, networks: Networks) -> dict[str, Regression]:
        """Heads that no map uses learn the conditional means of the targets they are matched to.

        Without a map that is the head that the case itself teaches; beside one, any other head of
        the map's network, wherever it is taught.
        """
        found: dict[str, Regression] = {}
        for owner, head in self._sources(case):
            own = networks.maps.get(owner)
            if self.objective.networks[owner].frozen or (own and own.shape.call.head == head):
                continue
            if networks.maps and own is None:
                continue
            where = self._taught(case, owner, head, anywhere=own is not None)
            if where is not None:
                found[head] = self._regression(where, context, networks, owner, head)
        return found

    def _taught(self, case: Case, owner: str, head: str, anywhere: bool) -> Case | None:
        """A case in which a head learns: this one, or else the first there is."""
        others = [c for term in self.matched for c in self.cases(term)] if anywhere else []
        for one in [case, *others]:
            call = taught(self.objective, one.prediction, one.target)
            if call is not None and (call.network, call.head) == (owner, head):
                return one
        return None

    def _regression(
        self, case: Case, context: Context, networks: Networks, owner: str, head: str
    ) -> Regression:
        key = (owner, head, case.prediction, case.target, context.calculus.rules, context.symbolic)
        if key not in self._regressions:
            learner = taught(self.objective, case.prediction, case.target)
            assert learner is not None  # `_taught` found this case by it
            self._regressions[key] = regress(self, case, context, networks, learner)
        return self._regressions[key]

    def _marginal(
        self, case: Case, context: Context, conditions: Conditions, point: State, time: Element
    ) -> State:
        """E[velocity | state, conditions], in terms of the flow to be learned (see marginal.py)."""
        relation = self.relation(case, context, conditions)
        total = context.calculus.zero
        for whose, c in relation.items():
            total = total + context.calculus.velocity(("flow", whose), point, time).scaled(c)
        return total

    def relation(self, case: Case, context: Context, conditions: Conditions) -> Relation:
        return self.guidance.relation(self, case, context, conditions)

    def row_with_marginal(self, case: Case, context: Context, networks: Networks) -> Row:
        """The row of a case with the mean velocity that fits its networks."""
        unknown = context.calculus.zero
        check_law(self.objective, self.base(case))
        row = self.row(case, context, networks, unknown)
        conditions = self.conditions(case, context)
        x = context.calculus.symbol(X)
        if networks.kind == "free":
            marginal = context.calculus.function(("v", ()), x, (row.time,))
        elif self.base(case).data != Given("data"):  # generated samples have the flow's law
            marginal = context.calculus.velocity(("flow", conditions), x, row.time)
        else:
            marginal = self._marginal(case, context, conditions, x, row.time)
            if networks.elsewhere is not None:
                marginal = networks.elsewhere(marginal)
        return self.row(case, context, networks, marginal)
