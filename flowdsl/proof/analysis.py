"""One objective under the calculus: the truth of each kind of its rows, and what is left of each
term there.

Everything is computed on demand and kept, so that the checks share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from flowdsl.calculus.context import Context
from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.expand import Parts, parts
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Reader
from flowdsl.calculus.state import State
from flowdsl.proof.hidden import averaged
from flowdsl.proof.removable import joined
from flowdsl.proof.weight import Weight, weight_of
from flowdsl.spec.core import Evaluate, Expr, Given, walk
from flowdsl.spec.objective import Term
from flowdsl.truth.cases import Case
from flowdsl.truth.live import learning_calls
from flowdsl.truth.networks import Networks
from flowdsl.truth.sample import NOISES, Row
from flowdsl.truth.truth import Truth


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
class Analysis(Truth):
    """The objective with its identities, and every study made of it."""

    found: dict[object, object] = field(default_factory=dict)  # kept for what asks more than once
    _studies: dict[object, Study] = field(default_factory=dict)
    _joined: set[int] = field(default_factory=set)  # terms whose kinds of rows were looked at

    @cached_property
    def values(self) -> Analysis:
        """The same objective with its constants at the values of the spec."""
        if not self.symbolic or not self.objective.constants:
            return self
        own = Analysis(self.objective, self.identities, self.clock, symbolic=False, find=self.find)
        own._cases, own._joined = self._cases, self._joined
        return own

    def cases(self, term: Term) -> list[Case]:
        """Every kind of row of a term, but for those that are limits of others."""
        found = super().cases(term)
        key = self.objective.terms.index(term)
        if key not in self._joined:
            self._joined.add(key)
            found[:] = joined(self, self._residual, found)
        return found

    def _residual(self, case: Case, bindings: Mapping[Expr, Element]) -> State:
        return self.study(case, bindings=bindings).residual

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

    def _is_blind(self, case: Case, kind: str) -> bool:
        """Does the target know a label that the learning network is not shown?

        What that means is known at the truth only; elsewhere it raises `Undecided`.
        """
        assert case.target is not None
        live = learning_calls(self.objective, case.prediction, None)
        seen = {n for call in live[:1] for _, value in call.conditions for n in walk(value)}
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
