"""Core expressions written again: as the syntax tree of a spec, as its text, and as LaTeX.

Whatever shows a core expression to a person goes through here: the summary of a spec, derivations,
the messages and hints of the checks. What the language can say is written so that it reads back to
the same expression. What it cannot say has a form of its own: `(yes on condition, else no)` for a
selection, `J u(z, t)[w, 1]` for tangents that no derivative moves so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property

from flowdsl.diagnostics import Source, Span
from flowdsl.prelude.text import show
from flowdsl.spec.core import (
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Null,
    Number,
    PathState,
    PathVelocity,
    Stop,
    Training,
    walk,
)
from flowdsl.spec.objective import Moving, Objective
from flowdsl.spec.operations import OPERATIONS
from flowdsl.spec.totals import Surroundings, total
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.latex import latex_expression
from flowdsl.syntax.tree import (
    Binary,
    Call,
    Choice,
    Comparison,
    Derivative,
    Expression,
    Name,
    NumberLiteral,
    Replacement,
    Tangents,
    Unary,
)

NOWHERE = Span(Source("", ""), 0, 0)


@dataclass(frozen=True)
class Notation:
    """How expressions are written.

    `names` are expressions that have a name of their own, or are written in a way of their own.
    `paths` are the names of the paths' times, by path, in the order of the spec. `moving` is the
    spec's `differentiate`. `totals` are derivatives of networks that are known to be total ones,
    with their time: they are written `d/dt[…]` whatever the network reads.
    """

    names: Mapping[Expr, str | Expression] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    moving: Moving | None = None
    totals: Mapping[Expr, str] = field(default_factory=dict)

    @staticmethod
    def of(objective: Objective, without: str = "") -> Notation:
        """The notation of a spec, its own names used; `without` is one that is to be written out.

        What is written by a word already keeps it: numbers, draws, and `z` and `velocity`.
        """
        names: dict[Expr, str | Expression] = {}
        for name, value in objective.definitions.items():
            if name != without and value.size > 1 and not _own(value, objective):
                names.setdefault(value, name)
        return Notation(names, times_of(objective), objective.moving)

    def text(self, expr: Expr) -> str:
        """One line, as in a spec."""
        return format_expression(self.tree(expr))

    def latex(self, expr: Expr) -> str:
        """LaTeX for math mode."""
        return latex_expression(self.tree(expr))

    def tree(self, expr: Expr) -> Expression:
        """The syntax tree. Its pieces stand nowhere: the places of what was read are not kept."""
        named = self.names.get(expr)
        if named is not None:
            return _name(named) if isinstance(named, str) else named
        match expr:
            case Number(value):
                return _number(value)
            case Constant(name) | Training(name) | Draw(name, _, _) | Given(name) | Formal(name, _):
                return _name(name)
            case Null():
                return _name("null")
            case PathState():
                return self._state(expr)
            case PathVelocity(path, time, data, noise):
                state = self.tree(PathState(path, time, data, noise))
                if state == _name(path) and path == next(iter(self.paths), ""):
                    return _name("velocity")
                return Call(NOWHERE, "velocity", (state,))
            case Stop(body):
                return Call(NOWHERE, "stop", (self.tree(body),))
            case Evaluate():
                return self._network(expr)
            case Apply(op, args):
                return _apply(op, [self.tree(a) for a in args])
        raise TypeError(f"flowdsl/spec/notation.py has no rule for {type(expr).__name__}")

    @cached_property
    def _taken(self) -> frozenset[str]:
        """Names that mean what `names` says, and nothing else that is called the same."""
        return frozenset(name for name in self.names.values() if isinstance(name, str))

    def _means(self, expr: Expr, name: str) -> bool:
        """Does the bare name mean this expression, wherever it stands?"""
        shown = self.tree(expr)
        return shown == _name(name) and (expr in self.names or name not in self._taken)

    def _state(self, state: PathState) -> Expression:
        """`z` at the path's own time and ends, else `z(s | noise = …)`."""
        ends = (("data", state.data), ("noise", state.noise))
        replaced = tuple(
            Replacement(NOWHERE, end, self.tree(value))
            for end, value in ends
            if value != Given(end)
        )
        time = self.paths.get(state.path)
        if time is not None and not replaced and self._means(state.time, time):
            return _name(state.path)
        return Call(NOWHERE, state.path, (self.tree(state.time),), (), replaced)

    def _network(self, node: Evaluate) -> Expression:
        """A call, a derivative of one in a time or a state, or one along tangents.

        Conditions that are the row's own go without saying: those that their own name means.
        """
        shown = tuple(
            Replacement(NOWHERE, name, self.tree(value))
            for name, value in node.conditions
            if not self._means(value, name)
        )
        call = Call(NOWHERE, node.head, tuple(map(self.tree, node.args)), (), shown)
        if node in self.totals:
            return Derivative(NOWHERE, self.totals[node], call)
        if not node.directions:
            return call
        return self._derivative(node, call) or Tangents(NOWHERE, call, self._tangents(node))

    def _derivative(self, node: Evaluate, call: Call) -> Derivative | None:
        """As `d/dX[…]`; names stay fixed in it, so those that move in the call are written out."""
        inside = {inner for arg in node.args for inner in walk(arg) if _is_formula(inner)}
        opened = {value: name for value, name in self.names.items() if value not in inside}
        for notation in (self, replace(self, names=opened)):
            around = Surroundings(
                notation._named, notation._own_state, notation.paths, notation.moving
            )
            found = total(node, around)
            if found is not None:
                args = tuple(map(notation.tree, node.args))
                along = None if found.along is None else self.tree(found.along)
                along = _name("none") if found.fixed else along
                return Derivative(NOWHERE, found.variable, replace(call, arguments=args), along)
        return None

    def _tangents(self, node: Evaluate) -> tuple[tuple[Expression, ...], ...]:
        zero = NumberLiteral(NOWHERE, "0")
        return tuple(
            tuple(zero if d is None else self.tree(d) for d in direction)
            for direction in node.directions
        )

    def _named(self, expr: Expr) -> str:
        """The name that means this expression where it stands alone; empty where there is none."""
        shown = self.tree(expr) if expr in self.names or isinstance(expr, Draw | Formal) else None
        return shown.id if isinstance(shown, Name) and self._means(expr, shown.id) else ""

    def _own_state(self, expr: Expr) -> bool:
        """Is it the state of a path at the path's own time, written by the path's name alone?"""
        return isinstance(expr, PathState) and self.tree(expr) == _name(expr.path)


