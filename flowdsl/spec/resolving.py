"""What the parts of resolution ask of the whole.

Calls, laws, paths and derivatives contain expressions, and expressions contain calls and
derivatives. So each part takes a `Resolving`; the one there is, `Resolver`, puts the parts
together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction

from flowdsl.diagnostics import Span
from flowdsl.spec.core import Expr
from flowdsl.spec.env import TOP, Env
from flowdsl.spec.objective import Moving, Path
from flowdsl.spec.operators import Operators
from flowdsl.spec.scope import Scope
from flowdsl.syntax.tree import Expression


class Resolving(ABC):
    """The resolution of one scope's expressions."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.constants: dict[str, Fraction] = {}
        self.asking: list[str] = []  # names being resolved, to find circles
        self.calls = 0
        operators = Operators(scope.networks, self.constants)
        self.kind = operators.kind
        self.checked = operators.checked
        self.apply = operators.apply
        self.select = operators.select_rows

    @abstractmethod
    def expression(self, node: Expression, env: Env = TOP) -> Expr:
        """The core expression of a syntax expression, with kinds checked."""

    @abstractmethod
    def condition(self, node: Expression, env: Env = TOP) -> Expr:
        """An expression that must be a condition."""

    @abstractmethod
    def name(self, name: str, span: Span, env: Env = TOP) -> Expr:
        """What a name means where it stands."""

    @abstractmethod
    def time_name(self, path: str) -> str:
        """The name of a path's time."""

    @abstractmethod
    def path(self, name: str) -> Path:
        """The path as a body over formals, with its velocity."""

    @abstractmethod
    def moving(self) -> Moving | None:
        """`differentiate time along direction`."""
