"""Names to meanings: syntax expressions become core expressions.

Everything a name can be is decided here, once: a draw, a definition, a path state, a network, a
map, a function of the prelude. `d/dX[…]` disappears here too (see `differentiate.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from flowdsl.diagnostics import DiagnosticError, Span, did_you_mean, fail
from flowdsl.spec.core import (
    ONE,
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Level,
    Null,
    Number,
    PathState,
    PathVelocity,
    Stop,
    Training,
    replace_formals,
    select,
    transform,
)
from flowdsl.spec.differentiate import differentiate
from flowdsl.spec.kinds import kind_of, level_of
from flowdsl.spec.laws import LawResolver
from flowdsl.spec.objective import DrawDeclaration, DrawLine, FlowMap, Moving, Path
from flowdsl.spec.operations import OPERATIONS
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
    Replacement,
    Unary,
)

MAX_SIZE = 20_000
MAX_DEPTH = 150
MAX_POWER = 64
MAX_STEPS = 64

GIVEN = ("data", "noise", "label")
TRAINING = ("progress", "step", "steps")
_ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div", "^": "pow", "and": "and", "or": "or"}
_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}


@dataclass(frozen=True)
class Env:
    """What names mean inside a body: parameters and replaced names first, then moving ones.

    `values` binds parameters of functions and maps, and what a call replaces after its bar; a
    string stands for another network. `moving` binds the time and states that a surrounding
    `d/dX[…]` moves. `map_state` is the state of a map and its start, while its body is read.
    """

    values: Mapping[str, Expr | str] = field(default_factory=dict)
    moving: Mapping[str, Expr] = field(default_factory=dict)
    map_state: tuple[str, Expr] | None = None


TOP = Env()


class Resolver:
    """Resolves the expressions of one scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.constants: dict[str, Fraction] = {}
        self.draws: dict[str, DrawDeclaration] = {}
        self.definitions: dict[str, Expr] = {}
        self._asking: list[str] = []
        self._paths: dict[str, Path] = {}
        self._maps: dict[str, FlowMap] = {}
        self._moving: Moving | None = None
        self._laws = LawResolver(self)
        self._calls = 0

    # -- names ---------------------------------------------------------------------------------

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
                return self._fold(name, Env(moving=env.moving))
            return found
        if name in self.scope.path_lines:
            time = self.name(self._time_name(name), span)
            return PathState(name, time, Given("data"), Given("noise"), span=span)
        if name == "velocity":
            state = next(iter(self.scope.path_lines), None)
            if state is None:
                raise fail("resolve", "there is no path, so there is no `velocity`", span)
            return self._velocity(self.name(state, span), span)
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
        if name in self._asking:
            circle = " -> ".join([*self._asking[self._asking.index(name) :], name])
            raise fail("resolve", f"`{name}` is defined by itself: {circle}", span)
        self._asking.append(name)
        try:
            value = self._fold(name, TOP)
        finally:
            self._asking.pop()
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
                new = self._select(self.condition(line.rows, env), new, value, line.span)
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
                "resolve", f"`{name}` is given; a fresh draw needs a new name", entries[0].line.span,
                hint=f"for example `{name}'`",
            )  # fmt: skip
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
            lines.append(DrawLine(line.drawn, law, rows, line.span))
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
        return fail(
            "resolve",
            f"nothing here is called `{name}`",
            span,
            hint=did_you_mean(name, known) or f"known names: {', '.join(sorted(known))}",
        )

    # -- expressions ---------------------------------------------------------------------------

    def expression(self, node: Expression, env: Env = TOP) -> Expr:
        """The core expression of a syntax expression, with kinds checked."""
        return self._checked(self._expression(node, env), node.span)

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
            case Name(span, name):
                return self.name(name, span, env)
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
                return self._derivative(node, env)
            case Call():
                return self._call(node, env)
        raise TypeError(f"flowdsl/spec/resolve.py has no rule for {type(node).__name__}")

    def kind(self, expr: Expr) -> Kind:
        return kind_of(expr, self.scope.networks)

    def _checked(self, expr: Expr, span: Span) -> Expr:
        if expr.size > MAX_SIZE or expr.depth > MAX_DEPTH:
            raise fail(
                "resolve",
                "this expression grows too large once its names are written out",
                span,
                facts=(("at most", f"{MAX_SIZE} operations, {MAX_DEPTH} deep"),),
                hint="a definition that uses another twice doubles it; use each once",
            )
        return expr

    def apply(self, op: str, args: tuple[Expr, ...], span: Span) -> Expr:
        """An operation on arguments of the right number and kinds."""
        row = OPERATIONS[op]
        if len(args) != row.arity:
            raise fail(
                "resolve",
                f"`{op}` takes {row.arity} argument{'s' * (row.arity != 1)}, not {len(args)}",
                span,
                hint=row.meaning,
            )
        kinds = [self.kind(a) for a in args]
        shown = row.symbol or op
        match row.shape:
            case "arithmetic":
                self._arithmetic(op, shown, kinds, args, span)
            case "comparison" | "batch":
                _demand(kinds, (Kind.SCALAR, Kind.TIME), f"`{shown}` takes numbers", args, span)
            case "logic":
                _demand(kinds, (Kind.TRUTH,), f"`{shown}` joins conditions", args, span)
            case "reduction":
                _demand(kinds, (Kind.STATE,), f"`{shown}` takes states", args, span)
            case "elementwise":
                _demand(kinds[1:], (Kind.SCALAR, Kind.TIME), f"`{shown}` takes numbers", args[1:], span)  # fmt: skip
                _demand(kinds[:1], (Kind.SCALAR, Kind.TIME, Kind.STATE), f"`{shown}` takes numbers", args[:1], span)  # fmt: skip
                if kinds[0] is Kind.STATE and op not in ("clip",):
                    raise fail(
                        "kinds",
                        f"`{op}` of a state is not defined",
                        span,
                        hint="states are added and scaled; `norm`, `mean_abs` and `clip` take one",
                    )
        return Apply(op, args, span=span)

    def _arithmetic(
        self, op: str, shown: str, kinds: list[Kind], args: tuple[Expr, ...], span: Span
    ) -> None:
        allowed = (Kind.STATE, Kind.SCALAR, Kind.TIME)
        _demand(kinds, allowed, f"`{shown}` takes states and numbers", args, span)
        states = [k is Kind.STATE for k in kinds]
        if op in ("add", "sub") and states[0] != states[1]:
            raise fail(
                "kinds",
                f"a state and a {kinds[states.index(False)].value} cannot be "
                f"{'added' if op == 'add' else 'subtracted'}",
                span,
                hint="multiply the number by a state first",
            )
        if op == "mul" and all(states):
            raise fail(
                "kinds",
                "two states may not be multiplied",
                span,
                hint="states are added, and scaled by numbers; `dot(x, y)` is their inner product",
            )
        if op == "div" and states[1]:
            raise fail("kinds", "nothing can be divided by a state", span, hint="divide by `norm`")
        if op == "pow":
            if any(states):
                raise fail("kinds", "a state has no power", span, hint="`error` is a squared norm")
            power = constant_value(args[1], self.constants)
            if level_of(args[1]) is not Level.CONSTANT or (power and abs(power) > MAX_POWER):
                raise fail(
                    "kinds",
                    f"a power is a constant between -{MAX_POWER} and {MAX_POWER}",
                    args[1].span or span,
                    hint="use `exp` and `log` for other powers",
                )

    def _select(self, rows: Expr, yes: Expr, no: Expr, span: Span) -> Expr:
        kinds = {self.kind(yes), self.kind(no)}
        numbers = {Kind.SCALAR, Kind.TIME}
        if len(kinds) > 1 and not kinds <= numbers:
            words = " and a ".join(sorted(k.value for k in kinds))
            raise fail("kinds", f"the same name cannot be a {words}", span)
        return self._checked(replace(select(rows, yes, no), span=span), span)

    # -- calls ---------------------------------------------------------------------------------

    def _call(self, node: Call, env: Env) -> Expr:
        self._calls += 1
        if self._calls > 50_000:
            raise fail("resolve", "this spec calls functions too often to be resolved", node.span)
        name, span = node.function, node.span
        bound = env.values.get(name)
        if isinstance(bound, str):  # another network stands in for this one
            node, name = replace(node, function=bound), bound
        if env.map_state is not None and name == env.map_state[0] and not node.replaced:
            (time,) = self._arguments(node, 1, env)
            if time == env.map_state[1]:
                return self.name(name, span, env)
        if name in self.scope.heads:
            return self._network(node, env)
        if name in self.scope.path_lines:
            return self._state(node, env)
        if name in self.scope.map_lines or name == "map":
            return self._map(node, env)
        if name in self.scope.entries:
            return self._function(node, env)
        if name in _SPECIAL:
            return _SPECIAL[name](self, node, env)
        if name in self.scope.functions:
            line = self.scope.functions[name]
            return self._inline((line,), node, env)
        if name in OPERATIONS and OPERATIONS[name].shape in ("elementwise", "reduction", "batch"):
            args = self._arguments(node, OPERATIONS[name].arity, env)
            return self.apply(name, args, span)
        known = {
            *self.scope.known_names,
            *self.scope.functions,
            *_SPECIAL,
            *(row.name for row in OPERATIONS.values() if row.shape in ("elementwise", "reduction")),
        }
        raise fail(
            "resolve",
            f"nothing here is called `{name}`",
            Span(span.source, span.start, span.start + len(name)),
            hint=did_you_mean(name, known) or "networks are declared under `network`",
        )

    def _arguments(self, node: Call, count: int, env: Env) -> tuple[Expr, ...]:
        if node.keywords:
            raise fail(
                "resolve", f"`{node.function}` takes no `name = value`", node.keywords[0].span
            )
        if len(node.arguments) != count:
            raise fail(
                "resolve",
                f"`{node.function}` takes {count} argument{'s' * (count != 1)}, "
                f"not {len(node.arguments)}",
                node.span,
            )
        return tuple(self.expression(a, env) for a in node.arguments)

    def _network(self, node: Call, env: Env) -> Expr:
        network = self.scope.networks[self.scope.heads[node.function]]
        args = self._arguments(node, len(network.arguments), env)
        for i, arg in enumerate(args):
            self._argument_kind(network.name, i, network.arguments[i][0], arg, node.span)
        given = self._replacements(node, network.conditions, f"`{node.function}` sees", env)
        conditions = []
        for condition in sorted(network.conditions):
            value = given.get(condition)
            if value is None:
                value = self.name(condition, node.span, Env(values=env.values))
            conditions.append((condition, value))
        return Evaluate(network.name, node.function, args, tuple(conditions), span=node.span)

    def _argument_kind(self, network: str, index: int, name: str, arg: Expr, span: Span) -> None:
        kind = self.kind(arg)
        if kind in (Kind.TRUTH, Kind.LABEL):
            raise fail("kinds", f"a network's argument cannot be a {kind.value}", arg.span or span)
        known = self.scope.argument_kinds.setdefault((network, index), kind)
        numbers = {Kind.TIME, Kind.SCALAR}
        if known is not kind and not {known, kind} <= numbers:
            raise fail(
                "kinds",
                f"argument `{name}` of `{network}` is a {known.value} elsewhere, and a {kind.value} "
                "here",
                arg.span or span,
                hint="arguments stand in the order of the network's declaration",
            )
        if kind is Kind.TIME:
            self.scope.argument_kinds[network, index] = kind

    def _replacements(
        self, node: Call, allowed: Sequence[str], what: str, env: Env
    ) -> dict[str, Expr]:
        out: dict[str, Expr] = {}
        for replacement in node.replaced:
            if replacement.name not in allowed:
                raise fail(
                    "resolve",
                    f"{what} no `{replacement.name}`",
                    replacement.span,
                    hint=did_you_mean(replacement.name, allowed)
                    or f"it sees: {', '.join(allowed) or 'nothing beside its arguments'}",
                )
            out[replacement.name] = self.expression(replacement.value, env)
        return out

    def _state(self, node: Call, env: Env) -> Expr:
        (time,) = self._arguments(node, 1, env)
        ends = self._replacements(node, ("data", "noise"), f"the path `{node.function}` has", env)
        for end, value in ends.items():
            if self.kind(value) is not Kind.STATE:
                raise fail("kinds", f"`{end}` of a path is a state", value.span or node.span)
        if not ends and isinstance(time, Formal) and node.function in env.moving:
            moving = self._time_name(node.function)
            if env.moving.get(moving) == time:
                return env.moving[node.function]
        data = ends.get("data", Given("data"))
        noise = ends.get("noise", Given("noise"))
        return PathState(node.function, time, data, noise, span=node.span)

    def _velocity(self, state: Expr, span: Span) -> Expr:
        if isinstance(state, PathState):
            return PathVelocity(state.path, state.time, state.data, state.noise, span=span)
        raise fail(
            "kinds",
            "`velocity` needs a state of the path",
            span,
            hint="data and noise of this point are not known; the marginal velocity of a network's "
            "landing point is a network's diagonal, as in `u(x, s, s)`",
        )

    def _function(self, node: Call, env: Env) -> Expr:
        entries = self.scope.entries[node.function]
        lines = [e.line for e in entries if isinstance(e.line, syntax_lines.Binding)]
        if not lines or lines[0].parameters is None:
            raise fail(
                "resolve",
                f"`{node.function}` is not a function",
                node.span,
                hint="products are written out: `a * (b)`",
            )
        return self._inline(lines, node, env)

    def _inline(self, lines: Sequence[syntax_lines.Binding], node: Call, env: Env) -> Expr:
        """A function's body with its parameters bound; later lines replace it on their rows."""
        if node.function in self._asking:
            raise fail("resolve", f"`{node.function}` calls itself", node.span)
        bound = self._bind(node, lines[0].parameters or (), env)
        self._asking.append(node.function)
        try:
            value: Expr | None = None
            for line in lines:
                parameters = line.parameters or ()
                if len(parameters) != len(bound):
                    raise fail(
                        "resolve", "all lines of a function take the same arguments", line.span
                    )
                values: dict[str, Expr | str] = dict(zip(parameters, bound, strict=True))
                inner = Env(values=values, moving=env.moving)
                new = self.expression(line.value, inner)
                if line.rows is not None:
                    if value is None:
                        raise fail(
                            "resolve",
                            f"`{node.function}` has no value on the other rows",
                            line.span,
                            hint="first define it everywhere, in a line without `on`",
                        )
                    new = self._select(self.condition(line.rows, inner), new, value, line.span)
                value = new
        finally:
            self._asking.pop()
        assert value is not None
        return value

    def _bind(self, node: Call, parameters: Sequence[str], env: Env) -> tuple[Expr, ...]:
        if node.replaced:
            raise fail(
                "resolve",
                f"nothing of `{node.function}` can be replaced after a bar",
                node.replaced[0].span,
                hint="networks, maps and path states can",
            )
        given = [self.expression(a, env) for a in node.arguments]
        named: dict[str, Replacement] = {k.name: k for k in node.keywords}
        for keyword in node.keywords:
            if keyword.name not in parameters[len(given) :]:
                raise fail(
                    "resolve",
                    f"`{node.function}` has no free argument `{keyword.name}`",
                    keyword.span,
                    hint=did_you_mean(keyword.name, parameters)
                    or f"its arguments: {', '.join(parameters)}",
                )
        missing = [p for p in parameters[len(given) :] if p not in named]
        if len(given) > len(parameters) or missing:
            raise fail(
                "resolve",
                f"`{node.function}` takes {', '.join(parameters) or 'nothing'}",
                node.span,
                facts=(("missing", ", ".join(missing)),) if missing else (),
            )
        rest = (self.expression(named[p].value, env) for p in parameters[len(given) :])
        return (*given, *rest)

    # -- maps ----------------------------------------------------------------------------------

    def _map(self, node: Call, env: Env) -> Expr:
        line = self.scope.map_lines.get(node.function)
        if line is None:
            raise fail("resolve", "there is no map", node.span, hint="add a section `map`")
        state, start, end = self._arguments(node, 3, env)
        if self.kind(state) is not Kind.STATE:
            raise fail("kinds", "a map takes (state, start, end)", state.span or node.span)
        values: dict[str, Expr | str] = {line.state: state}
        for what, given, declared in (("start", start, line.start), ("end", end, line.end)):
            if isinstance(declared, Name):
                values[declared.id] = given
            elif given != self.expression(declared):
                raise fail(
                    "resolve",
                    f"this map has one {what} only",
                    node.span,
                    facts=((what, declared.span.text),),
                )
        for replacement in node.replaced:
            values[replacement.name] = self._replaced_in_map(replacement, env)
        inner = Env(values=values, moving=env.moving, map_state=(line.state, start))
        return self.expression(line.body, inner)

    def _replaced_in_map(self, replacement: Replacement, env: Env) -> Expr | str:
        if replacement.name in self.scope.heads:
            if isinstance(replacement.value, Name) and replacement.value.id in self.scope.heads:
                return replacement.value.id
            raise fail(
                "resolve",
                f"`{replacement.name}` is a network; only a network can stand in for it",
                replacement.value.span,
            )
        known = {c for n in self.scope.networks.values() for c in n.conditions}
        if replacement.name not in known:
            raise fail(
                "resolve",
                f"the map has no `{replacement.name}` to replace",
                replacement.span,
                hint=did_you_mean(replacement.name, {*known, *self.scope.heads}),
            )
        return self.expression(replacement.value, env)

    def map(self, name: str) -> FlowMap:
        """The map as a body over formals."""
        if name not in self._maps:
            line = self.scope.map_lines[name]
            state = Formal(line.state, Kind.STATE)
            times: dict[str, Expr | str] = {
                t.id: Formal(t.id, Kind.TIME) for t in (line.start, line.end) if isinstance(t, Name)
            }
            ends = [
                Formal(t.id, Kind.TIME) if isinstance(t, Name) else self.expression(t)
                for t in (line.start, line.end)
            ]
            env = Env(values={line.state: state, **times}, map_state=(line.state, ends[0]))
            body = self.expression(line.body, env)
            if self.kind(body) is not Kind.STATE:
                raise fail("kinds", "a map gives a state", line.body.span)
            self._maps[name] = FlowMap(name, line.state, state, ends[0], ends[1], body, line.span)
        return self._maps[name]

    # -- paths and derivatives -------------------------------------------------------------------

    def _time_name(self, path: str) -> str:
        (time,) = self.scope.path_lines[path].parameters or ("",)
        return time

    def path(self, name: str) -> Path:
        """The path as a body over formals, with its velocity."""
        if name not in self._paths:
            line = self.scope.path_lines[name]
            time = Formal(self._time_name(name), Kind.TIME)
            ends = {end: Formal(end, Kind.STATE) for end in ("data", "noise")}
            env = Env(values={time.name: time, **ends})
            body = self.expression(line.value, env)
            if self.kind(body) is not Kind.STATE:
                raise fail("kinds", "a path is a state at every time", line.value.span)
            velocity = self._differentiate(body, {time: ONE}, line.value.span)
            if velocity is None:
                raise fail(
                    "resolve",
                    f"the path `{name}` does not move with `{time.name}`",
                    line.value.span,
                    hint=f"a path is written as in `{name}({time.name}) = (1 - {time.name}) * data "
                    f"+ {time.name} * noise`",
                )
            self._paths[name] = Path(name, time.name, body, velocity, line.span)
        return self._paths[name]

    def moving(self) -> Moving | None:
        """`differentiate time along direction`."""
        line = self.scope.moving_line
        if line is not None and self._moving is None:
            time, along, span = line
            if self.kind(self.name(time, span)) is not Kind.TIME:
                raise fail("kinds", f"`differentiate` names a time, and `{time}` is none", span)
            direction = self.expression(along) if along is not None else None
            if direction is not None and self.kind(direction) is not Kind.STATE:
                raise fail("kinds", "a state moves along a state", along.span if along else span)
            self._moving = Moving(time, direction, span)
        return self._moving

    def _derivative(self, node: Derivative, env: Env) -> Expr:
        """Forward differentiation: `X` and the states that depend on it become moving formals."""
        variable, span = node.variable, node.span
        current = self.name(variable, span, env)
        fixed = isinstance(node.along, Name) and node.along.id == "none"
        along = self.expression(node.along, env) if node.along is not None and not fixed else None
        serial = f"{variable}#{len(env.moving)}"
        moving: dict[str, Expr] = dict(env.moving)
        tangents: dict[Expr, Expr] = {}
        back: dict[str, Expr] = {}

        def move(name: str, kind: Kind, value: Expr, tangent: Expr) -> None:
            formal = Formal(f"d:{name}:{serial}", kind)
            moving[name], back[formal.name], tangents[formal] = formal, value, tangent

        if self.kind(current) is Kind.STATE:
            if along is None:
                raise fail(
                    "resolve",
                    "a derivative in a state needs a direction",
                    span,
                    hint=f"write `d/d{variable}[… along w]`",
                )
            move(variable, Kind.STATE, current, along)
        else:
            move(variable, Kind.TIME, current, ONE)
            for path in self.scope.path_lines:
                if self._time_name(path) == variable and not fixed:
                    state = self.name(path, span, env)
                    direction = (
                        along if along is not None else self._direction(variable, state, span)
                    )
                    move(path, Kind.STATE, state, direction)
        inner = Env(
            values={k: v for k, v in env.values.items() if k not in moving},
            moving=moving,
            map_state=env.map_state,
        )
        body = self.expression(node.body, inner)
        result = self._differentiate(body, tangents, span)
        if result is None:
            raise fail(
                "resolve",
                f"nothing in here moves with `{variable}`: this derivative is zero",
                span,
                hint="names that are drawn or derived from it stay fixed; write the time itself",
            )
        replaced = transform(result, lambda e: back.get(e.name, e) if isinstance(e, Formal) else e)
        return replace(replaced, span=span)

    def _direction(self, variable: str, state: Expr, span: Span) -> Expr:
        moving = self.moving()
        if moving is not None and moving.time == variable and moving.along is not None:
            return moving.along
        return self._velocity(state, span)

    def _differentiate(self, body: Expr, tangents: Mapping[Expr, Expr], span: Span) -> Expr | None:
        result = differentiate(body, tangents, self._path_rate, self._partials)
        return None if result is None else self._checked(result, span)

    def _path_rate(self, node: PathState | PathVelocity) -> Expr:
        """d/dt of a path state or velocity at fixed ends."""
        if isinstance(node, PathState):
            return PathVelocity(node.path, node.time, node.data, node.noise)
        path = self.path(node.path)
        time = Formal(path.time, Kind.TIME)
        rate = self._differentiate(
            path.velocity, {time: ONE}, path.span or Span(self.scope.tree.source, 0, 0)
        )
        if rate is None:
            return Number(Fraction(0))
        ends = {path.time: node.time, "data": node.data, "noise": node.noise}
        return replace_formals(rate, ends)

    def _partials(self, op: str, args: tuple[Expr, ...]) -> tuple[Expr, ...]:
        rules = OPERATIONS[op].derivative or ()
        env = Env(values=dict(zip(("x", "y", "z"), args, strict=False)))
        return tuple(self.expression(self.scope.parse_rule(rule), env) for rule in rules)

    # -- special forms ---------------------------------------------------------------------------

    def stop(self, node: Call, env: Env) -> Expr:
        (body,) = self._arguments(node, 1, env)
        return Stop(body, span=node.span)

    def velocity(self, node: Call, env: Env) -> Expr:
        (state,) = self._arguments(node, 1, env)
        return self._velocity(state, node.span)

    def flow(self, node: Call, env: Env) -> Expr:
        """`flow(F, x, t, s, steps = N)`: a map composed, or a velocity integrated by Euler steps."""
        keywords = {k.name: k.value for k in node.keywords}
        steps_node = keywords.pop("steps", None)
        if len(node.arguments) != 4 or keywords or steps_node is None:
            raise fail("resolve", "`flow` takes (map, state, start, end, steps = N)", node.span)
        steps = constant_value(self.expression(steps_node, env), self.constants)
        if steps is None or steps.denominator != 1 or not 1 <= steps <= MAX_STEPS:
            raise fail("resolve", f"steps are a number from 1 to {MAX_STEPS}", steps_node.span)
        what = node.arguments[0]
        if not isinstance(what, Name):
            raise fail(
                "resolve", "the first argument of `flow` names a map or a network", what.span
            )
        state, start, end = (self.expression(a, env) for a in node.arguments[1:])
        count = int(steps)
        times = [start]
        for i in range(1, count):
            part = Number(Fraction(i, count))
            step = Apply("mul", (part, Apply("sub", (end, start))))
            times.append(Apply("add", (start, step)))
        times.append(end)
        names = ("flow:state", "flow:start", "flow:end")
        for a, b in zip(times, times[1:], strict=False):
            bound: dict[str, Expr | str] = {
                **env.values,
                **dict(zip(names, (state, a, b), strict=True)),
            }
            inner = replace(env, values=bound)
            here = [Name(node.span, n) for n in names]
            if what.id in self.scope.map_lines:
                state = self.expression(
                    Call(node.span, what.id, tuple(here), (), node.replaced), inner
                )
            else:
                rate = self.expression(
                    Call(node.span, what.id, tuple(here[:2]), (), node.replaced), inner
                )
                state = Apply("add", (state, Apply("mul", (Apply("sub", (b, a)), rate))))
        return state


