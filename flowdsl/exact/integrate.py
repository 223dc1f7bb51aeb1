"""An explicit Runge-Kutta method of order eight, verified when it is built."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: stage times, coefficients, weights, and claimed order.

    Construction checks what is cheap to check: that each row of coefficients sums to its stage
    time, and that the weights integrate polynomials of degree below `order` exactly. The order
    itself is measured in the tests.
    """

    nodes: tuple[float, ...]
    coefficients: Rows
    weights: tuple[float, ...]
    order: int

    def __post_init__(self) -> None:
        for node, row in zip(self.nodes, self.coefficients, strict=True):
            if abs(sum(row) - node) > 1e-12:
                raise ValueError(f"coefficients sum to {sum(row)}, not to their stage time {node}")
        for power in range(self.order):
            integral = sum(w * c**power for w, c in zip(self.weights, self.nodes, strict=True))
            if abs(integral - 1 / (power + 1)) > 1e-12:
                raise ValueError(f"the weights do not integrate degree {power} exactly")

    @property
    def stages(self) -> int:
        return len(self.nodes)


def _cooper_verner() -> Tableau:
    """Cooper & Verner 1972, "Some explicit Runge-Kutta methods of high order", order 8 in 11
    stages.
    """
    q = math.sqrt(21.0)
    early, late = (7 - q) / 14, (7 + q) / 14
    return Tableau(
        nodes=(0.0, 1 / 2, 1 / 2, late, late, 1 / 2, early, early, 1 / 2, late, 1.0),
        coefficients=(
            (),
            (1 / 2,),
            (1 / 4, 1 / 4),
            (1 / 7, (-7 - 3 * q) / 98, (21 + 5 * q) / 49),
            ((11 + q) / 84, 0, (18 + 4 * q) / 63, (21 - q) / 252),
            ((5 + q) / 48, 0, (9 + q) / 36, (-231 + 14 * q) / 360, (63 - 7 * q) / 80),
            (
                (10 - q) / 42,
                0,
                (-432 + 92 * q) / 315,
                (633 - 145 * q) / 90,
                (-504 + 115 * q) / 70,
                (63 - 13 * q) / 35,
            ),
            (1 / 14, 0, 0, 0, (14 - 3 * q) / 126, (13 - 3 * q) / 63, 1 / 9),
            (
                1 / 32,
                0,
                0,
                0,
                (91 - 21 * q) / 576,
                11 / 72,
                (-385 - 75 * q) / 1152,
                (63 + 13 * q) / 128,
            ),
            (
                1 / 14,
                0,
                0,
                0,
                1 / 9,
                (-733 - 147 * q) / 2205,
                (515 + 111 * q) / 504,
                (-51 - 11 * q) / 56,
                (132 + 28 * q) / 245,
            ),
            (
                0,
                0,
                0,
                0,
                (-42 + 7 * q) / 18,
                (-18 + 28 * q) / 45,
                (-273 - 53 * q) / 72,
                (301 + 53 * q) / 72,
                (28 - 28 * q) / 45,
                (49 - 7 * q) / 18,
            ),
        ),
        weights=(1 / 20, 0, 0, 0, 0, 0, 0, 49 / 180, 16 / 45, 49 / 180, 1 / 20),
        order=8,
    )


COOPER_VERNER = _cooper_verner()


def mean_slope(
    velocity: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    start: Tensor,
    end: Tensor,
    steps: int,
    tableau: Tableau = COOPER_VERNER,
) -> Tensor:
    """`(x(end) - x(start)) / (end - start)` along `dx/dt = velocity(x, t)`, without a division.

    States (rows, dimension), times (rows,), each row with its own interval, in either direction. A
    Runge-Kutta step is `x + h * (weighted stage slopes)`, so the mean of the weighted slopes over
    equal steps *is* the average velocity: at `end = start` it is the velocity there, and its
    derivatives in all arguments are right there too.
    """
    # Under forward-mode differentiation an operation of a differentiated tensor with a plain one is
    # ten times as slow as one of two differentiated tensors; adding this zero makes them alike.
    nothing = 0 * (state[:1, :1].sum() + start[:1].sum() + end[:1].sum())
    step = ((end - start) / steps)[:, None] + nothing
    state = state + nothing
    times = stage_times(start, end, steps, tableau) + nothing
    rows = _coefficients(tableau, nothing)
    total = torch.zeros_like(state) + nothing
    for index in range(steps):
        here = state if index == 0 else state + step * total
        found: list[Tensor] = []
        for stage in range(tableau.stages):
            point = here if stage == 0 else here + step * _combine(found, rows[stage])
            found.append(velocity(point, times[:, index * tableau.stages + stage]))
        total = total + _combine(found, rows[-1])
    return total / steps


def stage_times(start: Tensor, end: Tensor, steps: int, tableau: Tableau) -> Tensor:
    """The times of all stages of all steps, (rows, steps * stages)."""
    fractions = [(index + node) / steps for index in range(steps) for node in tableau.nodes]
    ends = torch.stack([start, end], dim=-1)
    return ends @ ends.new_tensor([[1 - share for share in fractions], fractions])


#: Which slopes enter, and their coefficients.
Row = tuple[list[int], Tensor]


def _coefficients(tableau: Tableau, nothing: Tensor) -> list[Row]:
    """What each stage, and at last the step itself, makes of the slopes before it."""
    rows = [*tableau.coefficients, tableau.weights]
    used = [[k for k, c in enumerate(row) if c != 0] for row in rows]
    flat = [row[k] for row, places in zip(rows, used, strict=True) for k in places]
    values = torch.tensor(flat, dtype=torch.float64).to(nothing) + nothing
    return list(zip(used, torch.split(values, [len(places) for places in used]), strict=True))


def _combine(slopes: list[Tensor], row: Row) -> Tensor:
    places, coefficients = row
    # one product over the stacked slopes: far fewer operations than a chain of scaled additions
    return torch.stack([slopes[k] for k in places], dim=-1) @ coefficients
