"""States of the calculus as text in the notation of a spec: what is left over, as a person would
write it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from flowdsl.calculus.context import Conditions
from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.interpret import Call, Reader
from flowdsl.calculus.state import Atom, Field, FunctionAtom, MapAtom, State, Symbol, VelocityAtom
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.spec.core import (
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Kind,
    Number,
    PathState,
    walk,
)
from flowdsl.spec.notation import Notation
from flowdsl.truth.cases import Case
from flowdsl.truth.live import live_calls
from flowdsl.truth.sample import X

_UNSURE = (Undecided, Pole)


@dataclass(frozen=True, eq=False)
class Printer:
    """Prints the states of one case: `x` is the row's path state, `own` its network's
    conditions."""

    analysis: Analysis
    case: Case
    own: Conditions

    @staticmethod
    def of(analysis: Analysis, case: Case) -> Printer:
        try:
            own = analysis.conditions(case, analysis.context())
        except _UNSURE:
            own = ()
        return Printer(analysis, case, own)

    # scalars and names

    def scalar(self, x: Element) -> str:
        return self.analysis.scalars.text(x)

    @property
    def state_name(self) -> str:
        """`z`, or `z(q)` away from the path's own time."""
        base = self.analysis.base(self.case)
        path = self.analysis.objective.paths[base.path]
        plain = isinstance(base.time, Draw) and base.time.name == path.time
        named = self.analysis.objective.definitions.get(path.time)
        if plain or named == base.time:
            return base.path
        return f"{base.path}({self.expression(base.time)})"

    def expression(self, expr: Expr) -> str:
        """A scalar core expression as the spec would write it."""
        return Notation(self._names).text(expr)

    @cached_property
    def _names(self) -> dict[Expr, str]:
        """Names of the spec for numbers that are computed from others."""
        objective = self.analysis.objective
        return {
            shown: name
            for name, expr in objective.definitions.items()
            if isinstance(expr, Apply) and objective.kind(expr) in (Kind.TIME, Kind.SCALAR)
            for shown in (expr, self.case.reduce(expr))
            if not isinstance(shown, Number | Draw | Constant)
        }

    def conditions(self, conditions: Conditions) -> str:
        """What differs from the row's own conditions, as it stands after the bar of a call."""
        usual = dict(self.own)
        parts = [
            f"{name} = {self._shown(value)}"
            for name, value in conditions
            if usual.get(name) != value
        ]
        return " | " + ", ".join(parts) if parts else ""

    def _shown(self, value: object) -> str:
        match value:
            case str():
                return value
            case State():
                return self.state(value)
        return self.scalar(value)

    # states

    def state(self, state: State) -> str:
        """A sum of scalars times atoms; 0 for the zero state."""
        if not state.terms:
            return "0"
        text = ""
        for atom, c in sorted(state.terms.items(), key=lambda item: item[0].serial):
            term = self._term(atom, c)
            if not text:
                text = term
            elif term.startswith("-"):
                text += f" - {term[1:]}"
            else:
                text += f" + {term}"
        return text

    def _term(self, atom: Atom, c: Element) -> str:
        name = self.atom(atom)
        if c == 1:
            return name
        if c == -1:
            return f"-{name}"
        return times(self.scalar(c), name)

    def atom(self, atom: Atom) -> str:
        match atom:
            case Symbol(_, name):
                return self.state_name if name == X else name
            case MapAtom(_, whose, point, start, end, directions, orders):
                name = next(iter(self.analysis.objective.maps), "map")
                arguments = f"{self.state(point)}, {self.scalar(start)}, {self.scalar(end)}"
                times_ = [("start", orders[0]), ("end", orders[1])]
                return self._function(_hat(name, whose), arguments, whose, directions, times_)
            case VelocityAtom(_, whose, point, time, order, directions):
                arguments = f"{self.state(point)}, {self.scalar(time)}"
                return self._function(
                    _hat("v", whose), arguments, whose, directions, [("t", order)]
                )
            case FunctionAtom(_, whose, point, moments, orders, directions):
                arguments = ", ".join([self.state(point), *(self.scalar(t) for t in moments)])
                name = "g" if whose[0].startswith("δ") else whose[0]
                shown = [(self.scalar(t), k) for t, k in zip(moments, orders, strict=True)]
                return self._function(name, arguments, whose, directions, shown)
        raise AssertionError(type(atom).__name__)

    def _function(
        self,
        name: str,
        arguments: str,
        whose: Field,
        directions: tuple[Atom, ...],
        orders: list[tuple[str, int]],
    ) -> str:
        head = "".join(f"∂{time} " * order for time, order in orders)
        if directions:
            head += "J " if len(directions) == 1 else f"D{len(directions)} "
        text = f"{head}{name}({arguments}{self.conditions(whose[1])})"
        if directions:
            text += "[" + ", ".join(self.atom(a) for a in directions) + "]"
        return text

    # left-overs

    def left_over(self, study: Study, state: State) -> str:
        """A left-over by the network and its derivatives where it is a multiple of one, else as it
        is."""
        if not state.terms:
            return "0"
        for text, candidate in self._candidates(study):
            factor = ratio(state, candidate)
            if factor is not None:
                return signed(self.scalar(factor), text)
        return self.state(state)

    def _candidates(self, study: Study) -> list[tuple[str, State]]:
        calls = live_calls(self.analysis.objective, self.case.prediction)
        calls = [c for c in calls if c.network in study.networks.maps]
        if not calls:
            return []
        try:
            return list(self._of_network(study, calls[0]))
        except _UNSURE:
            return []

    def _of_network(self, study: Study, node: Evaluate) -> list[tuple[str, State]]:
        context, scalars = study.context, study.context.scalars
        reader = Reader(context, study.networks, study.row)
        plain = Evaluate(node.network, node.head, node.args, node.conditions)
        own = study.networks.maps[node.network]
        seen = self._seen(node)
        moments = tuple(reader.scalar(a) for a in seen if self._is_time(a))
        argument = next(a for a in seen if not self._is_time(a))
        point = reader.state(argument, False)
        moment = reader.moment(argument, point)
        conditions = reader.conditions(plain)
        start, end = own.times_of(moments, conditions, moment)
        if point.only() is None:  # a multiple of the state: no derivative that a spec would write
            return [(self.call_text(node), self._value(study, plain, point, moments, moment))]
        velocity = study.networks.velocity(conditions, point, start)
        e = scalars.small(inside=True)
        try:
            step = scalars.generator(e)

            def slope(dp: State, steps: tuple[Element, ...]) -> State:
                moved = tuple(t + s * step for t, s in zip(moments, steps, strict=True))
                there = point + dp.scaled(step)
                value = study.networks.value(
                    Call(node.network, node.head, conditions, there, moved, False, plain,
                         reader.moment(node, there))
                )  # fmt: skip
                return context.series.coefficient(value, e, 1)

            zero, one, none = context.calculus.zero, scalars.one, scalars.zero
            count = len(moments)
            first = tuple(one if k == 0 else none for k in range(count))
            value = self._value(study, plain, point, moments, moment)
            name = self.call_text(node)
            t, v = self._time_name(node, 0), self.state(velocity)
            found = []
            if start != end:
                found.append((f"d/d{t}[{name}]", slope(velocity, first)))
                if count > 1:
                    last = tuple(one if k == count - 1 else none for k in range(count))
                    found.append((f"d/d{self._time_name(node, -1)}[{name}]", slope(zero, last)))
                found.append((f"d/d{t}[{name} along none]", slope(zero, first)))
                found.append((f"J {name}[{v}]", slope(velocity, (none,) * count)))
                found.append((f"({name} - {v})", value - velocity))
            found.append((name, value))
            if self._has_derivative():
                return found
            return sorted(found, key=lambda item: not item[0].startswith("("))
        finally:
            scalars.release()

    def _value(
        self,
        study: Study,
        node: Evaluate,
        point: State,
        moments: tuple[Element, ...],
        moment: Element | None,
    ) -> State:
        """What a network computes in a study."""
        conditions = Reader(study.context, study.networks, study.row).conditions(node)
        call = Call(node.network, node.head, conditions, point, moments, False, node, moment)
        return study.networks.value(call)

    def _has_derivative(self) -> bool:
        expressions = [e for e in (self.case.prediction, self.case.target) if e is not None]
        return any(
            isinstance(node, Evaluate) and node.directions for e in expressions for node in walk(e)
        )

    def _is_time(self, expr: Expr) -> bool:
        return self.analysis.objective.kind(expr) is not Kind.STATE

    def _seen(self, node: Evaluate) -> list[Expr]:
        """The state and the times of the flow, among a network's arguments."""
        beside = self.analysis.context().beside(node.network)
        return [a for k, a in enumerate(node.args) if k not in beside]

    def _time_name(self, node: Evaluate, place: int) -> str:
        argument = [a for a in self._seen(node) if self._is_time(a)][place]
        parts = set(walk(argument))
        moments = [n.time for a in node.args for n in walk(a) if isinstance(n, PathState)]
        shown = next((m for m in moments if m in parts), argument)  # of `t - r` the state's time
        text = self.expression(shown)
        return text if text.isidentifier() else f"({text})"

    def call_text(self, node: Evaluate) -> str:
        """`u(z, t, r)` as the spec would write it."""
        arguments = [
            self.expression(a) if self._is_time(a) else self._state_text(a) for a in node.args
        ]
        return f"{node.head}({', '.join(arguments)})"

    def _state_text(self, expr: Expr) -> str:
        if isinstance(expr, PathState) and expr == self.analysis.base(self.case):
            return self.state_name
        return expr.span.text if expr.span is not None else "…"


