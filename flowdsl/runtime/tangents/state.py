"""What a pass leaves behind beside its result: random numbers drawn, and buffers written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def keep_random_state(inputs: tuple[Any, ...]) -> Callable[[], None]:
    """Keeps the state of PyTorch's random numbers, on the CPU and where the inputs are; called, the
    result puts it back.
    """
    places = {x.device for x in inputs if isinstance(x, Tensor) and x.device.type != "cpu"}
    states = [(torch.get_device_module(d), d) for d in places]
    kept = [(module, d, module.get_rng_state(d)) for module, d in states]
    cpu = torch.get_rng_state()

    def restore() -> None:
        torch.set_rng_state(cpu)
        for module, device, state in kept:
            module.set_rng_state(state, device)

    return restore


class Buffers:
    """The buffers of a network as they are now. One that isn't in training writes none."""

    def __init__(self, network: Callable[..., Any]) -> None:
        self._network = network
        self._kept: dict[str, _Kept] = {}
        for path, module in network.named_modules() if isinstance(network, nn.Module) else ():
            for name, buffer in module.named_buffers(recurse=False):
                if module.training:
                    # The kernel of a batch norm writes to its buffers without a new version.
                    version = None if isinstance(module, _NormBase) else buffer._version
                    full = f"{path}.{name}" if path else name
                    self._kept[full] = _Kept(buffer, version, buffer.detach().clone())

    def restore(self) -> None:
        """Puts back the buffers that were written since."""
        with torch.no_grad():
            for kept in self._written().values():
                kept.buffer.copy_(kept.value)

    def replayed(self) -> Callable[..., Any]:
        """The network as it would have run then, which leaves its buffers alone."""
        written, network = self._written(), self._network
        if not written or not isinstance(network, nn.Module):
            return network

        def call(*arguments: Any, **conditions: Any) -> Any:
            copies = {name: kept.value.clone() for name, kept in written.items()}
            return torch.func.functional_call(network, copies, arguments, conditions)

        return call

    def _written(self) -> dict[str, _Kept]:
        return {name: k for name, k in self._kept.items() if k.buffer._version != k.version}


class _Kept(NamedTuple):
    buffer: Tensor
    version: int | None  # None where it does not tell
    value: Tensor
