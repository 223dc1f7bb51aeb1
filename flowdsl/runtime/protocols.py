"""What the runtime needs of a compiled objective: the methods of a loss, and nothing about how it
was made.

`flowdsl.Loss` has them. So does any object of yours with the same methods: the trainer, the sampler
and the metrics read no more than this and the plain records of `contract`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flowdsl.runtime.contract import ObjectiveSignature

#: One network where the objective names one, else one per role.
Networks = nn.Module | Mapping[str, nn.Module]


class BoundLoss(Protocol):
    """A loss that owns its networks: an `nn.Module` whose forward returns `(value, metrics)`."""

    @property
    def networks(self) -> nn.ModuleDict:
        """Every network by its role: learned, frozen and averaged."""

    def __call__(
        self,
        data: Tensor,
        *,
        label: Tensor | None = None,
        draws: dict[str, Tensor] | None = None,
        progress: float = 0.0,
        step: int = 0,
        steps: int = 1,
        terms: Sequence[str] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of the terms asked for (None: all), and one detached scalar per term."""

    def update_averages(self, *, progress: float = 0.0, step: int = 0, steps: int = 1) -> None:
        """One step of every average that the objective itself uses, after an optimiser step."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...
    def to(self, device: torch.device) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...


class CompiledLoss(Protocol):
    """A compiled objective: its record, its random numbers, its loss and its samplers."""

    @property
    def signature(self) -> ObjectiveSignature: ...

    @property
    def source(self) -> str: ...

    def draw(
        self,
        data: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: float = 0.0,
        step: int = 0,
        steps: int = 1,
    ) -> dict[str, Tensor]:
        """Every random number of one loss evaluation by its name in the spec."""

    def bind(self, network: Networks) -> BoundLoss: ...

    def jump(
        self,
        network: Networks,
        z: Tensor,
        start: Tensor,
        end: Tensor,
        *,
        label: Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """The learned flow map from `start` to `end`, vectors of shape (batch,)."""

    def velocity(
        self,
        network: Networks,
        z: Tensor,
        time: Tensor,
        *,
        label: Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """The learned velocity dz/dt at `time`, a vector of shape (batch,)."""


@runtime_checkable
class HasPath(Protocol):
    """A loss that also tells its path: needed to renoise, and to start where the noise has its own
    scale.
    """

    def path(self, data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The state `z(time)` between `data` and `noise`; `time` has shape (batch,)."""


@runtime_checkable
class HasSampler(Protocol):
    """A loss that tells more about how to sample: the data it expects, and the sampler's times."""

    def denoised(
        self,
        network: Networks,
        z: Tensor,
        time: Tensor,
        *,
        label: Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """The mean of the data given a state at `time` (batch,); where it learns data or noise."""

    def clock(self, progress: float) -> float | None:
        """The sampler's time at `progress` 0 to 1; None where steps are even."""


@runtime_checkable
class HasInner(Protocol):
    """A loss that has learnt an inner flow, which draws what lies ahead of a state."""

    def inner(
        self,
        network: Networks,
        y: Tensor,
        z: Tensor,
        start: Tensor,
        end: Tensor,
        time: Tensor,
        *,
        label: Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """The inner map under states z at `time`, from `start` to `end`, all (batch,)."""

    def outcome(self, y: Tensor, z: Tensor, time: Tensor) -> Tensor:
        """The data that the inner flow's end y and a state z at `time` imply."""


def takes_labels(signature: ObjectiveSignature) -> bool:
    """Whether any network of the objective is shown a class label."""
    return any(
        argument.kind == "label"
        for network in signature.networks
        for argument in (*network.arguments, *network.conditions)
    )


def as_argument(signature: ObjectiveSignature, modules: Mapping[str, nn.Module]) -> Networks:
    """The networks in the form that a loss takes: the module itself where the objective has one
    role.
    """
    if len(signature.networks) == 1:
        return modules[signature.networks[0].name]
    return dict(modules)


def time_vector(state: Tensor, time: float) -> Tensor:
    """One time for every row, (batch,): float64 for float64 states, else float32."""
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    return torch.full((len(state),), time, device=state.device, dtype=dtype)


def initial_state(loss: CompiledLoss, noise: Tensor) -> Tensor:
    """The state at the noise's end of the path, for standard normal noise: a path may scale it."""
    if isinstance(loss, HasPath):
        time = time_vector(noise, loss.signature.noise_time)
        return loss.path(torch.zeros_like(noise), noise, time)
    return noise
