"""Values of what a row draws, to look at an expression in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from flowdsl.calculus.inequalities import Chain
from flowdsl.spec.core import Draw, Expr, Kind, Level, walk
from flowdsl.spec.kinds import level_of
from flowdsl.truth.cases import Case
from flowdsl.truth.setting import Setting


def points(setting: Setting, case: Case, expr: Expr, count: int = 24) -> Iterator[dict[str, float]]:
    """Values of the numbers in an expression that a row draws, spread evenly over all that its laws
    and conditions allow; one point without values where there are none."""
    numbers = (Kind.TIME, Kind.SCALAR)
    drawn = {n.name for n in walk(expr) if isinstance(n, Draw) and n.kind in numbers}
    if not drawn:
        yield {}
        return
    row = {c: v for c, v in case.facts.items() if level_of(c) is not Level.STEP}
    names = [n for n, d in setting.objective.draws.items() if d.kind in numbers]
    chain = Chain(setting.domain.bounds(row), names)
    turns = [turn(k) for k in range(len(names))]
    for index in range(1, count + 1):
        point = chain.point((0.5 + index * step) % 1 for step in turns)
        yield {name: value for name, value in point.items() if name in drawn}


def turn(k: int) -> float:
    """An irrational step for each dimension: multiples of it fill the unit interval evenly."""
    return math.sqrt((2, 3, 5, 7, 11, 13, 17, 19, 23, 29)[k % 10]) * (1 + k // 10)
