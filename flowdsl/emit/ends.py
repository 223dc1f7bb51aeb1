"""Where a path begins and ends, and what a sampler must know of it: its states, and its times."""

from __future__ import annotations

from fractions import Fraction

from flowdsl.ir.algebra import linear_in
from flowdsl.ir.ranges import evaluate, of_draw, of_expr
from flowdsl.spec.core import Expr, Formal, Kind, Number, Training, transform
from flowdsl.spec.objective import Objective, Path

#: Where paths of the field begin and end: linear ones at 0 and 1, trigonometric ones at 0 and pi /
#: 2.
_CANDIDATES = (0.0, 1.0, 1.5707963267948966)

#: A path without an end counts as noise where data weigh less than this beside it.
_FAINT = 0.01


def first_path(objective: Objective) -> Path | None:
    """The path along which samples are made: the first one."""
    return next(iter(objective.paths.values()), None)


def sampling_clock(objective: Objective) -> Expr | None:
    """What `sample` says of the path's time, as a function of `progress`; None: even steps."""
    path = first_path(objective)
    return None if path is None else dict(objective.sampler).get(path.time)


def ends_of(objective: Objective) -> tuple[float, float]:
    """The times at which the path is data, and noise.

    What `sample` says comes first. Else each end is where the coefficient of the other vanishes;
    where the data's never does (`z(t) = data + t * noise`), the path ends with the support of its
    time's law, and where that has no end either, where data weigh less than a hundredth of noise.
    """
    path = first_path(objective)
    if path is None:
        return 0.0, 1.0
    data, noise = Formal("data", Kind.STATE), Formal("noise", Kind.STATE)
    forms = linear_in(path.body, frozenset({data, noise})) or {}
    zero = _zero(objective, forms.get(noise), path.time)
    data_time = 0.0 if zero is None else zero
    clock = sampling_clock(objective)
    if clock is not None:
        first, last = (_at(objective, clock, progress) for progress in (0.0, 1.0))
        if first is not None and last is not None:
            return (data_time if abs(last - data_time) < 1e-6 else last), first
    noise_time = _zero(objective, forms.get(data), path.time)
    if noise_time is None:
        noise_time = _support_end(objective, path, data_time)
    if noise_time is None:
        noise_time = _faint(objective, path, forms.get(data), forms.get(noise))
    return data_time, noise_time


def _at(objective: Objective, clock: Expr, progress: float) -> float | None:
    here = Number(Fraction(progress))
    expr = transform(clock, lambda e: here if e == Training("progress") else e)
    return evaluate(expr, {}, objective)


def _zero(objective: Objective, coefficient: Expr | None, time: str) -> float | None:
    """The time at which a coefficient vanishes, among the usual ones."""
    if coefficient is None:
        return None
    for at in _CANDIDATES:
        value = evaluate(coefficient, {time: at}, objective)
        if value is not None and abs(value) < 1e-12:
            return at
    return None


def _support_end(objective: Objective, path: Path, data_time: float) -> float | None:
    """The end of the support of the path's time that lies farther from the data's; None: none."""
    if path.time in objective.draws:
        ends = of_draw(path.time, objective)
    elif path.time in objective.definitions:
        ends = of_expr(objective.definitions[path.time], objective)
    else:
        return None
    far = max(ends, key=lambda end: abs(end - data_time))
    return far if abs(far) != float("inf") else None


def _faint(objective: Objective, path: Path, data: Expr | None, noise: Expr | None) -> float:
    """The first power of ten at which data weigh less than `_FAINT` of the noise; 1 if none."""
    if data is None or noise is None:
        return 1.0
    for power in range(1, 7):
        at = {path.time: 10.0**power}
        weights = evaluate(data, at, objective), evaluate(noise, at, objective)
        if None not in weights and abs(weights[0] or 0) <= _FAINT * abs(weights[1] or 0):
            return 10.0**power
    return 1.0
