"""`flow(F, x, t, s, steps = N)`: a map composed, or a velocity integrated, step by step."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.spec.constants import constant_value
from flowdsl.spec.core import Apply, Expr, Number
from flowdsl.spec.env import Env
from flowdsl.spec.resolving import Resolving
from flowdsl.syntax.tree import Call, Expression, Name

MAX_STEPS = 64


def flow(resolver: Resolving, node: Call, env: Env) -> Expr:
    """`flow(F, x, t, s, steps = N, order = 1)`: a map composed, or a velocity integrated by steps
    of Euler (order 1) or Heun (order 2).
    """
    what, steps, order = _flow_options(resolver, node, env)
    is_map = what.id in resolver.scope.map_lines
    if is_map and order != 1:
        raise fail("resolve", "a map is composed, not integrated: it has no `order`", node.span)
    state, start, end = (resolver.expression(a, env) for a in node.arguments[1:])
    names = ("flow:state", "flow:start", "flow:end")

    def called(values: tuple[Expr, ...]) -> Expr:
        bound: dict[str, Expr | str] = {**env.values, **dict(zip(names, values, strict=False))}
        here = tuple(Name(node.span, n) for n in names[: len(values)])
        return resolver.expression(
            Call(node.span, what.id, here, (), node.replaced), replace(env, values=bound)
        )

    for a, b in pairwise(_flow_times(start, end, steps)):
        if is_map:
            state = called((state, a, b))
            continue
        width = Apply("sub", (b, a))
        rate = called((state, a))
        if order == 2:
            ahead = Apply("add", (state, Apply("mul", (width, rate))))
            both = Apply("add", (rate, called((ahead, b))))
            rate = Apply("div", (both, Number(Fraction(2))))
        state = Apply("add", (state, Apply("mul", (width, rate))))
    return state


def _flow_options(resolver: Resolving, node: Call, env: Env) -> tuple[Name, int, int]:
    """What flows, in how many steps, of which order."""
    keywords = {k.name: k.value for k in node.keywords}
    steps_node, order_node = keywords.pop("steps", None), keywords.pop("order", None)
    if len(node.arguments) != 4 or keywords or steps_node is None:
        wrong = next(iter(keywords), "")
        raise fail(
            "resolve",
            "`flow` takes (map, state, start, end, steps = N)",
            node.span,
            hint=did_you_mean(wrong, ("steps",)) or "as in `flow(map, z, 1, 0, steps = 4)`",
        )
    what = node.arguments[0]
    if not isinstance(what, Name):
        raise fail("resolve", "the first argument of `flow` names a map or a network", what.span)
    steps = _count(resolver, steps_node, env, MAX_STEPS, "steps are a number")
    order = 1
    if order_node is not None:
        order = _count(resolver, order_node, env, 2, "the order of a step is 1 (Euler) or 2 (Heun)")
    return what, steps, order


def _count(resolver: Resolving, node: Expression, env: Env, most: int, what: str) -> int:
    value = constant_value(resolver.expression(node, env), resolver.constants)
    if value is None or value.denominator != 1 or not 1 <= value <= most:
        limits = f" from 1 to {most}" if what.endswith("number") else ""
        raise fail("resolve", f"{what}{limits}", node.span)
    return int(value)


def _flow_times(start: Expr, end: Expr, count: int) -> list[Expr]:
    """Even times from start to end."""
    times = [start]
    for i in range(1, count):
        part = Number(Fraction(i, count))
        step = Apply("mul", (part, Apply("sub", (end, start))))
        times.append(Apply("add", (start, step)))
    return [*times, end]
