"""Readable variables: where a spec names `t = s + gap`, the calculus works with t and s, not with
gap.

A named time that is no rational function of the draws (a noise level, even in its seventh root) is
a variable of its own: what is proved holds whatever its law, and a step between two of them can be
made small.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.numbers import evaluate
from flowdsl.spec.core import (
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Kind,
    Level,
    Number,
    PathState,
    PathVelocity,
    Training,
    children,
    walk,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective


def change_of_variables(objective: Objective) -> list[tuple[str, Expr, Draw]]:
    """Named sums of times, each with the draw that it replaces: one that no network or path
    sees."""
    shown = _shown(objective)
    found: list[tuple[str, Expr, Draw]] = []
    taken: set[str] = set()
    for name, expr in objective.definitions.items():
        if name in objective.draws or not isinstance(expr, Apply) or expr.op not in ("add", "sub"):
            continue
        if level_of(expr) is not Level.ROW or expr not in shown:
            continue
        draws = [arg for arg in expr.args if isinstance(arg, Draw)]
        if len(draws) < len(expr.args):
            continue
        hidden = [d for d in draws if d not in shown and d.name not in taken]
        if hidden and hidden[0].kind in (Kind.TIME, Kind.SCALAR):
            found.append((name, expr, hidden[0]))
            taken.add(hidden[0].name)
    return found


def opaque_times(objective: Objective) -> list[tuple[str, Expr]]:
    """Named times that the calculus would only know as functions of roots and roundings.

    A name that is an ordinary function of other such names is none: `t - s` is their difference.
    """
    names = {e: n for n, e in objective.definitions.items() if n not in objective.draws}
    found: dict[Expr, str] = {}
    known: dict[Expr, bool] = {}

    def visit(expr: Expr) -> bool:
        """Does the expression, outside of names that are found, contain what is opaque?"""
        if _vanishes(expr):
            return False
        if expr not in known:
            inside = [visit(child) for child in children(expr)]
            known[expr] = any(inside) or _is_opaque(expr)
            if known[expr] and expr in names and _is_time(objective, expr):
                found[expr] = names[expr]
                known[expr] = False
        return known[expr]

    for term in objective.terms:
        for root in (term.prediction, term.target):
            if root is not None:
                visit(root)
    outermost = _without(objective, found)
    return [(name, expr) for expr, name in found.items() if expr in outermost]


def _without(objective: Objective, names: Mapping[Expr, str]) -> set[Expr]:
    """Everything in the terms' sides and their losses that is not inside a named time."""
    seen: set[Expr] = set()

    def visit(expr: Expr) -> None:
        if expr not in seen:
            seen.add(expr)
            for child in () if expr in names else children(expr):
                visit(child)

    for term in objective.terms:
        for root in (term.prediction, term.target, term.loss):
            if root is not None:
                visit(root)
    return seen


def _is_time(objective: Objective, expr: Expr) -> bool:
    """Is this a number of the row that comes from draws alone?"""
    if level_of(expr) is not Level.ROW or objective.kind(expr) not in (Kind.TIME, Kind.SCALAR):
        return False
    return all(
        isinstance(node, Apply | Constant | Number | Training)
        or (isinstance(node, Draw) and node.kind in (Kind.TIME, Kind.SCALAR))
        for node in walk(expr)
    )


def _vanishes(expr: Expr) -> bool:
    """Is this 0 whatever stands in it: x - x, or a product with it?"""
    match expr:
        case Number(value):
            return value == 0
        case Apply("sub", (a, b)):
            return a == b
        case Apply("mul", (a, b)):
            return _vanishes(a) or _vanishes(b)
    return False


def _is_opaque(expr: Expr) -> bool:
    match expr:
        case Apply("pow", (_, exponent)):
            try:
                value = Fraction(evaluate(exponent, {})).limit_denominator(100)
            except Undecided:
                return True
            return value.denominator > 2 or abs(value.numerator) > HIGHEST_POWER
        case Apply(op, _):
            return op in _OPAQUE
    return False


def _shown(objective: Objective) -> set[Expr]:
    """The times that networks and paths see directly."""
    found: set[Expr] = set()
    for term in objective.terms:
        for expr in (term.prediction, term.target):
            if expr is None:
                continue
            for node in walk(expr):
                match node:
                    case PathState(_, time, _, _) | PathVelocity(_, time, _, _):
                        found.add(time)
                    case Evaluate(_, _, args, _, _):
                        found.update(args)
    return found


#: Operations on scalars through which the calculus does not see.
_OPAQUE = frozenset({"floor", "ceil", "min", "max", "abs", "clip", "snap", "tanh", "softplus"})

#: Powers above this are opaque.
HIGHEST_POWER = 12

#: Operations that stay within rational functions, or that the calculus sees through.
_PLAIN = frozenset(
    {"add", "sub", "mul", "div", "neg", "select", "clip", "sum_squares", "mean_squares"}
)


def scalars_of(objective: Objective, constants: bool = True) -> tuple[list[str], int]:
    """The names of the scalars that an objective's mathematics contains, and how many functions.

    `constants` says whether constants are symbols. What stands in conditions alone (the ends of a
    guidance interval) is left out: a field with fewer generators is faster.
    """
    nodes: dict[Expr, None] = {}
    roots: list[Expr] = []
    for term in objective.terms:
        roots += [e for e in (term.prediction, term.target, term.loss) if e is not None]
    roots += [m.body for m in objective.maps.values()]
    roots += [e for p in objective.paths.values() for e in (p.body, p.velocity)]
    if objective.moving is not None and objective.moving.along is not None:
        roots.append(objective.moving.along)
    variables = change_of_variables(objective)
    roots += [draw for _, expr, draw in variables] + [expr for _, expr, _ in variables]
    opaque = opaque_times(objective)
    nodes.update(dict.fromkeys(expr for _, expr in opaque))  # what is in them is left alone
    for root in roots:
        _collect(root, nodes)
    found = {n.name for n in nodes if isinstance(n, Draw | Constant | Training)}
    kept = list(objective.constants) if constants else []
    own = [*(name for name, _, _ in variables), *(name for name, _ in opaque)]
    order = [*own, *objective.draws, *kept, "progress", "step", "steps"]
    named = {*own} | found
    functions = sum(isinstance(n, Apply) and n.op not in _PLAIN for n in nodes)
    scalar_networks = sum(
        isinstance(n, Evaluate) and objective.kind(n) is not Kind.STATE for n in nodes
    )
    return [n for n in dict.fromkeys(order) if n in named], functions + scalar_networks


def _collect(expr: Expr, nodes: dict[Expr, None]) -> None:
    """Every node that is not inside the condition of a selection."""
    if expr in nodes:
        return
    nodes[expr] = None
    is_select = isinstance(expr, Apply) and expr.op == "select"
    for child in children(expr)[1:] if is_select else children(expr):
        _collect(child, nodes)
