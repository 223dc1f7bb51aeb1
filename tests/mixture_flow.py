"""An exact flow in two dimensions with Jacobians that do not commute, in numpy: the checker's
oracle.

Data is a mixture of three rotated Gaussians, the path (1 - t) data + t noise. The marginal velocity
is known in closed form and analytic, so directional derivatives of flow maps are taken by a complex
step, exact to rounding; the map itself by the classical Runge-Kutta method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.state import Atom, MapAtom, State, Symbol, VelocityAtom

Vector = NDArray[np.complex128]
STEP = 1e-20


def _rotated(angle: float, a: float, b: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    return turn @ np.diag([a, b]) @ turn.T


MEANS = np.array([[1.2, 0.3], [-0.9, 0.8], [0.1, -1.1]])
COVARIANCES = np.array(
    [_rotated(0.4, 0.5, 0.04), _rotated(1.7, 0.6, 0.03), _rotated(2.6, 0.4, 0.05)]
)
WEIGHTS = np.array([0.5, 0.3, 0.2])


def velocity(x: Vector, t: complex) -> Vector:
    """E[noise - data | (1 - t) data + t noise = x], of one place or of many (shape (..., 2))."""
    logs, values = [], []
    for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
        spread = (1 - t) ** 2 * covariance + t**2 * np.eye(2)
        inverse = np.linalg.inv(spread)
        offset = x - (1 - t) * mean
        scaled = offset @ inverse
        logs.append(
            np.log(weight) - (scaled * offset).sum(-1) / 2 - np.log(np.linalg.det(spread)) / 2
        )
        cross = t * np.eye(2) - (1 - t) * covariance
        values.append(-mean + scaled @ cross)
    shift = np.max(np.real(logs), axis=0)
    shares = np.exp(np.array(logs) - shift)
    shares = shares / shares.sum(axis=0)
    return np.asarray(sum(s[..., None] * v for s, v in zip(shares, values, strict=True)))


def flow(x: Vector, start: complex, end: complex, steps: int = 24) -> Vector:
    """The map from one time to another; times may be complex for a derivative in them."""
    h = (end - start) / steps
    for k in range(steps):
        t = start + k * h
        a = velocity(x, t)
        b = velocity(x + h / 2 * a, t + h / 2)
        c = velocity(x + h / 2 * b, t + h / 2)
        d = velocity(x + h * c, t + h)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x


def along(f: Callable[[complex], Vector], order: int = 1) -> Vector:
    """The derivative of f at 0 by a complex step; the second by differences of such."""
    if order == 1:
        return np.imag(f(1j * STEP)) / STEP + 0j
    h = 1e-4
    return (np.imag(f(h + 1j * STEP)) - np.imag(f(-h + 1j * STEP))) / (2 * h * STEP) + 0j


@dataclass
class Numbers:
    """Values of states: symbols by name, generators of the field by index."""

    scalars: Scalars
    vectors: dict[str, Vector]
    values: dict[int, float]

    def scalar(self, x: object) -> float:
        return self.scalars.numeric(x, self.values)

    def state(self, state: State) -> Vector:
        total = np.zeros(2, dtype=complex)
        for atom, c in state.terms.items():
            total = total + self.scalar(c) * self.atom(atom)
        return total

    def atom(self, atom: Atom) -> Vector:
        match atom:
            case Symbol(_, name):
                return self.vectors[name]
            case MapAtom(_, _, point, start, end, directions, (0, 0)):
                a, b = self.scalar(start), self.scalar(end)
                return self._derived(lambda y: flow(y, a, b), self.state(point), directions)
            case VelocityAtom(_, _, point, time, 0, directions):
                t = self.scalar(time)
                return self._derived(lambda y: velocity(y, t), self.state(point), directions)
            case VelocityAtom(_, _, point, time, 1, directions):
                t = self.scalar(time)

                def rate(y: Vector) -> Vector:
                    return (velocity(y, t + 1e-5) - velocity(y, t - 1e-5)) / 2e-5

                return self._derived(rate, self.state(point), directions)
        raise NotImplementedError(type(atom).__name__)

    def _derived(
        self, f: Callable[[Vector], Vector], point: Vector, directions: tuple[Atom, ...]
    ) -> Vector:
        match directions:
            case ():
                return f(point)
            case (one,):
                w = self.atom(one)
                return along(lambda e: f(point + e * w))
            case (one, two):
                first, second = self.atom(one), self.atom(two)
                # polarisation: D2 f[a, b] from pure second derivatives
                plus = along(lambda e: f(point + e * (first + second)), 2)
                minus = along(lambda e: f(point + e * (first - second)), 2)
                return (plus - minus) / 4
        raise NotImplementedError(f"{len(directions)} derivatives")
