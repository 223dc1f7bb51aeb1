"""Average velocities together with their derivatives, integrated side by side.

The derivative of a flow by its state and its times solves an equation along the flow, whose
coefficients are the velocity's own derivatives in closed form. So a derivative costs a few times
the value, where forward-mode differentiation through all steps costs tens of times. No identity of
flow maps is used: the very steps of the integrator are differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowdsl.exact.forward import applied, at_primals, pulled
from flowdsl.exact.integrate import COOPER_VERNER, Tableau, stage_times
from flowdsl.exact.stages import Stages

ROUNDING = 1e-12  #: relative difference of rows that are copies of one state


@dataclass(frozen=True, eq=False)
class Prepared:
    """A velocity for rows that differ in `columns` (rows, any number): labels, strengths.

    `make` gives it at times (times, rows), with True also its derivatives.
    """

    columns: Tensor
    make: Callable[[Tensor, bool, Tensor], Stages]


@dataclass(frozen=True, eq=False)
class Average:
    """The average velocity of a flow, and how to differentiate it: `plain` is the same function
    in ordinary torch, for derivatives of the second order."""

    prepared: Prepared
    plain: Callable[[Tensor, Tensor, Tensor], Tensor]
    steps: int
    memo: Memo

    def __call__(self, state: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The average velocity (rows, d) from states (rows, d) over times (rows,)."""
        found: Tensor = applied(_Value, state, start, end, self)
        return found

    def value(self, state: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The value alone, of plain tensors."""
        rows = _Distinct.of(state, start, end, self.prepared.columns)
        known = self.memo.find(rows.key)
        if known is None:
            value = torch.empty_like(rows.point[0])
            for chosen, part, steps in self._parts(rows):
                value[chosen] = integrated(part.prepared(self.prepared), *part.point, steps)
            known = value, None
            self.memo.keep(rows.key, known)
        return known[0][rows.places]

    def rates(self, state: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The derivatives (d + 2, rows, d), of plain tensors."""
        rows = _Distinct.of(state, start, end, self.prepared.columns)
        known = self.memo.find(rows.key)
        rates = None if known is None else known[1]
        if rates is None:
            value = torch.empty_like(rows.point[0])
            rates = value.new_empty(value.shape[1] + 2, *value.shape)
            for chosen, part, steps in self._parts(rows):
                value[chosen], rates[:, chosen] = differentiated(
                    part.prepared(self.prepared), *part.point, steps
                )
            self.memo.keep(rows.key, (value, rates))
        return rates[:, rows.places]

    def _parts(self, rows: _Distinct) -> Iterator[tuple[Tensor, _Distinct, int]]:
        """The rows by how many steps they take: at equal times one step is exact."""
        _, start, end = rows.point
        for chosen, steps in ((start == end, 1), (start != end, self.steps)):
            if bool(chosen.any()):
                yield chosen, rows.only(chosen), steps

    def table(self, state: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The derivatives as ordinary torch, to be differentiated in turn."""
        # backward: forward modes do not nest where someone else already differentiates forward
        value, pull = pulled(self.plain, state, start, end)
        columns = [pull(one.expand_as(value)) for one in torch.eye(value.shape[1]).to(value)]
        rows = [torch.cat([x.mT, t[None], s[None]]) for x, t, s in columns]
        return torch.stack(rows, dim=2)

    def bent(self, point: tuple[Tensor, ...], move: tuple[Tensor, ...]) -> Tensor:
        """How the derivatives change as the point moves."""
        value, pull = pulled(self.table, *point)
        _, push = pulled(pull, torch.zeros_like(value))  # linear: its transpose moves on
        moved: Tensor = push(move)[0]
        return moved


Known = tuple[Tensor, Tensor | None]


class Memo:
    """Average velocities that were computed before: the same rows come again and again."""

    def __init__(self, size: int = 512) -> None:
        self._size = size
        self._known: dict[bytes, Known] = {}

    def find(self, key: bytes) -> Known | None:
        """What is known at a point: the value, and derivatives if they were needed."""
        return self._known.get(key)

    def keep(self, key: bytes, known: Known) -> None:
        """Remember it, and forget what came first when there is too much."""
        if len(self._known) >= self._size and key not in self._known:
            del self._known[next(iter(self._known))]
        self._known[key] = known


@dataclass(frozen=True, eq=False)
class _Distinct:
    """Rows without their repetitions, and the place of each row among them.

    Copies of a state stand side by side, and differ by no more than rounding.
    """

    point: tuple[Tensor, Tensor, Tensor]
    columns: Tensor
    places: Tensor

    @classmethod
    def of(cls, state: Tensor, start: Tensor, end: Tensor, columns: Tensor) -> _Distinct:
        rows = torch.cat([state, start[:, None], end[:, None], columns], 1)
        before, after = rows[:-1], rows[1:]
        moved = ((after - before).abs() > ROUNDING * (1 + before.abs())).any(1)
        places = torch.cat([moved.new_zeros(1, dtype=torch.long), moved.long().cumsum(0)])
        chosen = torch.cat([moved.new_ones(1), moved])
        size = state.shape[1]
        few = rows[chosen]
        return cls((few[:, :size], few[:, size], few[:, size + 1]), few[:, size + 2 :], places)

    def only(self, chosen: Tensor) -> _Distinct:
        """Some of the rows, (rows,) booleans."""
        if bool(chosen.all()):
            return self
        state, start, end = (part[chosen] for part in self.point)
        return _Distinct((state, start, end), self.columns[chosen], self.places)

    @property
    def key(self) -> bytes:
        rows = torch.cat([self.point[0], *(t[:, None] for t in self.point[1:]), self.columns], 1)
        return rows.numpy().tobytes()

    def prepared(self, whole: Prepared) -> Prepared:
        """The velocity of these rows alone."""
        return Prepared(self.columns, whole.make)


class _Value(torch.autograd.Function):
    """The average velocity."""

    @staticmethod
    def forward(state: Tensor, start: Tensor, end: Tensor, average: Average) -> Tensor:
        return average.value(state, start, end)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *point, ctx.average = inputs
        ctx.save_for_backward(*point)
        ctx.save_for_forward(*point)

    @staticmethod
    def jvp(ctx: Any, state: Tensor, start: Tensor, end: Tensor, _: None) -> Tensor:
        with at_primals(ctx) as point:
            table = applied(_Table, *point, ctx.average)
            moved: Tensor = torch.einsum("ebj,be->bj", table[:-2], state)
            found: Tensor = moved + table[-2] * start[:, None] + table[-1] * end[:, None]
            return found

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        table = applied(_Table, *ctx.saved_tensors, ctx.average)
        seen = (table * slope).sum(2)
        return seen[:-2].mT, seen[-2], seen[-1], None


class _Table(torch.autograd.Function):
    """The derivatives of the average velocity; their own derivatives are ordinary torch."""

    @staticmethod
    def forward(state: Tensor, start: Tensor, end: Tensor, average: Average) -> Tensor:
        return average.rates(state, start, end)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *point, ctx.average = inputs
        ctx.save_for_backward(*point)
        ctx.save_for_forward(*point)

    @staticmethod
    def jvp(ctx: Any, state: Tensor, start: Tensor, end: Tensor, _: None) -> Tensor:
        with at_primals(ctx) as point:
            found: Tensor = ctx.average.bent(point, (state, start, end))
            return found

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        _, pull = pulled(ctx.average.table, *ctx.saved_tensors)
        return (*pull(slope), None)


@torch.no_grad()
def integrated(
    prepared: Prepared,
    state: Tensor,
    start: Tensor,
    end: Tensor,
    steps: int,
    tableau: Tableau = COOPER_VERNER,
) -> Tensor:
    """The average velocity (rows, d): see `integrate.mean_slope`."""
    times = stage_times(start, end, steps, tableau).mT.contiguous()
    stages = prepared.make(times, False, prepared.columns)
    step, here = (end - start) / steps, state.mT.contiguous()
    slopes = here.new_zeros(tableau.stages + 1, *here.shape)
    rows = _coefficients(tableau)
    total = torch.zeros_like(here)
    for index in range(steps):
        first = torch.addcmul(here, step, total)
        for stage in range(tableau.stages):
            point = (
                first if stage == 0 else torch.addcmul(first, step, _combined(rows, stage, slopes))
            )
            slopes[stage] = stages.velocity(point, index * tableau.stages + stage)
        total = total + _combined(rows, tableau.stages, slopes)
    return (total / steps).mT.contiguous()


@torch.no_grad()
def differentiated(
    prepared: Prepared,
    state: Tensor,
    start: Tensor,
    end: Tensor,
    steps: int,
    tableau: Tableau = COOPER_VERNER,
) -> tuple[Tensor, Tensor]:
    """The average velocity (rows, d) and its derivatives (d + 2, rows, d).

    Beside the state runs its derivative in all directions, by the same steps: a column for each
    entry of the state, one for the start and one for the end.
    """
    count, size = state.shape
    times = stage_times(start, end, steps, tableau).mT.contiguous()
    stages = prepared.make(times, True, prepared.columns)
    step = (end - start) / steps
    here = state.new_zeros(size, 1 + size + 2, count)  # the state, then its derivatives
    here[:, 0] = state.mT
    here[:, 1 : 1 + size] = torch.eye(size, dtype=state.dtype)[:, :, None]
    slopes = here.new_zeros(tableau.stages + 1, *here.shape)
    rows = _coefficients(tableau)
    total = torch.zeros_like(here)

    def moved(point: Tensor, slope: Tensor) -> Tensor:
        """`point + step slope`, the step itself moving with the end and against the start."""
        result = torch.addcmul(point, step, slope)
        result[:, -2] -= slope[:, 0] / steps
        result[:, -1] += slope[:, 0] / steps
        return result

    for index in range(steps):
        first = moved(here, total)
        for stage, node in enumerate(tableau.nodes):
            point = first if stage == 0 else moved(first, _combined(rows, stage, slopes))
            own = slopes[stage]
            own[:, 0], jacobian, rate = stages.differentiated(
                point[:, 0], index * tableau.stages + stage
            )
            torch.sum(jacobian[:, :, None] * point[None, :, 1:], 1, out=own[:, 1:])
            share = (index + node) / steps
            own[:, -2] += (1 - share) * rate
            own[:, -1] += share * rate
        total = total + _combined(rows, tableau.stages, slopes)
    total = total / steps
    return total[:, 0].mT.contiguous(), total[:, 1:].permute(1, 2, 0).contiguous()


#: What a stage, and at last the step itself, makes of the slopes before it.
Rows = list[Tensor]


def _coefficients(tableau: Tableau) -> Rows:
    rows = [*tableau.coefficients, tableau.weights]
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


def _combined(rows: Rows, stage: int, slopes: Tensor) -> Tensor:
    row = rows[stage]
    combined = row @ slopes[: len(row)].reshape(len(row), -1)
    return combined.reshape(slopes.shape[1:])
