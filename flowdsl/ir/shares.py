"""Row sets whose size follows from the batch size: shares of the batch, and of those."""

from __future__ import annotations

from fractions import Fraction

from flowdsl.ir.arithmetic import arithmetic
from flowdsl.runtime.contract import Share
from flowdsl.spec.core import Apply, Constant, Draw, Expr, Number, children, walk
from flowdsl.spec.objective import LawCall, Objective


def exact(objective: Objective, expr: Expr | LawCall) -> Fraction | None:
    """The exact value of an expression of numbers and constants, or None where it has none."""
    if isinstance(expr, LawCall):
        return None
    known: dict[Expr, Fraction | None] = {}
    for node in walk(expr):
        inner = [known[c] for c in children(node)]
        values = [v for v in inner if v is not None]
        match node:
            case Number(value):
                known[node] = value
            case Constant(name):
                known[node] = objective.constants[name]
            case Apply(op) if inner and len(values) == len(inner):
                known[node] = arithmetic(op, values)
            case _:
                known[node] = None
    return known[expr]


def static_shares(objective: Objective) -> dict[str, Share]:
    """The draws by exact count whose count depends on the batch size only."""
    found: dict[str, Share] = {}
    for name, draw in objective.draws.items():
        line = draw.lines[0]
        if len(draw.lines) != 1 or line.law.law != "share":
            continue
        p = exact(objective, line.law.args[0])
        if p is None or not 0 <= p <= 1:
            continue
        match line.rows:
            case None:
                found[name] = Share(name, p.numerator, p.denominator)
            case Draw(outer) if outer in found:
                found[name] = Share(name, p.numerator, p.denominator, outer)
            case Apply("not", (Draw(outer),)) if outer in found:
                found[name] = Share(name, p.numerator, p.denominator, outer, True)
    return found
