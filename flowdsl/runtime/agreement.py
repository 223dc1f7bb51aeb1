"""Whether two ways to compute one loss agree, in value and in every gradient.

A value alone says little: with an adaptive weight it is about one whatever the network does. So
gradients are compared, all of them, and the worst parameter is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Largest relative error of value and gradient that passes as rounding. A single parameter may be
#: off by ten times as much: its gradient can be a small difference of large numbers.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
SINGLE = 10.0

#: A parameter's error counts against its own gradient plus this share of the whole gradient, so
#: that one whose gradient is zero by symmetry is not judged by its rounding.
FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one step computed: the loss, and the gradient of each parameter that got one."""

    value: float
    gradients: Mapping[str, Tensor]


@dataclass(frozen=True)
class Agreement:
    """Relative errors: of the value, of all gradients as one vector, of the worst parameter."""

    value: float
    gradient: float
    worst: float
    parameter: str
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether all three are within the tolerance; numbers that are not finite never are."""
        return self.within(self.tolerance)

    def within(self, tolerance: float) -> bool:
        """The same for another tolerance."""
        return (
            self.value <= tolerance
            and self.gradient <= tolerance
            and self.worst <= SINGLE * tolerance
        )

    @property
    def text(self) -> str:
        return (
            f"value off by {self.value:.1e}, gradient by {self.gradient:.1e}, "
            f"worst {self.parameter} by {self.worst:.1e}"
        )


def outcome(parameters: Mapping[str, nn.Parameter], step: Callable[[], Tensor]) -> Outcome:
    """Runs `step` (forward and backward, returning the loss) and keeps what it computed.

    Gradients are zeroed before and taken away afterwards.
    """
    clear(parameters.values())
    value = float(step().detach())
    found = {n: p.grad.detach().clone() for n, p in parameters.items() if p.grad is not None}
    clear(parameters.values())
    return Outcome(value, found)


def clear(parameters: Iterable[nn.Parameter]) -> None:
    """Takes the gradients away, with their memory."""
    for parameter in parameters:
        parameter.grad = None


def compare(found: Outcome, reference: Outcome, dtype: torch.dtype) -> Agreement:
    """How far `found` is from `reference`. A gradient that is missing on one side counts as zero.

    `dtype` is that of the arithmetic, which decides the tolerance.
    """
    names = {**reference.gradients, **found.gradients}
    whole = _norm(reference.gradients.values())
    errors: dict[str, float] = {}
    own: dict[str, float] = {}
    for name in names:
        mine, other = found.gradients.get(name), reference.gradients.get(name)
        errors[name] = _distance(mine, other)
        own[name] = 0.0 if other is None else float(other.double().norm())
    judged = {name: _ratio(errors[name], own[name] + FLOOR * whole) for name in names}
    # NaN is worse than any number: `max` alone would lose it.
    worst = max(judged, key=lambda n: (judged[n] != judged[n], judged[n]), default="")
    total = sum(error**2 for error in errors.values()) ** 0.5
    return Agreement(
        value=_ratio(abs(found.value - reference.value), abs(reference.value)),
        gradient=_ratio(total, whole),
        worst=judged.get(worst, 0.0),
        parameter=worst,
        tolerance=TOLERANCE.get(dtype, TOLERANCE[torch.float32]),
    )


def size(outcome: Outcome) -> float:
    """The length of the whole gradient."""
    return _norm(outcome.gradients.values())


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(sum(float(x.double().square().sum()) for x in tensors) ** 0.5)


def _distance(a: Tensor | None, b: Tensor | None) -> float:
    if a is None or b is None:
        present = b if a is None else a
        return 0.0 if present is None else float(present.double().norm())
    return float((a.double() - b.double()).norm())


def _ratio(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale > 0 else float("inf")
