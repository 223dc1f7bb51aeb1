"""How two objectives draw rows and times: what is equal row by row may be weighed otherwise."""

from __future__ import annotations

from flowdsl.spec.core import Constant, Expr, Number, transform
from flowdsl.spec.objective import DrawDeclaration, DrawLine, LawCall, Objective


def other_laws(here: Objective, there: Objective) -> str:
    """The lines by which the two draw differently, in words; empty when they draw alike."""
    found = []
    for name in dict.fromkeys([*here.draws, *there.draws]):
        mine, theirs = here.draws.get(name), there.draws.get(name)
        if _key(here, mine) != _key(there, theirs):
            found.append(f"{_text(mine)} in {here.name}, {_text(theirs)} in {there.name}")
    return "; ".join(dict.fromkeys(found))


def _key(objective: Objective, declaration: DrawDeclaration | None) -> object:
    """The laws of a name at the values of the constants, each with its rows."""
    if declaration is None:
        return None
    return tuple(
        (line.names, _valued(objective, line.law),
         None if line.rows is None else _numbers(objective, line.rows))
        for line in declaration.lines
    )  # fmt: skip


def _valued(objective: Objective, law: Expr | LawCall) -> object:
    if not isinstance(law, LawCall):
        return _numbers(objective, law)
    return (law.law, *(_valued(objective, arg) for arg in law.args))


def _numbers(objective: Objective, expr: Expr) -> Expr:
    def value(node: Expr) -> Expr:
        known = objective.constants.get(node.name) if isinstance(node, Constant) else None
        return node if known is None else Number(known)

    return transform(expr, value)


def _text(declaration: DrawDeclaration | None) -> str:
    if declaration is None:
        return "not drawn"
    return " and ".join(f"`{_line(line)}`" for line in declaration.lines)


def _line(line: DrawLine) -> str:
    return line.span.text if line.span is not None else f"{', '.join(line.names)} ~ {line.law.law}"
