"""What an identity is: a statement about flow maps that the calculus uses as a rule.

Each identity is one file of this folder. It is checked when it is made: on an exact Gaussian flow
its two sides must agree, so that a slip of the pen in a statement never becomes a rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from flowdsl.calculus.state import Calculus, MapAtom, State


@dataclass(frozen=True)
class GaussianFlow:
    """The exact flow of the path (1 - t) data + t noise for data ~ N(mean, std^2), in one
    dimension.

    dx/dt = velocity(x, t) carries x from time t to time s: map(x, t, s).
    """

    mean: float = 0.7
    std: float = 0.4

    def _spread(self, t: float) -> float:
        return math.hypot((1 - t) * self.std, t)

    def velocity(self, x: float, t: float) -> float:
        slope = (t - (1 - t) * self.std**2) / self._spread(t) ** 2
        return -self.mean + slope * (x - (1 - t) * self.mean)

    def map(self, x: float, t: float, s: float) -> float:
        ratio = self._spread(s) / self._spread(t)
        return (1 - s) * self.mean + ratio * (x - (1 - t) * self.mean)


def slope(f: Callable[[float], float], x: float, step: float = 1e-4) -> float:
    """f'(x) to about 1e-11: a central difference of fourth order."""
    near, far = f(x + step) - f(x - step), f(x + 2 * step) - f(x - 2 * step)
    return (8 * near - far) / (12 * step)


Silent = Callable[[Calculus, MapAtom], State | None]


def _silent(calculus: Calculus, atom: MapAtom) -> None:
    return None


@dataclass(frozen=True)
class Identity:
    """An identity of flow maps.

    `statement` is in the notation φ(x, t, s): the map from time t to time s. `residual(flow, x, t,
    s)` is the difference of its sides on an exact flow. `map_rule` rewrites a map as it is made;
    `start_rule` and `end_rule` give its derivative in the start and end time; all three answer None
    where the identity is silent. Raises ValueError when the sides differ by more than 1e-8.
    """

    name: str
    title: str
    statement: str
    source: str
    acts: str
    residual: Callable[[GaussianFlow, float, float, float], float]
    map_rule: Silent = _silent
    start_rule: Silent = _silent
    end_rule: Silent = _silent

    def __post_init__(self) -> None:
        error = self.error(GaussianFlow())
        if not error < 1e-8:
            raise ValueError(f"the identity {self.name} is off by {error:.2g} on a Gaussian flow")

    def error(self, flow: GaussianFlow) -> float:
        """The largest difference of the two sides at a few points."""
        points = [(0.3, 0.8, 0.2), (-1.1, 0.6, 0.5), (0.9, 0.4, 0.7)]
        return max(abs(self.residual(flow, x, t, s)) for x, t, s in points)

    def on_map(self, calculus: Calculus, atom: MapAtom) -> State | None:
        return self.map_rule(calculus, atom)

    def start_derivative(self, calculus: Calculus, atom: MapAtom) -> State | None:
        return self.start_rule(calculus, atom)

    def end_derivative(self, calculus: Calculus, atom: MapAtom) -> State | None:
        return self.end_rule(calculus, atom)
