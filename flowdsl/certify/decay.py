"""How a mean gradient falls as something becomes small: a curriculum near its end, a gap of times.

Two or more measurements on the same rows; the order is the slope between their logarithms along the
direction that the largest of them points to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise, permutations

import torch
from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.linear import combination
from flowdsl.certify.numbers import Numbers
from flowdsl.certify.places import live_calls, seen_state
from flowdsl.certify.setting import training
from flowdsl.checks.certificate import Decay
from flowdsl.exact.certificate import Certificate
from flowdsl.spec.core import (
    ONE,
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Given,
    Kind,
    Level,
    Number,
    PathState,
    PathVelocity,
    Training,
    mul,
    sub,
    transform,
    walk,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective, Term

SHARES = (0.6, 0.3)  #: of the whole range, at which a falling gradient is measured
GRID = 801
SURE = 3.0  #: standard errors that a mean along its direction needs for a logarithm


@dataclass(frozen=True)
class Course:
    """A curriculum near its end: moments of training, and how far from the end its value is."""

    small: str
    points: tuple[tuple[float, float], ...]  # (progress, distance)


def courses(objective: Objective, term: Term) -> list[Course]:
    """The curricula in a term that change before the end of training."""
    used = {n for e in (term.prediction, term.target) if e is not None for n in walk(e)}
    found = []
    for name, expr in objective.definitions.items():
        changes = level_of(expr) is Level.STEP and any(isinstance(n, Training) for n in walk(expr))
        if expr in used and changes and objective.kind(expr) in (Kind.SCALAR, Kind.TIME):
            course = _course(objective, name, expr)
            if course is not None:
                found.append(course)
    return found


def _course(objective: Objective, name: str, expr: Expr) -> Course | None:
    constants = {n: float(v) for n, v in objective.constants.items()}
    # a warm-up may be over within a thousandth of a long run: look there more closely
    shares = [k / (GRID - 1) for k in range(GRID)]
    moments = sorted({*shares, *(p**4 for p in shares)})
    try:
        values = [float(Numbers(constants, training(p))(expr)) for p in moments]
    except Uncertified:
        return None
    end = values[-1]
    distances = [abs(v - end) for v in values]
    widest = max(distances)
    if widest < 1e-9:
        return None
    points = []
    for share in SHARES:
        k = min(range(len(moments)), key=lambda i: abs(distances[i] - share * widest))
        if abs(distances[k] - share * widest) < 0.05 * widest:
            points.append((moments[k], distances[k]))
    small = name if abs(end) < 1e-9 else f"({name} - {end:g})"
    return Course(small, tuple(points)) if points else None


@dataclass(frozen=True)
class Family:
    """An objective with a quantity at several sizes, largest first."""

    small: str
    members: tuple[tuple[float, Objective], ...]


def families(objective: Objective, term: Term) -> Iterator[Family]:
    """Steps that can be made small, in a term whose networks see states made by steps.

    Two times that share a draw, and that no network sees together, are brought closer; constants
    are scaled down. Times that are drawn each by itself are as far apart as their laws let them be.
    """
    if not _steps_in(objective, term):
        return
    assert term.target is not None
    used = {n for e in (term.prediction, term.target) for n in walk(e)}
    drawn = sorted(
        (n for n in used if isinstance(n, Draw) and n.kind is Kind.TIME), key=lambda n: n.name
    )
    levels = (_levels(objective, used, draw) for draw in drawn)
    pair = next(filter(None, levels), ()) or _stepped(objective, used)
    if pair:
        (one, first), (two, second) = pair
        yield Family(
            f"({one} - {two})",
            tuple((s, _closer(objective, term, first, second, s)) for s in SHARES),
        )
    for name in objective.constants:
        if Constant(name) in used and objective.constants[name]:
            yield Family(name, tuple((s, _scaled(objective, name, s)) for s in SHARES))


def _steps_in(objective: Objective, term: Term) -> bool:
    """Does a network see more than the row's own state: a state that was moved, or another one?"""
    assert term.target is not None
    calls = [*live_calls(objective, term.prediction), *live_calls(objective, term.target)]
    own = next((s for s in (seen_state(objective, c) for c in calls) if s is not None), None)
    for expr in (term.prediction, term.target):
        for node in walk(expr):
            if not isinstance(node, Evaluate):
                continue
            try:
                seen = combination(node.args[0], objective.networks)
            except (Uncertified, IndexError):
                continue
            if any(s != own for s in seen if _moves(objective, s)):
                return True
    return False


