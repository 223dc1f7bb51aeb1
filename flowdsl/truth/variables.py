"""Readable variables: where a spec names `t = s + gap`, the calculus works with t and s, not with
gap."""

from __future__ import annotations

from flowdsl.spec.core import (
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Kind,
    Level,
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
    for root in roots:
        _collect(root, nodes)
    found = {n.name for n in nodes if isinstance(n, Draw | Constant | Training)}
    kept = list(objective.constants) if constants else []
    order = [*(name for name, _, _ in variables), *objective.draws, *kept,
             "progress", "step", "steps"]  # fmt: skip
    named = {name for name, _, _ in variables} | found
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
