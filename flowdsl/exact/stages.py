"""A mixture's velocity at many times, with its derivatives in closed form.

What depends on time alone (precisions, drifts, strengths of guidance) is computed once, for all
stages of an integration. Features stand first and rows last: sums over few features are then taken
for many rows at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Axes:
    """Constants of a mixture with `k` components in `d` dimensions, `a = k d` axes.

    `inward` (a, d) reads a state along all axes, `outward` (d, a) goes back, `members` (a, k) says
    which component an axis belongs to, `sums` (k, a) is minus half of its transpose. `bend` (d k,
    a) and `stretch` (d d, a) are the products that Jacobians need.
    """

    inward: Tensor
    outward: Tensor
    members: Tensor
    sums: Tensor
    bend: Tensor
    stretch: Tensor

    @classmethod
    def of(cls, axes: Tensor, members: Tensor) -> Axes:
        """From the axes (d, a) and members (k, a) of a mixture."""
        inward, sums = axes.T.contiguous(), -0.5 * members
        bend = 2 * sums[None] * inward.T[:, None]
        stretch = axes[:, None] * axes[None]
        return cls(
            inward,
            axes.contiguous(),
            members.T.contiguous(),
            sums,
            bend.flatten(0, 1),
            stretch.flatten(0, 1),
        )


@dataclass(frozen=True, eq=False)
class Parts:
    """What of a velocity depends on time: (times, a or k or 1, rows), or derivatives of it."""

    precision: Tensor
    centre: Tensor
    growth: Tensor
    drift: Tensor
    normal: Tensor
    strength: Tensor | None = None


def with_rate(function: Callable[[Tensor], Tensor], times: Tensor) -> tuple[Tensor, Tensor]:
    """A function of one time at many, and its derivative there.

    Taken backward, which is allowed whatever is being differentiated around it.
    """
    with torch.enable_grad():
        moved = times.detach().requires_grad_()
        value = function(moved)
        if not value.requires_grad:
            return value, torch.zeros_like(times)
        (slope,) = torch.autograd.grad(value.sum(), moved)
    return value.detach(), slope


@dataclass(frozen=True, eq=False)
class Stages:
    """The velocity at times that were said before; `prior` (labels, k, rows) are log weights.

    One entry of `prior` is the field of a label, or of none; two are that of a label and of none,
    combined by the strength of guidance.
    """

    axes: Axes
    parts: Parts
    rates: Parts | None
    prior: Tensor

    def velocity(self, state: Tensor, stage: int) -> Tensor:
        """The velocity (d, rows) at a state (d, rows)."""
        axes, parts = self.axes, self.parts
        offset = torch.addmm(parts.centre[stage], axes.inward, state, beta=-1)
        logits = torch.addmm(
            parts.normal[stage], axes.sums, offset * offset * parts.precision[stage]
        )
        weights = self._mixed(torch.softmax(logits + self.prior, dim=1), stage)
        slopes = torch.addcmul(parts.drift[stage], parts.growth[stage], offset)
        return axes.outward @ ((axes.members @ weights) * slopes)

    def differentiated(self, state: Tensor, stage: int) -> tuple[Tensor, Tensor, Tensor]:
        """The velocity (d, rows), its Jacobian (d, d, rows) and its derivative by the time."""
        axes, parts, rates = self.axes, self.parts, self.rates
        assert rates is not None
        size, k = len(axes.outward), len(axes.sums)
        offset = torch.addmm(parts.centre[stage], axes.inward, state, beta=-1)
        ratio = offset * parts.precision[stage]
        logits = torch.addmm(parts.normal[stage], axes.sums, offset * ratio)
        weights = torch.softmax(logits + self.prior, dim=1)
        by_state = (axes.bend @ ratio).reshape(size, k, -1)
        # offset^2 precision moves by offset^2 precision' - 2 ratio centre'
        moved = offset * torch.addcmul(
            offset * rates.precision[stage], parts.precision[stage], rates.centre[stage], value=-2
        )
        by_time = torch.addmm(rates.normal[stage], axes.sums, moved)
        bends = torch.cat([by_state, by_time[None]])[:, None]  # (d + 1, labels, k, rows)
        shifts = weights * (bends - (weights * bends).sum(2, keepdim=True))
        share, shift = self._mixed(weights, stage), self._mixed(shifts.transpose(0, 1), stage)
        if rates.strength is not None:
            shift = shift.clone()
            shift[-1] += rates.strength[stage] * (weights[0] - weights[1])
        slopes = torch.addcmul(parts.drift[stage], parts.growth[stage], offset)
        own = axes.members @ share
        growing = torch.addcmul(rates.drift[stage], rates.growth[stage], offset)
        growing = torch.addcmul(growing, parts.growth[stage], rates.centre[stage], value=-1)
        turned = axes.outward @ ((axes.members @ shift) * slopes)  # (d + 1, d, rows)
        straight = axes.stretch @ (own * parts.growth[stage])
        jacobian = straight.reshape(size, size, -1) + turned[:-1].transpose(0, 1)
        return axes.outward @ (own * slopes), jacobian, turned[-1] + axes.outward @ (own * growing)

    def _mixed(self, values: Tensor, stage: int) -> Tensor:
        """Guidance is linear in the responsibilities, as the velocity is; labels stand first."""
        if len(self.prior) == 1:
            return values[0]
        assert self.parts.strength is not None
        labelled, free = values[0], values[1]
        return free + self.parts.strength[stage] * (labelled - free)
