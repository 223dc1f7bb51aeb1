"""Readable variables: where a spec names `t = s + gap`, the calculus works with t and s, not with gap."""

from __future__ import annotations

from flowdsl.spec.core import Apply, Draw, Evaluate, Expr, Kind, Level, PathState, PathVelocity, walk
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective


def change_of_variables(objective: Objective) -> list[tuple[str, Expr, Draw]]:
    """Named sums of times, each with the draw that it replaces: one that no network or path sees."""
    shown = _shown(objective)
    found: list[tuple[str, Expr, Draw]] = []
    taken: set[str] = set()
    for name, expr in objective.definitions.items():
        if name in objective.draws or not isinstance(expr, Apply) or expr.op not in ("add", "sub"):
            continue
        if level_of(expr) is not Level.ROW or expr not in shown:
            continue
        for part in expr.args:
            hidden = isinstance(part, Draw) and part.kind in (Kind.TIME, Kind.SCALAR)
            if hidden and part not in shown and part.name not in taken:  # type: ignore[union-attr]
                assert isinstance(part, Draw)
                if all(isinstance(arg, Draw) for arg in expr.args):
                    found.append((name, expr, part))
                    taken.add(part.name)
                    break
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
