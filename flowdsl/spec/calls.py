"""Calls: networks, path states, maps, functions; the special forms `stop`, `velocity`, `flow`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from flowdsl.diagnostics import Span, did_you_mean, fail
from flowdsl.prelude.laws import LAWS
from flowdsl.spec.core import (
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    PathState,
    PathVelocity,
    Stop,
)
from flowdsl.spec.env import Env
from flowdsl.spec.flows import flow
from flowdsl.spec.operations import OPERATIONS
from flowdsl.spec.resolving import Resolving
from flowdsl.syntax.lines import Binding
from flowdsl.syntax.tree import Call, Name, Replacement

MAX_CALLS = 50_000


def call(resolver: Resolving, node: Call, env: Env) -> Expr:
    resolver.calls += 1
    if resolver.calls > MAX_CALLS:
        raise fail("resolve", "this spec calls functions too often to be resolved", node.span)
    name, span = node.function, node.span
    bound = env.values.get(name)
    if isinstance(bound, str):  # another network stands in for this one
        node, name = replace(node, function=bound), bound
    if env.map_state is not None and name == env.map_state[0] and not node.replaced:
        (time,) = _arguments(resolver, node, 1, env)
        if time == env.map_state[1]:
            return resolver.name(name, span, env)
    if name in resolver.scope.heads:
        return _network(resolver, node, env)
    if name in resolver.scope.path_lines:
        return _state(resolver, node, env)
    if name in resolver.scope.map_lines or name == "map":
        return _map(resolver, node, env)
    if name in resolver.scope.entries:
        return _function(resolver, node, env)
    if name in _SPECIAL:
        return _SPECIAL[name](resolver, node, env)
    if name in resolver.scope.functions:
        line = resolver.scope.functions[name]
        return _inline(resolver, (line,), node, env)
    if name in OPERATIONS and OPERATIONS[name].shape in ("elementwise", "reduction", "batch"):
        args = _arguments(resolver, node, OPERATIONS[name].arity, env)
        return resolver.apply(name, args, span)
    if name in LAWS:
        raise fail(
            "resolve",
            f"`{name}` is a law: a name is drawn from it",
            Span(span.source, span.start, span.start + len(name)),
            hint=f"write `q ~ {name}(…)` under `times`, `rows` or `conditions`",
        )
    known = {
        *resolver.scope.known_names,
        *resolver.scope.functions,
        *_SPECIAL,
        *(row.name for row in OPERATIONS.values() if row.shape in ("elementwise", "reduction")),
    }
    raise fail(
        "resolve",
        f"nothing here is called `{name}`",
        Span(span.source, span.start, span.start + len(name)),
        hint=did_you_mean(name, known) or "networks are declared under `network`",
    )


def _arguments(
    resolver: Resolving, node: Call, count: int, env: Env, usage: str = ""
) -> tuple[Expr, ...]:
    if node.keywords:
        raise fail("resolve", f"`{node.function}` takes no `name = value`", node.keywords[0].span)
    if len(node.arguments) != count:
        raise fail(
            "resolve",
            f"`{node.function}` takes {count} argument{'s' * (count != 1)}, "
            f"not {len(node.arguments)}",
            node.span,
            hint=f"write `{usage}`" if usage else "",
        )
    return tuple(resolver.expression(a, env) for a in node.arguments)


def _network(resolver: Resolving, node: Call, env: Env) -> Expr:
    network = resolver.scope.networks[resolver.scope.heads[node.function]]
    usage = f"{node.function}({', '.join(name for name, _ in network.arguments)})"
    args = _arguments(resolver, node, len(network.arguments), env, usage)
    for i, arg in enumerate(args):
        _argument_kind(resolver, network.name, i, network.arguments[i][0], arg, node.span)
    given = _replacements(resolver, node, network.conditions, f"`{node.function}` sees", env)
    conditions = []
    for condition in sorted(network.conditions):
        value = given.get(condition)
        if value is None:
            value = resolver.name(condition, node.span, Env(values=env.values))
        conditions.append((condition, value))
    return Evaluate(network.name, node.function, args, tuple(conditions), span=node.span)


def _argument_kind(
    resolver: Resolving, network: str, index: int, name: str, arg: Expr, span: Span
) -> None:
    kind = resolver.kind(arg)
    if kind in (Kind.TRUTH, Kind.LABEL):
        raise fail("kinds", f"a network's argument cannot be a {kind.value}", arg.span or span)
    known = resolver.scope.argument_kinds.setdefault((network, index), kind)
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
        resolver.scope.argument_kinds[network, index] = kind


def _replacements(
    resolver: Resolving, node: Call, allowed: Sequence[str], what: str, env: Env
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
        out[replacement.name] = resolver.expression(replacement.value, env)
    return out


def _state(resolver: Resolving, node: Call, env: Env) -> Expr:
    (time,) = _arguments(resolver, node, 1, env)
    ends = _replacements(resolver, node, ("data", "noise"), f"the path `{node.function}` has", env)
    for end, value in ends.items():
        if resolver.kind(value) is not Kind.STATE:
            raise fail("kinds", f"`{end}` of a path is a state", value.span or node.span)
    if not ends and isinstance(time, Formal) and node.function in env.moving:
        moving = resolver.time_name(node.function)
        if env.moving.get(moving) == time:
            return env.moving[node.function]
    data = ends.get("data", Given("data"))
    noise = ends.get("noise", Given("noise"))
    return PathState(node.function, time, data, noise, span=node.span)


def velocity_of(state: Expr, span: Span) -> Expr:
    if isinstance(state, PathState):
        return PathVelocity(state.path, state.time, state.data, state.noise, span=span)
    raise fail(
        "kinds",
        "`velocity` needs a state of the path",
        span,
        hint="data and noise of this point are not known; the marginal velocity of a network's "
        "landing point is a network's diagonal, as in `u(x, s, s)`",
    )


def _function(resolver: Resolving, node: Call, env: Env) -> Expr:
    entries = resolver.scope.entries[node.function]
    lines = [e.line for e in entries if isinstance(e.line, Binding)]
    if not lines or lines[0].parameters is None:
        raise fail(
            "resolve",
            f"`{node.function}` is not a function",
            node.span,
            hint="products are written out: `a * (b)`",
        )
    return _inline(resolver, lines, node, env)


def _inline(resolver: Resolving, lines: Sequence[Binding], node: Call, env: Env) -> Expr:
    """A function's body with its parameters bound; later lines replace it on their rows."""
    if node.function in resolver.asking:
        raise fail("resolve", f"`{node.function}` calls itself", node.span)
    bound = _bind(resolver, node, lines[0].parameters or (), env)
    resolver.asking.append(node.function)
    try:
        value: Expr | None = None
        for line in lines:
            parameters = line.parameters or ()
            if len(parameters) != len(bound):
                raise fail("resolve", "all lines of a function take the same arguments", line.span)
            values = {**env.replaced, **dict(zip(parameters, bound, strict=True))}
            inner = Env(values, env.moving, order=env.order, replaced=env.replaced)
            new = resolver.expression(line.value, inner)
            if line.rows is not None:
                if value is None:
                    raise fail(
                        "resolve",
                        f"`{node.function}` has no value on the other rows",
                        line.span,
                        hint="first define it everywhere, in a line without `on`",
                    )
                new = resolver.select(resolver.condition(line.rows, inner), new, value, line.span)
            value = new
    finally:
        resolver.asking.pop()
    assert value is not None
    return value


