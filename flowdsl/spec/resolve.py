"""Names to meanings: syntax expressions become core expressions.

Everything a name can be is decided here, once: a draw, a definition, a path state, a network, a
map, a function of the prelude. Calls are read in `calls.py`, derivatives in `motion.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from flowdsl.diagnostics import DiagnosticError, Span, did_you_mean, fail
from flowdsl.spec.calls import call, velocity_of
from flowdsl.spec.constants import constant_value
from flowdsl.spec.core import (
    Constant,
    Expr,
    Given,
    Kind,
    Null,
    Number,
    PathState,
    Training,
)
from flowdsl.spec.env import TOP, Env
from flowdsl.spec.laws import LawResolver
from flowdsl.spec.motion import derivative, resolve_map, resolve_moving, resolve_path
from flowdsl.spec.objective import DrawDeclaration, DrawLine, FlowMap, Moving, Path
from flowdsl.spec.resolving import Resolving
from flowdsl.spec.scope import Entry, Scope
from flowdsl.syntax import lines as syntax_lines
from flowdsl.syntax.tree import (
    Binary,
    Call,
    Comparison,
    Derivative,
    Expression,
    Name,
    NumberLiteral,
    Unary,
)

GIVEN = ("data", "noise", "label", "text")
TRAINING = ("progress", "step", "steps")
_ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div", "^": "pow", "and": "and", "or": "or"}
_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}


class Resolver(Resolving):
    """Resolves the expressions of one scope."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self.draws: dict[str, DrawDeclaration] = {}
        self.definitions: dict[str, Expr] = {}
        self._paths: dict[str, Path] = {}
        self._maps: dict[str, FlowMap] = {}
        self._moving: Moving | None = None
        self._laws = LawResolver(self)

    def name(self, name: str, span: Span, env: Env = TOP) -> Expr:
        """What a name means where it stands."""
        bound = env.values.get(name)
        if isinstance(bound, Expr):
            return bound
        if name in env.moving:
            return env.moving[name]
        if name in self.scope.entries:
            found = self.definition(name, span)
            looks_inside = self.scope.entries[name][0].clause.transparent and env.moving
            if looks_inside and self.kind(found) is Kind.STATE:
                return self._fold(name, Env(moving=env.moving, order=env.order))
            return found
        if name in self.scope.path_lines:
            time = self.name(self.time_name(name), span)
            return PathState(name, time, Given("data"), Given("noise"), span=span)
        if name == "velocity":
            state = next(iter(self.scope.path_lines), None)
            if state is None:
                raise fail("resolve", "there is no path, so there is no `velocity`", span)
            return velocity_of(self.name(state, span), span)
        if name in GIVEN:
            return Given(name, span=span)
        if name in TRAINING:
            return Training(name, span=span)
        if name == "null":
            return Null(span=span)
        raise self._unknown(name, span)

    def definition(self, name: str, span: Span) -> Expr:
        """The value of a bound name, in the outermost scope."""
        if name in self.definitions:
            return self.definitions[name]
        if name in self.asking:
            circle = " -> ".join([*self.asking[self.asking.index(name) :], name])
            raise fail("resolve", f"`{name}` is defined by itself: {circle}", span)
        self.asking.append(name)
        try:
            value = self._fold(name, TOP)
        finally:
            self.asking.pop()
        self.definitions[name] = value
        return value

    def _fold(self, name: str, env: Env) -> Expr:
        """The first line gives the value; each later one replaces it on its rows."""
        entries = self.scope.entries[name]
        draw_entries = [e for e in entries if isinstance(e.line, syntax_lines.DrawLine)]
        value: Expr | None = None
        if draw_entries:
            value = self._draw(name, draw_entries)
        elif name in GIVEN:
            value = Given(name, span=entries[0].line.span)
        for entry in entries:
            line = entry.line
            if isinstance(line, syntax_lines.DrawLine):
                continue
            if line.parameters is not None:
                raise fail(
                    "resolve",
                    f"`{name}` is a function of {', '.join(line.parameters)}",
                    line.span,
                    hint=f"call it: `{name}({', '.join(line.parameters)})`",
                )
            if entry.clause.keyword == "constants":
                value = self._constant(name, line)
                continue
            new = self.expression(line.value, env)
            if line.rows is not None:
                if value is None:
                    raise fail(
                        "resolve",
                        f"`{name}` has no value on the other rows",
                        line.span,
                        hint=f"first give `{name}` a value everywhere, in a line without `on`",
                    )
                new = self.select(self.condition(line.rows, env), new, value, line.span)
            value = new
        assert value is not None
        return value

    def _constant(self, name: str, line: syntax_lines.Binding) -> Expr:
        if line.rows is not None:
            raise fail("resolve", "a constant has one value, on all rows", line.rows.span)
        value = constant_value(self.expression(line.value), self.constants)
        if value is None:
            raise fail(
                "resolve",
                f"the constant `{name}` must be a number",
                line.value.span,
                hint="what varies from row to row is drawn under `times` or `conditions`",
            )
        self.constants[name] = value
        return Constant(name, span=line.span)

    def _draw(self, name: str, entries: Sequence[Entry]) -> Expr:
        if name in GIVEN:
            raise fail(
                "resolve",
                f"`{name}` is given; a fresh draw needs a new name",
                entries[0].line.span,
                hint=f"for example `{name}'`",
            )
        lines = []
        for position, entry in enumerate(entries):
            line = entry.line
            assert isinstance(line, syntax_lines.DrawLine)
            law = self._laws.resolve(line.law)
            rows = self.condition(line.rows) if line.rows is not None else None
            if rows is not None and position == 0 and law.law not in ("share", "bernoulli"):
                raise fail(
                    "resolve",
                    f"`{name}` has no law on the other rows",
                    line.span,
                    hint="first give it a law everywhere, in a line without `on`",
                )
            # only a pair is drawn together; else each name is a draw of its own
            names = self._laws.together(line.drawn, law) or (name,)
            lines.append(DrawLine(names, law, rows, line.span))
        kind, level = self._laws.kind(name, lines[0].law, entries[0].clause)
        declared = DrawDeclaration(name, kind, level, tuple(lines))
        self.draws[name] = declared
        return replace(declared.symbol, span=entries[0].line.span)

    def _unknown(self, name: str, span: Span) -> DiagnosticError:
        if name in self.scope.heads:
            network = self.scope.networks[self.scope.heads[name]]
            shown = ", ".join(argument for argument, _ in network.arguments)
            return fail(
                "resolve", f"`{name}` is a network", span, hint=f"call it: `{name}({shown})`"
            )
        known = {*self.scope.known_names, *GIVEN, *TRAINING, "velocity", "null"}
        number = {"pi": math.pi, "π": math.pi, "e": math.e}.get(name)
        if number is not None:
            return fail(
                "resolve",
                f"nothing here is called `{name}`: numbers have no names until a spec names them",
                span,
                hint=f"write `constants {name} = {number}`, or the number itself",
            )
        return fail(
            "resolve",
            f"nothing here is called `{name}`",
            span,
            hint=did_you_mean(name, known) or f"known names: {', '.join(sorted(known))}",
        )

    def expression(self, node: Expression, env: Env = TOP) -> Expr:
        """The core expression of a syntax expression, with kinds checked."""
        return self.checked(self._expression(node, env), node.span)

    def condition(self, node: Expression, env: Env = TOP) -> Expr:
        """An expression that must be a condition."""
        found = self.expression(node, env)
        if self.kind(found) is not Kind.TRUTH:
            raise fail(
                "kinds",
                f"`on` needs a condition, and this is a {self.kind(found).value}",
                node.span,
                hint="compare it, as in `on t > s`, or draw rows: `diagonal ~ share(0.75)`",
            )
        return found

    def _expression(self, node: Expression, env: Env) -> Expr:
        match node:
            case NumberLiteral(span, text):
                return Number(Fraction(text), span=span)
            case Name(span, name):  # the place is where the name stands, not where it is defined
                return replace(self.name(name, span, env), span=span)
            case Unary(span, op, operand):
                word = "not" if op == "not" else "neg"
                return self.apply(word, (self.expression(operand, env),), span)
            case Binary(span, op, left, right):
                args = (self.expression(left, env), self.expression(right, env))
                return self.apply(_ARITHMETIC[op], args, span)
            case Comparison(span, operands, operators):
                values = [self.expression(operand, env) for operand in operands]
                result: Expr | None = None
                for i, op in enumerate(operators):
                    one = self.apply(_COMPARE[op], (values[i], values[i + 1]), span)
                    result = one if result is None else self.apply("and", (result, one), span)
                assert result is not None
                return result
            case Derivative():
                return derivative(self, node, env)
            case Call():
                return call(self, node, env)
        raise TypeError(f"flowdsl/spec/resolve.py has no rule for {type(node).__name__}")

    # -- paths and maps --------------------------------------------------------------------------

    def time_name(self, path: str) -> str:
        (time,) = self.scope.path_lines[path].parameters or ("",)
        return time

    def path(self, name: str) -> Path:
        """The path as a body over formals, with its velocity."""
        if name not in self._paths:
            self._paths[name] = resolve_path(self, name)
        return self._paths[name]

    def map(self, name: str) -> FlowMap:
        """The map as a body over formals."""
        if name not in self._maps:
            self._maps[name] = resolve_map(self, name)
        return self._maps[name]

    def moving(self) -> Moving | None:
        """`differentiate time along direction`."""
        if self._moving is None:
            self._moving = resolve_moving(self)
        return self._moving
