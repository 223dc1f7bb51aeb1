"""Is a row's weight above zero wherever its laws let the row be?

Where a weight is negative the error grows; where it is zero nothing is learnt. The weight is looked
at in numbers: at points of all that the row draws, at errors of ten decades, through the whole of
training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from flowdsl.calculus.errors import Undecided
from flowdsl.proof.points import points
from flowdsl.proof.weight import Slope, marked
from flowdsl.spec.core import Apply, Evaluate, Expr, Training, walk
from flowdsl.truth.cases import Case
from flowdsl.truth.setting import Setting

#: Errors of a sample at which its weight is looked at.
ERRORS = (3e-6, 3e-3, 3.0, 3e3)
#: Shares of training, neither end among them: a weight may begin or end at zero.
MOMENTS = (0.07, 0.71, 0.29, 0.93, 0.5)


def wrong_sign(setting: Setting, case: Case) -> str:
    """What is wrong with the sign of a case's weight, in words; empty when nothing is. Raises
    `Undecided` where the weight has no value."""
    loss = marked(case)
    learned = (0.5, -0.5) if any(_either(n) for n in walk(loss)) else (0.5,)
    slopes = [Slope.of(setting, case, value) for value in learned]
    changes = _changes(loss)
    seen: set[int] = set()
    for index, point in enumerate(_looked_at(setting, case, loss, changes)):
        moment = MOMENTS[index % len(MOMENTS)]
        for slope in slopes:
            signs = _signs(slope, point, moment)
            if -1 in signs:
                return _negative(signs, point, moment if changes else None)
            seen |= signs
    return "the loss does not depend on the error: no gradient" if seen == {0} else ""


def _looked_at(
    setting: Setting, case: Case, loss: Expr, changes: bool
) -> Iterator[Mapping[str, float]]:
    """The points of what is drawn; where training changes the weight at least one per moment."""
    found = list(points(setting, case, loss))
    yield from found * len(MOMENTS) if changes and len(found) == 1 else found


def vanishes(setting: Setting, case: Case, point: Mapping[str, float]) -> bool:
    """Is a case's weight zero at these values of what it draws, through the whole of training?"""
    slope = Slope.of(setting, case)
    moments = MOMENTS if _changes(slope.expr) else MOMENTS[:1]
    return all(_signs(slope, point, moment) == {0} for moment in moments)


def silent(setting: Setting, case: Case, progress: float) -> bool:
    """Is a case's weight zero at this share of training, whatever it draws?"""
    try:
        slope = Slope.of(setting, case)
        drawn = points(setting, case, slope.expr)
        return all(_signs(slope, point, progress) == {0} for point in drawn)
    except Undecided:
        return False


def _changes(loss: Expr) -> bool:
    return any(isinstance(n, Training) for n in walk(loss))


def _signs(slope: Slope, point: Mapping[str, float], progress: float) -> set[int]:
    """The signs of the weight over all errors. Where it has no value it has no sign."""
    found = set()
    for error in ERRORS:
        try:
            value = slope.at(error, point, progress)
        except Undecided:
            continue
        if not math.isnan(value):
            found.add((value > 0) - (value < 0))
    return found


def _either(node: Expr) -> bool:
    return isinstance(node, Evaluate) or (isinstance(node, Apply) and node.op == "dot")


def _negative(signs: set[int], point: Mapping[str, float], moment: float | None) -> str:
    where = [f"{name} = {value:.2g}" for name, value in point.items()]
    where += [] if moment is None else [f"progress = {moment:g}"]
    at = f" at {', '.join(where)}" if where else ""
    if signs == {-1}:
        return f"the weight of the error is negative{at}: it would grow"
    return f"the weight of the error changes its sign{at}: at some errors it would grow"
