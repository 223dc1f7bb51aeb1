"""Values that change once per training step: where they start and end, their range, their jumps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.numbers import evaluate
from flowdsl.spec.core import Apply, Expr, Level, Training, children, walk
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective

GRID = 401
STAIRS = 20  #: leaps between more values than these are not located
STEPS = 1_000_000.0  #: a long run, so that a warm-up counted in steps ends within it


@dataclass(frozen=True)
class Jump:
    """The value leaps from `before` to `after` at this share of training."""

    progress: float
    before: float
    after: float


@dataclass(frozen=True)
class Profile:
    """One curriculum over training, sampled at `GRID` equally spaced moments.

    A `staircase` is constant but for many leaps, which are not located.
    """

    values: tuple[float, ...]
    jumps: tuple[Jump, ...]
    staircase: bool = False

    @property
    def start(self) -> float:
        return self.values[0]

    @property
    def end(self) -> float:
        return self.values[-1]

    @property
    def inside(self) -> float | None:
        """A moment half of the way from start to end; None when there is none in between."""
        half = (self.start + self.end) / 2
        place = min(range(len(self.values)), key=lambda k: abs(self.values[k] - half))
        value = self.values[place]
        if value in (self.start, self.end):
            return None
        return place / (len(self.values) - 1)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


def _is_staircase(expr: Expr) -> bool:
    """Does a curriculum change by rounding alone?"""
    if isinstance(expr, Apply) and expr.op in ("floor", "ceil"):
        return True
    return not isinstance(expr, Training) and all(map(_is_staircase, children(expr)))


class Curricula:
    """The curricula of an objective."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._constants = {name: float(v) for name, v in objective.constants.items()}
        self._profiles: dict[Expr, Profile] = {}
        self._conditions: dict[Expr, tuple[bool, ...]] = {}

    def value(self, expr: Expr, progress: float) -> float:
        """A step-level expression at a share of training. Raises `Undecided` for batch
        statistics."""
        moment = {"progress": progress, "step": progress * STEPS, "steps": STEPS}
        return float(evaluate(expr, {**self._constants, **moment}))

    def profile(self, expr: Expr) -> Profile:
        """The curriculum's course; its jumps are found by bisection."""
        known = self._profiles.get(expr)
        if known is None:
            values = tuple(self.value(expr, k / (GRID - 1)) for k in range(GRID))
            staircase = len(set(values)) > STAIRS and _is_staircase(expr)
            jumps = () if staircase else self._jumps(expr, values)
            known = self._profiles[expr] = Profile(values, jumps, staircase)
        return known

    def _jumps(self, expr: Expr, values: tuple[float, ...]) -> tuple[Jump, ...]:
        scale = max(values) - min(values)
        steps = [abs(b - a) for a, b in pairwise(values)]
        found = []
        for k, step in enumerate(steps):
            around = max(steps[max(0, k - 1)] if k else 0.0, *steps[k + 1 : k + 2], 0.0)
            if step > 2 * around + 1e-9 * scale:
                jump = self._bisect(expr, k / (GRID - 1), (k + 1) / (GRID - 1))
                if jump is not None and abs(jump.after - jump.before) > 1e-6 * scale:
                    found.append(jump)
        return tuple(found)

    def _bisect(self, expr: Expr, low: float, high: float) -> Jump | None:
        before, after = self.value(expr, low), self.value(expr, high)
        for _ in range(40):
            middle = (low + high) / 2
            value = self.value(expr, middle)
            if abs(value - before) > abs(value - after):
                high, after = middle, value
            else:
                low, before = middle, value
        return Jump(low, before, after) if before != after else None

    @cached_property
    def all(self) -> dict[str, Expr]:
        """Named definitions that depend on where training stands and not on the sample."""
        return {
            name: expr
            for name, expr in self.objective.definitions.items()
            if level_of(expr) is Level.STEP
            and self.objective.kind(expr).value in ("scalar", "time")
            and any(isinstance(node, Training) for node in walk(expr))
        }

    def name_of(self, expr: Expr) -> str | None:
        return next((name for name, e in self.all.items() if e == expr), None)

    def attained(self, facts: Mapping[Expr, bool]) -> bool:
        """Is there a moment of training at which these step-level conditions hold together?"""
        return bool(self.moments(facts))

    def moments(self, facts: Mapping[Expr, bool]) -> list[float]:
        """The moments of training, of `GRID`, at which these step-level conditions hold together;
        all of them where that is not known."""
        step = [(c, value) for c, value in facts.items() if level_of(c) is Level.STEP]
        step = [(c, value) for c, value in step if isinstance(c, Apply)]
        shares = [k / (GRID - 1) for k in range(GRID)]
        try:
            courses = [[held == value for held in self._held(c)] for c, value in step]
        except Undecided:
            return shares
        held = zip(*courses, strict=True) if courses else [()] * GRID
        return [x for x, together in zip(shares, held, strict=True) if all(together)]

    def _held(self, condition: Expr) -> tuple[bool, ...]:
        """When a condition holds, over training."""
        known = self._conditions.get(condition)
        if known is None:
            known = tuple(bool(self.value(condition, k / (GRID - 1))) for k in range(GRID))
            self._conditions[condition] = known
        return known
