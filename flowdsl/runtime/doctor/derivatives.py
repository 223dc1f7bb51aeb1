"""Derivatives of a network along a call's direction, in several ways, and how far they are apart.

Results of several heads are looked at as one vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowdsl.runtime.doctor.calls import Call
from flowdsl.runtime.tangents import Differentiable

#: Steps of central differences in double precision, from coarse to fine.
STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def value(network: nn.Module, call: Call) -> Tensor:
    """What the network returns: (rows, numbers)."""
    return side_by_side(network(*call.arguments, **call.conditions))


def forward_derivative(network: nn.Module, call: Call) -> Tensor:
    """The derivative along the call's direction, in forward mode and by the rules with which a loss
    takes it: (rows, numbers).
    """
    assert call.direction is not None
    engine = Differentiable(network)
    return side_by_side(engine.jvp(call.arguments, call.direction, **call.conditions)[1])


def central_difference(network: nn.Module, call: Call, step: float) -> Tensor:
    """The same by a central difference: (rows, numbers)."""
    ends = []
    for sign in (1.0, -1.0):
        moved = [
            x if d is None else x + sign * step * d
            for x, d in zip(call.arguments, call.direction or (), strict=True)
        ]
        ends.append(side_by_side(network(*moved, **call.conditions)))
    return (ends[0] - ends[1]) / (2 * step)


def best_difference(network: nn.Module, call: Call, reference: Tensor) -> tuple[float, float]:
    """The smallest error of a central difference against a derivative, and its step."""
    found = [(relative(central_difference(network, call, h), reference), h) for h in STEPS]
    return min(found, key=lambda pair: (pair[0] != pair[0], pair[0]))


def extrapolated(network: nn.Module, call: Call, step: float = 1e-4) -> Tensor:
    """The derivative from two central differences, free of the error of second order: for networks
    in double precision that have no forward derivative.
    """
    coarse = central_difference(network, call, 2 * step)
    fine = central_difference(network, call, step)
    return (4 * fine - coarse) / 3


def relative(found: Tensor, reference: Tensor) -> float:
    """The length of the difference over that of the reference; NaN for what is not finite."""
    error = float((found.double() - reference.double()).norm())
    scale = float(reference.double().norm())
    if error == 0:
        return 0.0
    return error / scale if scale > 0 else float("inf")


def along_argument(call: Call, index: int) -> Call:
    """The derivative of the same call along one argument alone, at rate one."""
    direction: list[Tensor | None] = [None] * len(call.arguments)
    direction[index] = torch.ones_like(call.arguments[index])
    return Call(call.role, call.arguments, call.conditions, tuple(direction), call.gradient)


def side_by_side(result: Any) -> Tensor:
    """The heads of a result as one tensor: (rows, numbers)."""
    heads = result if isinstance(result, tuple | list) else (result,)
    return torch.cat([x.reshape(len(x), -1) for x in heads], dim=1)
