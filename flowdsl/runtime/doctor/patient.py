"""The network under examination, with what the objective asks of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from flowdsl.diagnostics import fail
from flowdsl.runtime.contract import NetworkSignature
from flowdsl.runtime.doctor.calls import Call, StandIn, Step
from flowdsl.runtime.doctor.derivatives import best_difference, extrapolated, forward_derivative
from flowdsl.runtime.doctor.loading import told
from flowdsl.runtime.loss import Loss, LossModule
from flowdsl.runtime.weights import wake

Precision = Literal["float32", "bfloat16"]

#: A forward derivative that differences confirm to this is one.
CONFIRMED = 2e-2


@dataclass(frozen=True)
class DoctorOptions:
    """How to examine: the type of arithmetic that is planned for training; a compiler of torch to
    try, None to leave it (compiling is slow); the number of classes; rows per batch; and the step
    of the finite differences that a loss compiled without derivatives takes.
    """

    precision: Precision = "float32"
    compile: str | None = None
    classes: int | None = 10
    batch: int = 16
    seed: int = 0
    difference_step: float = 1e-4


@dataclass(frozen=True, eq=False)
class Patient:
    """One network in the role that it is to play. `network` is as its maker left it, in training
    mode; it is never changed.
    """

    network: nn.Module
    loss: Loss
    role: NetworkSignature
    calls: tuple[Call, ...]
    steps: tuple[Step, ...]
    options: DoctorOptions = field(default_factory=DoctorOptions)

    @property
    def derivatives(self) -> tuple[Call, ...]:
        """The calls that are forward derivatives."""
        return tuple(call for call in self.calls if call.direction is not None)

    @property
    def evaluations(self) -> tuple[Call, ...]:
        """The calls that are plain evaluations; where there are none, all."""
        plain = tuple(call for call in self.calls if call.direction is None)
        return plain or self.calls

    def copy(self) -> nn.Module:
        """A copy to do with as one likes."""
        try:
            return copy.deepcopy(self.network)
        except Exception as error:
            raise told("the network cannot be copied", error) from error

    def awake(self) -> nn.Module:
        """A copy in which no weights hide anything; in training mode."""
        network = self.copy()
        wake(network, torch.Generator().manual_seed(self.options.seed))
        return network

    @cached_property
    def settled(self) -> nn.Module:
        """An awake copy in evaluation mode, for what must not depend on chance."""
        return self.awake().eval()

    @cached_property
    def precise(self) -> nn.Module | None:
        """The settled copy in double precision, None when it cannot compute in it."""
        network = copy.deepcopy(self.settled).double()
        try:
            with torch.no_grad():
                for call in self.calls:
                    double = call.to(torch.float64)
                    network(*double.arguments, **double.conditions)
        except Exception:
            return None
        return network

    def reference(self, call: Call) -> Tensor | None:
        """The derivative of a call as exactly as the network allows: forward where differences
        confirm it, else by differences in double precision, else None.
        """
        network, dtype = self.precise, torch.float64
        if network is None:
            network, dtype = self.settled, torch.float32
        call = call.to(dtype)
        with torch.no_grad():
            try:
                exact = forward_derivative(network, call)
            except Exception:
                exact = None
            if exact is not None and best_difference(network, call, exact)[0] <= CONFIRMED:
                return exact
            return extrapolated(network, call) if dtype == torch.float64 else None

    def bound(self, network: nn.Module) -> LossModule:
        """The loss with this network in its role. Further learned roles, where the spec has any,
        are played by small stand-ins; averages are copies.
        """
        roles: dict[str, nn.Module] = {self.role.name: network}
        for other in self.loss.signature.networks:
            if other.name != self.role.name and other.average_of != self.role.name:
                roles[other.name] = StandIn(other)
        return self.loss.bind(roles)


def role_of(loss: Loss, name: str | None) -> NetworkSignature:
    """The role that a network is to play: the one named, or the first that learns."""
    learned = loss.signature.learned
    if name is None:
        return learned[0]
    for role in loss.signature.networks:
        if role.name == name:
            return role
    raise fail(
        "network",
        f'{loss.signature.name} has no network "{name}"',
        facts=[("networks", ", ".join(n.name for n in loss.signature.networks))],
    )
