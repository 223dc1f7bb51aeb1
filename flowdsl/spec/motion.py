"""What moves: paths and their velocities, maps as bodies over formals, and `d/dX[…]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial

from flowdsl.diagnostics import Span, fail
from flowdsl.spec.calls import velocity_of
from flowdsl.spec.core import (
    ONE,
    Expr,
    Formal,
    Given,
    Kind,
    Number,
    PathState,
    PathVelocity,
    replace_formals,
    transform,
)
from flowdsl.spec.differentiate import differentiate
from flowdsl.spec.env import Env
from flowdsl.spec.objective import FlowMap, Moving, Path
from flowdsl.spec.operations import OPERATIONS
from flowdsl.spec.resolving import Resolving
from flowdsl.syntax.tree import Derivative, Name

MAX_ORDER = 4


def resolve_path(resolver: Resolving, name: str) -> Path:
    """The path as a body over formals, with its velocity."""
    line = resolver.scope.path_lines[name]
    time = Formal(resolver.time_name(name), Kind.TIME)
    ends = {end: Formal(end, Kind.STATE) for end in ("data", "noise")}
    env = Env(values={time.name: time, **ends})
    body = resolver.expression(line.value, env)
    if resolver.kind(body) is not Kind.STATE:
        raise fail("kinds", "a path is a state at every time", line.value.span)
    velocity = _differentiate(resolver, body, {time: ONE}, line.value.span)
    if velocity is None:
        raise fail(
            "resolve",
            f"the path `{name}` does not move with `{time.name}`",
            line.value.span,
            hint=f"a path is written as in `{name}({time.name}) = (1 - {time.name}) * data "
            f"+ {time.name} * noise`",
        )
    return Path(name, time.name, body, velocity, line.span)


def resolve_map(resolver: Resolving, name: str) -> FlowMap:
    """The map as a body over formals."""
    line = resolver.scope.map_lines[name]
    state = Formal(line.state, Kind.STATE)
    ends = [
        Formal(t.id, Kind.TIME)
        if isinstance(t, Name) and not resolver.scope.is_constant(t.id)
        else resolver.expression(t)
        for t in (line.start, line.end)
    ]
    times: dict[str, Expr | str] = {t.name: t for t in ends if isinstance(t, Formal)}
    env = Env(values={line.state: state, **times}, map_state=(line.state, ends[0]))
    body = resolver.expression(line.body, env)
    if resolver.kind(body) is not Kind.STATE:
        raise fail("kinds", "a map gives a state", line.body.span)
    return FlowMap(name, line.state, state, ends[0], ends[1], body, line.span)


def resolve_moving(resolver: Resolving) -> Moving | None:
    """`differentiate time along direction`."""
    line = resolver.scope.moving_line
    if line is None:
        return None
    time, along, span = line
    if resolver.kind(resolver.name(time, span)) is not Kind.TIME:
        raise fail("kinds", f"`differentiate` names a time, and `{time}` is none", span)
    direction = resolver.expression(along) if along is not None else None
    if direction is not None and resolver.kind(direction) is not Kind.STATE:
        raise fail("kinds", "a state moves along a state", along.span if along else span)
    return Moving(time, direction, span, along)


def derivative(resolver: Resolving, node: Derivative, env: Env) -> Expr:
    """Forward differentiation: `X` and the states that depend on it become moving formals."""
    variable, span = node.variable, node.span
    current = resolver.name(variable, span, env)
    fixed = isinstance(node.along, Name) and node.along.id == "none"
    along = resolver.expression(node.along, env) if node.along is not None and not fixed else None
    if env.order >= MAX_ORDER:
        raise fail("resolve", f"derivatives nest at most {MAX_ORDER} deep", span)
    serial = f"{variable}#{env.order}"
    moving: dict[str, Expr] = dict(env.moving)
    tangents: dict[Expr, Expr] = {}
    back: dict[str, Expr] = {}

    def move(name: str, kind: Kind, value: Expr, tangent: Expr) -> None:
        formal = Formal(f"d:{name}:{serial}", kind)
        moving[name], back[formal.name], tangents[formal] = formal, value, tangent

    if resolver.kind(current) is Kind.STATE:
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
        for path in resolver.scope.path_lines:
            if resolver.time_name(path) == variable and not fixed:
                state = resolver.name(path, span, env)
                point = PathState(path, current, Given("data"), Given("noise"), span=span)
                direction = along or _direction(resolver, variable, point, span)
                move(path, Kind.STATE, state, direction)
    inner = Env(
        values={k: v for k, v in env.values.items() if k not in moving},
        moving=moving,
        map_state=env.map_state,
        order=env.order + 1,
        replaced=env.replaced,
    )
    body = resolver.expression(node.body, inner)
    result = _differentiate(resolver, body, tangents, span)
    if result is None:
        raise fail(
            "resolve",
            f"nothing in here moves with `{variable}`: this derivative is zero",
            span,
            hint="names that are drawn or derived from it stay fixed; write the time itself",
        )
    replaced = transform(result, lambda e: back.get(e.name, e) if isinstance(e, Formal) else e)
    return replace(replaced, span=span)


def _direction(resolver: Resolving, variable: str, state: Expr, span: Span) -> Expr:
    declared = resolver.moving()
    if declared is not None and declared.time == variable and declared.along is not None:
        return declared.along
    return velocity_of(state, span)


def _differentiate(
    resolver: Resolving, body: Expr, tangents: Mapping[Expr, Expr], span: Span
) -> Expr | None:
    result = differentiate(
        body, tangents, partial(_path_rate, resolver), partial(_partials, resolver)
    )
    return None if result is None else resolver.checked(result, span)


def _path_rate(resolver: Resolving, node: PathState | PathVelocity) -> Expr:
    """d/dt of a path state or velocity at fixed ends."""
    if isinstance(node, PathState):
        return PathVelocity(node.path, node.time, node.data, node.noise)
    path = resolver.path(node.path)
    time = Formal(path.time, Kind.TIME)
    rate = _differentiate(
        resolver, path.velocity, {time: ONE}, path.span or Span(resolver.scope.tree.source, 0, 0)
    )
    if rate is None:
        return Number(Fraction(0))
    ends = {path.time: node.time, "data": node.data, "noise": node.noise}
    return replace_formals(rate, ends)


def _partials(resolver: Resolving, op: str, args: tuple[Expr, ...]) -> tuple[Expr, ...]:
    rules = OPERATIONS[op].derivative or ()
    env = Env(values=dict(zip(("x", "y", "z"), args, strict=False)))
    return tuple(resolver.expression(resolver.scope.parse_rule(rule), env) for rule in rules)