def _bind(resolver: Resolving, node: Call, parameters: Sequence[str], env: Env) -> tuple[Expr, ...]:
    if node.replaced:
        raise fail(
            "resolve",
            f"nothing of `{node.function}` can be replaced after a bar",
            node.replaced[0].span,
            hint="networks, maps and path states can",
        )
    given = [resolver.expression(a, env) for a in node.arguments]
    named: dict[str, Replacement] = {k.name: k for k in node.keywords}
    for keyword in node.keywords:
        if keyword.name in parameters[: len(given)]:
            raise fail(
                "resolve",
                f"`{node.function}` is given `{keyword.name}` twice, by its place and by its name",
                keyword.span,
                hint=f"its arguments: {', '.join(parameters)}",
            )
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
    rest = (resolver.expression(named[p].value, env) for p in parameters[len(given) :])
    return (*given, *rest)


def _map(resolver: Resolving, node: Call, env: Env) -> Expr:
    line = resolver.scope.map_lines.get(node.function)
    if line is None:
        raise fail("resolve", "there is no map", node.span, hint="add a section `map`")
    state, start, end = _arguments(resolver, node, 3, env, f"{node.function}(x, start, end)")
    if resolver.kind(state) is not Kind.STATE:
        raise fail("kinds", "a map takes (state, start, end)", state.span or node.span)
    values: dict[str, Expr | str] = {line.state: state}
    for what, given, declared in (("start", start, line.start), ("end", end, line.end)):
        if isinstance(declared, Name) and not resolver.scope.is_constant(declared.id):
            values[declared.id] = given
        elif given != resolver.expression(declared):
            raise fail(
                "resolve",
                f"this map has one {what} only",
                node.span,
                facts=((what, declared.span.text),),
            )
    replaced = {r.name: _replaced_in_map(resolver, r, env) for r in node.replaced}
    values.update(replaced)
    inner = replace(env, values=values, map_state=(line.state, start), replaced=replaced)
    return resolver.expression(line.body, inner)


def _replaced_in_map(resolver: Resolving, replacement: Replacement, env: Env) -> Expr | str:
    if replacement.name in resolver.scope.heads:
        if isinstance(replacement.value, Name) and replacement.value.id in resolver.scope.heads:
            return replacement.value.id
        raise fail(
            "resolve",
            f"`{replacement.name}` is a network; only a network can stand in for it",
            replacement.value.span,
        )
    known = {c for n in resolver.scope.networks.values() for c in n.conditions}
    if replacement.name not in known:
        raise fail(
            "resolve",
            f"the map has no `{replacement.name}` to replace",
            replacement.span,
            hint=did_you_mean(replacement.name, {*known, *resolver.scope.heads}),
        )
    return resolver.expression(replacement.value, env)


def _stop(resolver: Resolving, node: Call, env: Env) -> Expr:
    (body,) = _arguments(resolver, node, 1, env)
    return Stop(body, span=node.span)


def _velocity(resolver: Resolving, node: Call, env: Env) -> Expr:
    (state,) = _arguments(resolver, node, 1, env)
    return velocity_of(state, node.span)


_SPECIAL: dict[str, Callable[[Resolving, Call, Env], Expr]] = {
    "stop": _stop,
    "velocity": _velocity,
    "flow": flow,
}
