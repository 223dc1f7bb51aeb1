"""What every reading of one objective shares: its scalars and series, its constants and notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flowdsl.calculus.beside import places
from flowdsl.calculus.curriculum import Curricula
from flowdsl.calculus.expand import Series
from flowdsl.calculus.field import Element
from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.state import Calculus, State
from flowdsl.spec.core import Expr
from flowdsl.spec.objective import Objective

Conditions = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Context:
    """What every reading of one objective shares."""

    objective: Objective
    scalars: Scalars
    calculus: Calculus
    series: Series
    curricula: Curricula
    eta: int  # the small generator of the gradient
    symbolic: bool = True  # constants as symbols; else as their values
    bindings: Mapping[Expr, Element] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)
    _beside: dict[str, frozenset[int]] = field(default_factory=dict)

    def beside(self, network: str) -> frozenset[int]:
        """The arguments of a network that condition its flow (see beside.py)."""
        if network not in self._beside:
            self._beside[network] = places(self.objective, network)
        return self._beside[network]

    @property
    def constants(self) -> dict[int, Element]:
        """The values of the constants that are symbols here, by generator."""
        if not self.symbolic:
            return {}
        return {
            self.scalars.index(name): self.scalars.number(value)
            for name, value in self.objective.constants.items()
            if self.scalars.has(name)
        }

    @property
    def drawn(self) -> set[int]:
        """The generators that differ from row to row: draws, and times named in their place."""
        objective, scalars = self.objective, self.scalars
        same = {*objective.constants, "progress", "step", "steps", "_0", "_1"}
        return {scalars.index(name) for name in scalars.names if name not in same}


def numbers_in(conditions: Conditions) -> dict[str, Element]:
    """The conditions that are numbers, by name."""
    return {name: value for name, value in conditions if not isinstance(value, str | State)}
