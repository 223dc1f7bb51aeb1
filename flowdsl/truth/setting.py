"""What the text of an objective fixes before any network is known: its scalars, the kinds of its
rows, and the settings in which its expressions are read.

Everything is computed on demand and kept, so that the checks share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from flowdsl.calculus.beside import outer_states
from flowdsl.calculus.context import Conditions, Context
from flowdsl.calculus.curriculum import Curricula
from flowdsl.calculus.domain import Domain
from flowdsl.calculus.enclosure import Enclosures
from flowdsl.calculus.errors import Clock
from flowdsl.calculus.expand import Series
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import NoNetwork, Reader, Solution
from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.state import Calculus, Rule, State
from flowdsl.spec.core import Draw, Expr, PathState
from flowdsl.spec.objective import Objective, Term
from flowdsl.truth.cases import Case, TooManyKinds, cases
from flowdsl.truth.live import learning_calls
from flowdsl.truth.sample import Row, base_state
from flowdsl.truth.variables import change_of_variables, opaque_times, scalars_of

#: The row's error (sum of squares), its detached copy, and the number of entries of a sample.
ERROR, ERROR_STOPPED, ENTRIES = "error", "stop(error)", "entries"


@dataclass
class Setting:
    """An objective and the identities under which it is read.

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
    _cases: dict[str, list[Case] | TooManyKinds] = field(default_factory=dict)

    @cached_property
    def curricula(self) -> Curricula:
        return Curricula(self.objective)

    @cached_property
    def domain(self) -> Domain:
        return Domain(self.objective, self.curricula)

    @cached_property
    def enclosures(self) -> Enclosures:
        return Enclosures(self.objective, self.curricula)

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

    def share_with(self, other: Setting) -> None:
        """Make the states of two objectives comparable: one field, one calculus, one small
        quantity.

        To be called before either has been used.
        """
        mine, yours = (scalars_of(a.objective, self.symbolic) for a in (self, other))
        names = list(dict.fromkeys([*mine[0], *yours[0]]))
        scalars = Scalars([*names, "_0", "_1"], spare=room(mine[1] + yours[1]))
        losses = Scalars([ERROR, ERROR_STOPPED, ENTRIES, *names], spare=room(mine[1] + yours[1]))
        series: dict[frozenset[str] | None, Series] = {}
        reserved = scalars.small(), scalars.small(inside=True)
        changes = [c for c in self._changes if c in other._changes]  # a time has one name in both
        for setting in (self, other):
            vars(setting).update(
                scalars=scalars, loss_scalars=losses, _series=series, _reserved=reserved,
                _changes=changes,
            )  # fmt: skip

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
        """Two small quantities kept for good: of the gradient, and of expansions in a parameter.

        Functions are exact in the latter; where a map's network has no weight they are not, which
        shows the pole (see `MapNetwork.solve`).
        """
        return self.scalars.small(), self.scalars.small(inside=True)

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
    def _changes(self) -> list[tuple[str, Expr, Draw]]:
        return change_of_variables(self.objective)

    @cached_property
    def _variables(self) -> dict[Expr, Element]:
        """Times that the spec names replace the draws they are made of: `t` for `s + gap`."""
        bound: dict[Expr, Element] = {}
        reader = Reader(
            Context(self.objective, self.scalars, Calculus(self.scalars, (), self.clock),
                    Series(Calculus(self.scalars, (), self.clock)), self.curricula, 0),
            NoNetwork("scalar"),
        )  # fmt: skip
        for name, expr, draw in self._changes:
            bound[expr] = self.scalars.symbol(name)
            rest = reader.scalar(expr) - self.scalars.symbol(draw.name)
            bound[draw] = self.scalars.symbol(name) - rest
        for name, expr in opaque_times(self.objective):
            bound[expr] = self.scalars.symbol(name)
        return bound

    # rows

    def base(self, case: Case) -> PathState:
        return base_state(self.objective, case.prediction, case.target)

    def bare_row(self, case: Case) -> Row:
        """The row of a case where nothing is asked of networks, or of the mean velocity."""
        context = self.context()
        return self.row(case, context, NoNetwork("row"), context.calculus.zero)

    def row(self, case: Case, context: Context, networks: Solution, marginal: State) -> Row:
        base = self.base(case)
        calls = learning_calls(self.objective, case.prediction, case.target)
        given = outer_states(self.objective, calls[0]) if calls else []
        return Row(context, networks, base, marginal, tuple(s for s in given if s != base))

    def conditions(self, case: Case, context: Context) -> Conditions:
        """The conditions under which the learning network of a case sees its row."""
        calls = learning_calls(self.objective, case.prediction, case.target)
        if not calls:
            return ()
        return Reader(context, NoNetwork("scalar")).conditions(calls[0])


def room(functions: int) -> int:
    """How many generators functions may need: each at several times, and while these move."""
    return 3 * functions + 8