_SPECIAL: dict[str, Callable[[Resolver, Call, Env], Expr]] = {
    "stop": Resolver.stop,
    "velocity": Resolver.velocity,
    "flow": Resolver.flow,
}


def _demand(
    kinds: Sequence[Kind], allowed: Sequence[Kind], rule: str, args: Sequence[Expr], span: Span
) -> None:
    for kind, arg in zip(kinds, args, strict=True):
        if kind not in allowed:
            raise fail("kinds", f"{rule}, and this is a {kind.value}", arg.span or span)


def constant_value(expr: Expr, constants: Mapping[str, Fraction]) -> Fraction | None:
    """The exact value of an expression of numbers and constants, or None."""
    match expr:
        case Number(value):
            return value
        case Constant(name):
            return constants.get(name)
        case Apply(op, args):
            values = [constant_value(a, constants) for a in args]
            known = [v for v in values if v is not None]
            if len(known) != len(values):
                return None
            match op, known:
                case "add", [a, b]:
                    return a + b
                case "sub", [a, b]:
                    return a - b
                case "mul", [a, b]:
                    return a * b
                case "div", [a, b] if b != 0:
                    return a / b
                case "neg", [a]:
                    return -a
                case "pow", [a, b] if b.denominator == 1 and abs(b) <= MAX_POWER and (a or b >= 0):
                    return a ** int(b)
    return None


__all__ = ["TOP", "Draw", "Env", "Resolver", "constant_value"]
