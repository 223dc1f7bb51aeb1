"""A reference loss in the dress of a compiled one, so that it can be certified on exact flows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flowdsl.runtime.contract import Argument, NetworkSignature, ObjectiveSignature
from tests.reference.plain import Result

LABEL = Argument("label", "label")
W = Argument("w", "scalar")


def network(
    name: str,
    arguments: str,
    conditions: tuple[Argument, ...] = (LABEL,),
    average_of: str | None = None,
) -> NetworkSignature:
    """A role from its argument names: the first is the state, the others are times."""
    names = arguments.split()
    kinds = (Argument(names[0], "state"), *(Argument(n, "time") for n in names[1:]))
    return NetworkSignature(name, kinds, conditions, average_of=average_of)


@dataclass(frozen=True)
class ReferenceLoss:
    """`function(networks, data, draws, label, progress, **constants)`, callable as a compiled loss
    is.
    """

    function: Callable[..., Result]
    draws: Callable[[Tensor, torch.Generator], dict[str, Tensor]]
    networks: tuple[NetworkSignature, ...]
    constants: dict[str, float] = field(default_factory=dict)

    @property
    def signature(self) -> ObjectiveSignature:
        return ObjectiveSignature("reference", "", self.networks, (), ())

    def draw(
        self,
        data: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: float = 0.0,
        step: int = 0,
        steps: int = 1,
    ) -> dict[str, Tensor]:
        del progress, step, steps
        return self.draws(data, generator or torch.Generator())

    def __call__(
        self,
        network: nn.Module | Mapping[str, nn.Module],
        data: Tensor,
        *,
        draws: dict[str, Tensor] | None = None,
        label: Tensor | None = None,
        progress: float = 0.0,
        step: int = 0,
        steps: int = 1,
        terms: tuple[str, ...] | None = None,
    ) -> Result:
        del step, steps
        assert terms is None, "a reference has all of its terms"
        alone = isinstance(network, nn.Module)
        networks = {self.networks[0].name: network} if alone else dict(network)
        draws = self.draw(data) if draws is None else draws
        return self.function(networks, data, draws, label, progress, **self.constants)
