"""One objective under the calculus: its cases, the truth of each, and what is left of each term
there.

Everything is computed on demand and kept, so that the checks share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from flowdsl.proof.cases import Case, TooManyKinds, cases
from flowdsl.proof.curriculum import Curricula
from flowdsl.proof.domain import Domain
from flowdsl.proof.errors import Clock, Undecided
from flowdsl.proof.expand import Parts, Series, parts
from flowdsl.proof.field import Element
from flowdsl.proof.hidden import averaged
from flowdsl.proof.interpret import Conditions, Context, Reader
from flowdsl.proof.learnt import Regression
from flowdsl.proof.lessons import lesson
from flowdsl.proof.marginal import Guidance, Relation
from flowdsl.proof.regression import regress
from flowdsl.proof.sample import NOISES, Row, X, base_state, check_law, learning_calls
from flowdsl.proof.scalars import Scalars
from flowdsl.proof.siblings import Siblings
from flowdsl.proof.state import Calculus, Rule, State
from flowdsl.proof.truth import MapNetwork, Networks, shape_of
from flowdsl.proof.variables import change_of_variables, scalars_of
from flowdsl.proof.weight import ENTRIES, ERROR, ERROR_STOPPED, Weight, weight_of
from flowdsl.spec.core import Evaluate, Expr, Given, PathState, walk
from flowdsl.spec.objective import Objective, Term


@dataclass(frozen=True)
class Study:
    """A term of one case with every network in its place.

    `prediction` and `target` still carry η; `residual` is their difference where η is 0,
    `variation` what the difference does when the networks move, per unit of η.
    """

    row: Row
    networks: Networks
    prediction: State
    target: State
    residual: State
    variation: State
    notes: frozenset[str]
    blind: bool = False  # the target knows a label that the learning network is not shown

    @property
    def context(self) -> Context:
        return self.row.context

    @cached_property
    def parts(self) -> Parts:
        return parts(self.residual, NOISES)


@dataclass
class Analysis:
    """The objective with its identities, and every study made of it.

    `symbolic` keeps constants as symbols, so that a proof holds for all of their values; else they
    have the values of the spec.
    """

    objective: Objective
    identities: Sequence[Rule]
    clock: Clock
    symbolic: bool = True
    find: Callable[[str], Objective] | None = None  # how other objectives are found by name
    aliases: dict[str, str] = field(default_factory=dict)
    _contexts: dict[object, Context] = field(default_factory=dict)
    _studies: dict[object, Study] = field(default_factory=dict)
    _cases: dict[str, list[Case] | TooManyKinds] = field(default_factory=dict)
    _regressions: dict[object, Regression] = field(default_factory=dict)
    _lessons: dict[tuple[str, str], Regression | None] = field(default_factory=dict)

    @cached_property
    def curricula(self) -> Curricula:
        return Curricula(self.objective)

    @cached_property
    def domain(self) -> Domain:
        return Domain(self.objective, self.curricula)

    @cached_property
    def scalars(self) -> Scalars:
        """The field of this objective: the scalars that its mathematics contains, in a fixed
        order."""
        names, functions = scalars_of(self.objective, self.symbolic)
        return Scalars([*names, "_0", "_1"], spare=room(functions))

    @cached_property
    def loss_scalars(self) -> Scalars:
        """The field of the row's losses."""
        names, functions = scalars_of(self.objective, self.symbolic)
        return Scalars([ERROR, ERROR_STOPPED, ENTRIES, *names], spare=room(functions))

    @cached_property
    def values(self) -> Analysis:
        """The same objective with its constants at the values of the spec."""
        if not self.symbolic or not self.objective.constants:
            return self
        own = Analysis(self.objective, self.identities, self.clock, symbolic=False, find=self.find)
        own._cases = self._cases
        return own

    @cached_property
    def guidance(self) -> Guidance:
        return Guidance()

    @cached_property
    def siblings(self) -> Siblings:
        return Siblings()

    def share_with(self, other: Analysis) -> None:
        """Make the states of two objectives comparable: one field, one calculus, one small
        quantity.

        To be called before either has been used.
        """
        mine, yours = (scalars_of(a.objective, self.symbolic) for a in (self, other))
        names = list(dict.fromkeys([*mine[0], *yours[0]]))
        scalars = Scalars([*names, "_0", "_1"], spare=room(mine[1] + yours[1]))
        losses = Scalars([ERROR, ERROR_STOPPED, ENTRIES, *names], spare=room(mine[1] + yours[1]))
        series: dict[frozenset[str] | None, Series] = {}
        reserved = scalars.small(), scalars.small()
        for analysis in (self, other):
            vars(analysis).update(
                scalars=scalars, loss_scalars=losses, _series=series, _reserved=reserved
            )

    def cases(self, term: Term) -> list[Case]:
        """Every kind of row the term is computed on. Raises `Undecided` where they are too many."""
        key = f"{term.name}/{self.objective.terms.index(term)}"
        if key not in self._cases:
            try:
                self._cases[key] = cases(self.objective, self.domain, term)
            except TooManyKinds as undecided:
                self._cases[key] = undecided
        known = self._cases[key]
        if isinstance(known, TooManyKinds):
            raise known
        return known

    @property
    def matched(self) -> list[Term]:
        """The terms that claim an identity."""
        return [term for term in self.objective.terms if term.target is not None]

    def all_cases(self) -> Iterable[Case]:
        for term in self.matched:
            yield from self.cases(term)

    # contexts

    def context(
        self,
        rules: frozenset[str] | None = None,
        bindings: Mapping[Expr, Element] | None = None,
    ) -> Context:
        """The setting of a reading: identities in force, and values put in the place of scalars."""
        key = (rules, frozenset((bindings or {}).items()))
        known = self._contexts.get(key)
        if known is None:
            active = [r for r in self.identities if rules is None or r.name in rules]
            calculus = self._calculus(rules, active)
            bound = {**self._variables, **(bindings or {})}
            known = Context(
                self.objective, self.scalars, calculus, self._series[rules], self.curricula,
                self._reserved[0], self.symbolic, bound,
            )  # fmt: skip
            self._contexts[key] = known
        return known

    @cached_property
    def _reserved(self) -> tuple[int, int]:
        """Two small quantities kept for good: of the gradient, and of expansions in a parameter."""
        return self.scalars.small(), self.scalars.small()

    @property
    def small(self) -> int:
        """The generator in which residuals are expanded."""
        return self._reserved[1]

    def _calculus(self, rules: frozenset[str] | None, active: Sequence[Rule]) -> Calculus:
        if rules not in self._series:
            self._series[rules] = Series(Calculus(self.scalars, active, self.clock))
        return self._series[rules].calculus

    @cached_property
    def _series(self) -> dict[frozenset[str] | None, Series]:
        return {}

    @cached_property
    def _variables(self) -> dict[Expr, Element]:
        """Times that the spec names replace the draws they are made of: `t` for `s + gap`."""
        bound: dict[Expr, Element] = {}
        reader = Reader(
            Context(self.objective, self.scalars, Calculus(self.scalars, (), self.clock),
                    Series(Calculus(self.scalars, (), self.clock)), self.curricula, 0),
            _Nothing(),
        )  # fmt: skip
        for name, expr, draw in change_of_variables(self.objective):
            bound[expr] = self.scalars.symbol(name)
            rest = reader.scalar(expr) - self.scalars.symbol(draw.name)
            bound[draw] = self.scalars.symbol(name) - rest
        return bound

    # networks

    def networks(self, case: Case, context: Context, kind: str) -> Networks:
        """The networks on the rows of a case, with the truth or another flow in the maps."""
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

        networks = Networks(context, kind, maps, marginal, aliases=self.aliases,
                            own=self.conditions(case, context),
                            lesson=lambda owner: self.lesson(case, owner))  # fmt: skip
        if kind != "free":
            networks.regression.update(self._regressed(case, context, networks))
            networks.elsewhere = self._elsewhere(case, context)
        return networks

    def lesson(self, case: Case, owner: str) -> Regression | None:
        """What a frozen network learned in the stage from which it is carried (see lessons.py)."""
        key = (owner, self.base(case).path)
        if key not in self._lessons:
            self._lessons[key] = lesson(self, *key)
        return self._lessons[key]

    def of(self, other: Objective) -> Analysis:
        """Another objective under the same calculus."""
        return Analysis(other, self.identities, self.clock, find=self.find)

    def _elsewhere(self, case: Case, context: Context) -> Callable[[State], State]:
        """Puts in what other rows say about velocities at the place of this one."""

        def rewritten(state: State) -> State:
            time = Reader(context, _Nothing()).scalar(self.base(case).time)
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
            calls = learning_calls(self.objective, one.prediction, None)
            if calls and (calls[0].network, calls[0].head) == (owner, head):
                return one
        return None

    def _regression(
        self, case: Case, context: Context, networks: Networks, owner: str, head: str
    ) -> Regression:
        key = (owner, head, case.prediction, case.target, context.calculus.rules, context.symbolic)
        if key not in self._regressions:
            learner = learning_calls(self.objective, case.prediction, None)[0]
            self._regressions[key] = regress(self, case, context, networks, learner)
        return self._regressions[key]

    def conditions(self, case: Case, context: Context) -> Conditions:
        """The conditions under which the learning network of a case sees its row."""
        calls = learning_calls(self.objective, case.prediction, case.target)
        if not calls:
            return ()
        return Reader(context, _Nothing()).conditions(calls[0])

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

    # studies

    def base(self, case: Case) -> PathState:
        return base_state(self.objective, case.prediction, case.target)

    def row(self, case: Case, context: Context, networks: Networks, marginal: State) -> Row:
        return Row(context, networks, self.base(case), marginal)

    def study(
        self,
        case: Case,
        kind: str = "flow",
        rules: frozenset[str] | None = None,
        bindings: Mapping[Expr, Element] | None = None,
    ) -> Study:
        """The term of a case with networks of this kind. Raises `Undecided`."""
        key = (case.prediction, case.target, case.term.name, kind, rules,
               frozenset((bindings or {}).items()))  # fmt: skip
        known = self._studies.get(key)
        if known is None:
            context = replace(self.context(rules, bindings), notes=set())
            networks = self.networks(case, context, kind)
            known = self._studies[key] = self.study_with(case, context, networks)
        return known

    def study_with(self, case: Case, context: Context, networks: Networks) -> Study:
        """The term of a case with the given networks."""
        blind = self._is_blind(case, networks.kind)
        row = self.row_with_marginal(case, context, networks)
        reader = Reader(context, networks, row)
        assert case.target is not None
        prediction, target = reader.state(case.prediction), reader.state(case.target)
        difference = prediction - target
        if blind:
            difference = averaged(row, self.conditions(case, context), difference)
        series = context.series
        return Study(
            row, networks, prediction, target,
            series.at_zero(difference, context.eta),
            series.coefficient(difference, context.eta, 1),
            frozenset(context.notes),
            blind,
        )  # fmt: skip

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

    def _is_blind(self, case: Case, kind: str) -> bool:
        """Does the target know a label that the learning network is not shown?

        What that means is known at the truth only; elsewhere it raises `Undecided`.
        """
        assert case.target is not None
        live = learning_calls(self.objective, case.prediction, None)
        seen = {value for call in live[:1] for _, value in call.conditions}
        for expr in (case.prediction, case.target):
            for node in walk(expr):
                shown = [v for _, v in node.conditions] if isinstance(node, Evaluate) else []
                if live and any(isinstance(v, Given) and v not in seen for v in shown):
                    if kind == "flow":
                        return True
                    raise Undecided(
                        "a network is shown a label that the learning network is not shown",
                        node.span,
                    )
        return False

    @property
    def notes(self) -> set[str]:
        """What the studies took for granted."""
        return {note for study in self._studies.values() for note in study.notes}

    def weight(self, case: Case) -> Weight:
        """The row's loss as a function of its error."""
        return weight_of(self, case)


def room(functions: int) -> int:
    """How many generators functions may need: each at several times, and while these move."""
    return 3 * functions + 8


class _Nothing:
    """No network may be evaluated here."""

    def value(self, call: object) -> State:
        raise Undecided("a network inside a scalar")