def _hat(name: str, whose: Field) -> str:
    return f"{name}^" if whose[0] == "hat" else name


def ratio(state: State, other: State) -> Element | None:
    """λ with state = λ other, or None."""
    if not other.terms or state.terms.keys() != other.terms.keys():
        return None
    atom = next(iter(state.terms))
    factor = state.scalars.divide(state.terms[atom], other.terms[atom])
    return factor if other.scaled(factor) == state else None


def signed(factor: str, text: str) -> str:
    """`factor * text`, where a difference takes up a sign: -(a - b) is b - a."""
    inner = text[1:-1]
    if text.startswith("(") and factor in ("1", "-1") and inner.count(" - ") == 1:
        first, second = inner.split(" - ")
        return inner if factor == "1" else f"{second} - {first}"
    if text.startswith("(") and factor.startswith("-") and inner.count(" - ") == 1:
        first, second = inner.split(" - ")
        return times(factor[1:], f"({second} - {first})")
    return times(factor, text)


def times(factor: str, text: str) -> str:
    """`factor * text` with as few signs and brackets as possible."""
    if factor == "1":
        return text
    if factor == "-1":
        return f"-{text}"
    if " / " in factor and not factor.startswith("("):
        top, bottom = factor.split(" / ", 1)
        if top in ("1", "-1"):
            return f"{top[:-1]}{text} / {bottom}"
    if _is_sum(factor):
        factor = f"({factor})"
    return f"{factor} * {text}"


def _is_sum(text: str) -> bool:
    depth = 0
    for k, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and k and character in "+-" and text[k - 1] == " ":
            return True
    return False


__all__ = ["Printer", "ratio", "signed", "times"]
