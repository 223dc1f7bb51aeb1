"""Rows of an objective in numbers: random given their state, with an exact flow in the networks.

Given a state x of the linear path, data is drawn from a mixture of Gaussians in closed form, and
means are taken by quadrature, to rounding for polynomials and to six digits for the flows here. An
interpreter that knows nothing of the calculus evaluates losses; networks compute the truth plus η
times a test function g, so that a derivative in η is the row's gradient along g.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mixture_flow import COVARIANCES, MEANS, STEP, WEIGHTS, Numbers, Vector, flow, velocity
from numpy.typing import NDArray

from flowdsl.calculus.numbers import _FUNCTIONS
from flowdsl.calculus.state import Atom, FunctionAtom, State, VelocityAtom
from flowdsl.proof.chance import Covariance
from flowdsl.spec.core import (
    Apply,
    Constant,
    Draw,
    Evaluate,
    Expr,
    Given,
    Number,
    PathState,
    PathVelocity,
    Stop,
)
from flowdsl.spec.objective import Objective

Network = Callable[..., Vector]


def posterior(x: NDArray[Any], t: float, order: int = 4) -> tuple[Vector, NDArray[np.float64]]:
    """Nodes and weights of data given (1 - t) data + t noise = x: shapes (n, 2) and (n,)."""
    roots, masses = np.polynomial.hermite_e.hermegauss(order)
    grid = np.stack([g.ravel() for g in np.meshgrid(roots, roots)], axis=-1)
    mass = np.outer(masses, masses).ravel() / (2 * np.pi)
    nodes, weights, logs = [], [], []
    for share, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
        spread = (1 - t) ** 2 * covariance + t**2 * np.eye(2)
        offset = np.real(x) - (1 - t) * mean
        gain = (1 - t) * covariance @ np.linalg.inv(spread)
        rest = covariance - (1 - t) * gain @ covariance
        nodes.append(mean + gain @ offset + grid @ np.linalg.cholesky(rest).T)
        logs.append(np.log(share) - offset @ np.linalg.inv(spread) @ offset / 2
                    - np.log(np.linalg.det(spread)) / 2)  # fmt: skip
        weights.append(mass)
    shares = np.exp(np.array(logs) - max(logs))
    shares = shares / shares.sum()
    return (np.concatenate(nodes) + 0j,
            np.concatenate([s * w for s, w in zip(shares, weights, strict=True)]))  # fmt: skip


def average(x: Vector, t: complex, r: complex, steps: int = 32) -> Vector:
    """(x - φ(x, t, r)) / (t - r), and v on the diagonal."""
    if t == r:
        return velocity(x, t)
    return (x - flow(x, t, r, steps)) / (t - r)


def probe(x: Vector, *times: complex) -> Vector:
    """A smooth g(x, times), linear in nothing."""
    total = sum((k + 1) * t for k, t in enumerate(times))
    a = np.sin(1.3 * x[..., 0] + 0.4 * x[..., 1] + total)
    b = np.cos(0.7 * x[..., 0] - 1.1 * x[..., 1] - 0.3 * total)
    return np.stack([a, b + 0.2 * x[..., 0] ** 2], axis=-1)


@dataclass
class Rows:
    """Rows with the same state and times, one per node of the noise."""

    objective: Objective
    x: Vector  # (2,)
    times: Mapping[str, float]
    networks: Mapping[str, Network]
    base: str = "t"  # the time of the state
    constants: Mapping[str, float] = field(default_factory=dict)
    eta: float = 0.0
    order: int = 4

    def __post_init__(self) -> None:
        t = self.times[self.base]
        self.data, self.weights = posterior(self.x, t, self.order)
        self.noise = (self.x - (1 - t) * self.data) / t
        self.velocity = self.noise - self.data
        self.xi = self.velocity - velocity(self.x, t)
        self.here = np.broadcast_to(self.x, self.data.shape)

    def mean(self, values: Any) -> Any:
        return np.tensordot(self.weights, np.real(values), axes=(0, 0))

    def gradient(self, loss: Expr, step: float = 1e-5) -> float:
        """The mean of d loss / d η at η = 0, for rows as they are."""
        found = []
        for eta in (step, -step):
            self.eta = eta
            found.append(self.mean(self(loss) * np.ones(len(self.data))))
        self.eta = 0.0
        return float((found[0] - found[1]) / (2 * step))

    def __call__(self, expr: Expr, live: bool = True) -> Any:
        match expr:
            case Number(value):
                return float(value)
            case Constant(name):
                return self.constants.get(name, float(self.objective.constants[name]))
            case Draw(name, _, _):
                return self.times[name]
            case Given("data"):
                return self.data
            case Given("noise"):
                return self.noise
            case PathState(_, time, Given("data"), Given("noise")):
                q = self(time)
                return self.here if q == self.times[self.base] else (
                    (1 - q) * self.data + q * self.noise)  # fmt: skip
            case PathVelocity():
                return self.velocity
            case Stop(body):
                return self(body, False)
            case Evaluate():
                return self._network(expr, live)
            case Apply(op, args):
                return self._apply(op, [self(a, live) for a in args])
        raise NotImplementedError(type(expr).__name__)

    def _apply(self, op: str, args: list[Any]) -> Any:
        vectors = [np.ndim(a) == 2 for a in args]
        match op:
            case "sum_squares":
                return (args[0] ** 2).sum(-1)
            case "mean_squares":
                return (args[0] ** 2).mean(-1)
            case "norm":
                return np.sqrt((args[0] ** 2).sum(-1))
            case "dot":
                return (args[0] * args[1]).sum(-1)
            case "pow":
                return args[0] ** args[1]
            case "sqrt":
                return np.sqrt(args[0])
            case "log":
                return np.log(args[0])
            case "exp":
                return np.exp(args[0])
            case "clip" if vectors[0]:
                return args[0]
        if any(vectors):
            args = [a[:, None] if np.ndim(a) == 1 else a for a in args]
        return _FUNCTIONS[op](*args)

    def _network(self, node: Evaluate, live: bool) -> Any:
        own = self.objective.networks[node.network]
        truth = self.networks[node.network]
        moves = live and not own.frozen and own.average_of is None

        def value(*at: Any) -> Vector:
            found = truth(*at)
            return found + self.eta * probe(*at) if moves else found

        at = [self(a, live) for a in node.args]
        if not node.directions:
            return value(*at)
        (tangents,) = node.directions
        step = [0.0 if d is None else self(d, live) for d in tangents]
        moved = [p + 1j * STEP * m for p, m in zip(at, step, strict=True)]
        return np.imag(value(*moved)) / STEP + 0j


class Symbols(Numbers):
    """States of the calculus on all rows at once; unknown functions are the probe."""

    def atom(self, atom: Atom) -> Vector:
        if isinstance(atom, FunctionAtom) and not any(atom.orders):
            times = [self.scalar(t) for t in atom.times]
            return self._derived(
                lambda y: probe(y, *times), self.state(atom.point), atom.directions
            )
        if isinstance(atom, VelocityAtom) and atom.order == 2:
            t = self.scalar(atom.time)

            def curved(y: Vector) -> Vector:
                after, here, before = (velocity(y, t + d) for d in (1e-4, 0.0, -1e-4))
                return (after - 2 * here + before) / 1e-8

            return self._derived(curved, self.state(atom.point), atom.directions)
        return super().atom(atom)


def symbols(analysis: Any, rows: Rows, **more: float) -> Symbols:
    """The calculus's symbols at the numbers of these rows."""
    scalars = analysis.scalars
    values = {scalars.index(n): v for n, v in rows.times.items() if scalars.has(n)}
    values |= {
        scalars.index(n): rows.constants.get(n, float(v))
        for n, v in rows.objective.constants.items()
        if scalars.has(n)
    }
    values |= {scalars.index(n): v for n, v in more.items()}
    values |= dict.fromkeys(scalars.smalls, 0.0)
    return Symbols(scalars, {"x": rows.here, "ξ": rows.xi}, values)


def expected(numbers: Symbols, rows: Rows, state: State) -> NDArray[np.float64]:
    """E of a state over the rows."""
    return np.asarray(rows.mean(numbers.state(state)))


def expected_product(numbers: Symbols, rows: Rows, found: Covariance) -> float:
    """E <variation, residual> of the rows."""
    product = numbers.state(found.variation) * numbers.state(found.residual)
    return float(rows.mean(product.sum(-1) * np.ones(len(rows.data))))