def _moves(objective: Objective, leaf: Expr) -> bool:
    """Is a part of a state one that a step made: a velocity, a guide's, or another state?"""
    if isinstance(leaf, Evaluate):
        return objective.networks[leaf.network].frozen
    return isinstance(leaf, PathVelocity | PathState | Given)


def _levels(objective: Objective, used: set[Expr], drawn: Draw) -> tuple[tuple[str, Expr], ...]:
    """Two times that are made of one draw, each by itself, and nothing else so made."""
    found = [
        (name, expr)
        for name, expr in objective.definitions.items()
        if isinstance(expr, Apply)
        and expr in used
        and objective.kind(expr) in (Kind.SCALAR, Kind.TIME)
        and {n for n in walk(expr) if isinstance(n, Draw)} == {drawn}
    ]
    if len(found) != 2 or any(a in set(walk(b)) for (_, a), (_, b) in permutations(found, 2)):
        return ()
    return tuple(found)


def _stepped(objective: Objective, used: set[Expr]) -> tuple[tuple[str, Expr], ...]:
    """A drawn time and the one that is made of it and of another draw: `s = t - gap`."""
    moments = {n.time for n in used if isinstance(n, PathState | PathVelocity)}
    for name, expr in objective.definitions.items():
        if not isinstance(expr, Apply) or expr not in moments:
            continue
        drawn = {n for n in walk(expr) if isinstance(n, Draw)}
        starts = [time for time in drawn if time in moments]
        if len(drawn) > len(starts) == 1 and not _seen_together(used, starts[0], expr):
            return (starts[0].name, starts[0]), (name, expr)
    return ()


def _seen_together(used: set[Expr], start: Draw, end: Expr) -> bool:
    """Does a network see both times, so that their distance is its own?"""
    return any(
        isinstance(node, Evaluate)
        and any(end in set(walk(a)) for a in node.args[1:])
        and any(start in set(walk(transform(a, lambda n: ONE if n == end else n)))
                for a in node.args[1:])
        for node in used
    )  # fmt: skip


def _closer(objective: Objective, term: Term, first: Expr, second: Expr, share: float) -> Objective:
    nearer = sub(first, mul(Number(Fraction(repr(share))), sub(first, second)))

    def moved(expr: Expr) -> Expr:
        return transform(expr, lambda n: nearer if n == second else n)

    assert term.target is not None
    changed = replace(
        term,
        prediction=moved(term.prediction),
        target=moved(term.target),
        loss=moved(term.loss),
    )
    return replace(objective, terms=(changed,))


def _scaled(objective: Objective, name: str, share: float) -> Objective:
    value = objective.constants[name] * Fraction(repr(share))
    return replace(objective, constants={**objective.constants, name: value})


def decay_of(small: str, sizes: list[float], certificates: list[Certificate]) -> Decay | None:
    """The order between the measurements, largest first; None where it cannot be told."""
    # in units of the loss's own steepness: a weight of 1 / alpha is no part of the residual's order
    tables = [
        c.table / torch.tensor(c.scale, dtype=torch.float64).clamp(min=1e-300)
        for c in certificates
        if c.table is not None
    ]
    rows = min((len(t) for t in tables), default=0)
    if len(tables) < 2 or len({len(t) for t in tables}) > 1:
        return None
    half = rows // 2
    best: tuple[float, float] | None = None
    for (large, a), (little, b) in pairwise(zip(sizes, tables, strict=True)):
        one = _slope(large, a, little, b, half)
        if one is not None and (best is None or one[1] < best[1]):
            best = one
    return None if best is None else Decay(small, tuple(sizes), best[0], best[1])


def _slope(
    large: float, one: Tensor, little: float, other: Tensor, half: int
) -> tuple[float, float] | None:
    """Order and its error, with directions chosen by one half and measured on the other."""
    ratios, variances = [], []
    for choose, test in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        direction = one[choose].mean(0) / (one[choose].var(0) + 1e-300)
        seen = torch.stack([one[test] @ direction, other[test] @ direction])
        mean, count = seen.mean(1), seen.shape[1]
        error = seen.std(1) / math.sqrt(count)
        if bool((mean <= SURE * error).any()):
            return None
        scaled = seen / mean[:, None]
        ratios.append(math.log(float(mean[0] / mean[1])))
        variances.append(float((scaled[0] - scaled[1]).var()) / count)
    width = math.log(large / little)
    return sum(ratios) / 2 / width, math.sqrt(sum(variances) / 2) / width
