"""What the parts of a solution ask of the whole.

What a frozen teacher learned, which flow guidance makes of the data's, and what other rows say
about a velocity are each found with the networks of further rows, and those may need the same
again. So each part takes a `Solver`; the one there is, `Truth`, puts the parts together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from flowdsl.calculus.context import Conditions, Context
from flowdsl.calculus.field import Element
from flowdsl.spec.objective import Objective
from flowdsl.truth.cases import Case
from flowdsl.truth.networks import Networks
from flowdsl.truth.setting import Setting

Relation = dict[Conditions, Element]  #: V = Σ c_k v_k: the data's velocity by those of flows


class Solver(Setting, ABC):
    """A setting whose networks are known."""

    @abstractmethod
    def networks(self, case: Case, context: Context, kind: str) -> Networks:
        """The networks on the rows of a case, with the truth or another flow in the maps."""

    @abstractmethod
    def relation(self, case: Case, context: Context, conditions: Conditions) -> Relation:
        """The data's velocity under these conditions on the rows of a case, by those of flows."""

    @abstractmethod
    def of(self, other: Objective) -> Solver:
        """Another objective under the same calculus."""
