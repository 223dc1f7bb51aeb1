"""The flow map of a velocity field, and its average velocity, smooth through equal times."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flowdsl.exact.integrate import mean_slope
from flowdsl.exact.paths import Clock
from flowdsl.exact.variation import Average, Memo, Prepared


class VelocityField(Protocol):
    """A field `dx/dt = velocity(x, t)`, smooth but at the times in `cuts`, where it may jump:
    numbers, or (rows,) and in order for every row."""

    @property
    def clock(self) -> Clock | None: ...

    @property
    def cuts(self) -> tuple[float, ...] | tuple[Tensor, ...]: ...

    def velocity(
        self,
        state: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor: ...


@runtime_checkable
class PreparedField(Protocol):
    """A field that computes what depends on time alone for many times at once, in its clock."""

    def prepared(
        self, rows: Tensor, label: Tensor | None = None, scale: Tensor | None = None
    ) -> Prepared: ...


@dataclass(frozen=True, eq=False)
class FlowMap:
    """`phi(x, t, s)`: where `field` carries `x` from time `t` to `s`, in steps of order eight.

    States (rows, dimension), times (rows,) and in either order; everything is plain torch in
    float64, so it may be differentiated in state and times, forward or backward, to any order, and
    the derivatives converge with the steps as the values do. `label` and `scale` (guidance, per
    row) go to the field.
    """

    field: VelocityField
    steps: int = 8
    memo: Memo | None = None

    def velocity(
        self,
        state: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """The field itself: what the average velocity is at equal times."""
        return self.field.velocity(state, time, label, scale)

    def average_velocity(
        self,
        state: Tensor,
        start: Tensor,
        end: Tensor,
        label: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """`(phi(x, t, s) - x) / (s - t)`, smooth through `s = t`, where it is the velocity."""
        if start is end:
            # one and the same tensor moves as one: the velocity, with all of its derivatives
            return self.field.velocity(state, start, label, scale)
        if not self.field.cuts:
            return self._smooth_average(state, start, end, label, scale)
        return self._pieced_average(state, start, end, label, scale)

    def __call__(
        self,
        state: Tensor,
        start: Tensor,
        end: Tensor,
        label: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """`phi(state, start, end)`."""
        return state + (end - start)[:, None] * self.average_velocity(
            state, start, end, label, scale
        )

    def error(
        self, state: Tensor, start: Tensor, end: Tensor, label: Tensor | None = None
    ) -> float:
        """Largest change of `phi` when the steps are halved: an estimate of its error."""
        finer = replace(self, steps=2 * self.steps)
        change = self(state, start, end, label) - finer(state, start, end, label)
        return float(change.abs().max())

    def _smooth_average(
        self,
        state: Tensor,
        start: Tensor,
        end: Tensor,
        label: Tensor | None,
        scale: Tensor | None,
    ) -> Tensor:
        """The average velocity over an interval in which the field is smooth."""
        field, clock = self.field, self.field.clock
        begin, finish = (start, end) if clock is None else map(clock.forward, (start, end))

        def velocity(x: Tensor, tau: Tensor) -> Tensor:
            if clock is None:
                return field.velocity(x, tau, label, scale)
            time = clock.backward(tau)
            return clock.rate(time)[:, None] * field.velocity(x, time, label, scale)

        def plain(x: Tensor, begin: Tensor, finish: Tensor) -> Tensor:
            return mean_slope(velocity, x, begin, finish, self.steps)

        if isinstance(field, PreparedField):
            prepared = field.prepared(start.detach(), label, scale)
            memo = Memo() if self.memo is None else self.memo
            mean = Average(prepared, plain, self.steps, memo)(state, begin, finish)
        else:
            mean = plain(state, begin, finish)
        return mean if clock is None else mean * _clock_ratio(clock, start, end)[:, None]

    def _pieced_average(
        self,
        state: Tensor,
        start: Tensor,
        end: Tensor,
        label: Tensor | None,
        scale: Tensor | None,
    ) -> Tensor:
        """The average velocity over an interval that may cross times at which the field jumps."""
        inner = self._borders(start)
        far = torch.full_like(inner[:1], math.inf)
        edges = torch.cat([-far, inner, far])
        pieces = len(edges) - 1
        first, last = ((inner < time.detach()).sum(0) for time in (start, end))
        onward = first <= last
        total = torch.zeros_like(state)
        for turn in range(pieces):
            piece = torch.where(onward, turn, pieces - 1 - turn)
            low, high = edges.gather(0, torch.stack([piece, piece + 1]))
            enter = torch.minimum(torch.maximum(start, low), high)
            leave = torch.minimum(torch.maximum(end, low), high)
            slope = self._within(state, enter, leave, label, scale)
            state = state + (leave - enter)[:, None] * slope
            # within one piece the share of the interval is 0 or 1, and must not be computed as 0 /
            # 0
            alone = first == last
            width = torch.where(alone, torch.ones_like(start), end - start)
            share = torch.where(alone, (piece == first).to(start), (leave - enter) / width)
            total = total + share[:, None] * slope
        return total

    def _borders(self, like: Tensor) -> Tensor:
        """The times at which the field jumps, (cuts, rows)."""
        cuts = self.field.cuts
        numbers = sorted(cut for cut in cuts if not isinstance(cut, Tensor))
        rows = [cut for cut in cuts if isinstance(cut, Tensor)]
        return torch.stack(rows or [torch.full_like(like.detach(), cut) for cut in numbers])

    def _within(
        self,
        state: Tensor,
        enter: Tensor,
        leave: Tensor,
        label: Tensor | None,
        scale: Tensor | None,
    ) -> Tensor:
        """The average velocity inside one piece, whose ends are approached from within."""
        middle = (0.5 * (enter + leave)).detach()
        nudge = 1 - 1e-9
        inward = [middle + (time - middle) * nudge for time in (enter, leave)]
        return self._smooth_average(state, inward[0], inward[1], label, scale)


#: Nodes and weights on [0, 1] of the Gauss-Legendre rule with four nodes, for short intervals of a
#: clock.
_GAUSS = (
    (0.06943184420297371, 0.17392742256872693),
    (0.33000947820757187, 0.32607257743127307),
    (0.66999052179242813, 0.32607257743127307),
    (0.93056815579702629, 0.17392742256872693),
)


def _clock_ratio(clock: Clock, start: Tensor, end: Tensor) -> Tensor:
    """`(forward(end) - forward(start)) / (end - start)`, smooth through equal times."""
    begin, finish = clock.forward(start), clock.forward(end)
    short = (finish - begin).abs() < 0.02
    mean = sum(weight / clock.rate(start + node * (end - start)) for node, weight in _GAUSS)
    width = torch.where(short, torch.ones_like(start), end - start)
    return torch.where(short, mean, (finish - begin) / width)
