"""Values of what a row draws, to look at an expression in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from flowdsl.calculus.inequalities import Chain
from flowdsl.spec.core import Draw, Expr, Kind, Level, walk
from flowdsl.spec.kinds import level_of
from flowdsl.truth.cases import Case
from flowdsl.truth.setting import Setting

NUMBERS = (Kind.TIME, Kind.SCALAR)


def points(setting: Setting, case: Case, expr: Expr, count: int = 24) -> Iterator[dict[str, float]]:
    """Values of the numbers in an expression that a row draws; one point without values where there
    are none."""
    drawn = {n.name for n in walk(expr) if isinstance(n, Draw) and n.kind in NUMBERS}
    if not drawn:
        yield {}
        return
    for point in everywhere(setting, case, count):
        yield {name: value for name, value in point.items() if name in drawn}


def everywhere(setting: Setting, case: Case, count: int = 24) -> Iterator[dict[str, float]]:
    """Values of all numbers that a row draws, spread evenly over what its laws and conditions
    allow."""
    row = {c: v for c, v in case.facts.items() if level_of(c) is not Level.STEP}
    names = [n for n, d in setting.objective.draws.items() if d.kind in NUMBERS]
    chain = Chain(setting.domain.bounds(row), names)
    for shares in spread(len(names), count):
        yield chain.point(shares)


def spread(dimensions: int, count: int) -> Iterator[list[float]]:
    """Points that fill the unit cube evenly."""
    turns = [_turn(k) for k in range(dimensions)]
    for index in range(1, count + 1):
        yield [(0.5 + index * step) % 1 for step in turns]


def _turn(k: int) -> float:
    """An irrational step for each dimension: multiples of it fill the unit interval evenly."""
    return math.sqrt((2, 3, 5, 7, 11, 13, 17, 19, 23, 29)[k % 10]) * (1 + k // 10)