def times_of(objective: Objective) -> dict[str, str]:
    """The names of the paths' times, by path."""
    return {name: path.time for name, path in objective.paths.items()}


def _own(value: Expr, objective: Objective) -> bool:
    """Is it a path's state or velocity at the path's own time and ends?"""
    if not isinstance(value, PathState | PathVelocity):
        return False
    time = objective.definitions.get(objective.paths[value.path].time)
    return (value.time, value.data, value.noise) == (time, Given("data"), Given("noise"))


def _is_formula(expr: Expr) -> bool:
    """Is it computed on all rows alike? Only then has the language words for its derivative."""
    return isinstance(expr, Apply) and OPERATIONS[expr.op].shape in ("arithmetic", "elementwise")


def _name(name: str) -> Name:
    return Name(NOWHERE, name)


def _apply(op: str, args: list[Expression]) -> Expression:
    row = OPERATIONS[op]
    match row.shape, args:
        case "arithmetic", [operand]:
            return Unary(NOWHERE, "-", operand)
        case "logic", [operand]:
            return Unary(NOWHERE, "not", operand)
        case "logic", []:
            return _name(op)
        case "arithmetic" | "logic", [left, right]:
            return Binary(NOWHERE, row.symbol, left, right)
        case "comparison", [left, right]:
            return Comparison(NOWHERE, (left, right), (row.symbol,))
        case "select", [condition, yes, no]:
            return Choice(NOWHERE, condition, yes, no)
    return Call(NOWHERE, op, tuple(args))


def _number(value: Fraction) -> Expression:
    """A decimal where one is exact, else a quotient; the sign stands outside."""
    if value < 0:
        return Unary(NOWHERE, "-", _number(-value))
    text = show(value)
    if "/" not in text:
        return NumberLiteral(NOWHERE, text)
    parts = (NumberLiteral(NOWHERE, part) for part in text.split(" / "))
    return Binary(NOWHERE, "/", *parts)
