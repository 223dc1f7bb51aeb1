"""Training steps: forward and backward of a loss, and of plain flow matching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowdsl.runtime.agreement import clear
from flowdsl.runtime.contract import Argument, NetworkSignature, ObjectiveSignature
from flowdsl.runtime.loss import Loss, LossModule
from flowdsl.runtime.nets.duals import pytorch_rules
from flowdsl.runtime.nets.recompute import recomputing

#: Forward and backward, returning the loss; gradients are left on the parameters.
Step = Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """What every step of a group computes on. `data` is (batch, ...), `label` (batch,) or None;
    `time` (batch,) and `noise` are for the flow matching step.
    """

    data: Tensor
    label: Tensor | None
    noise: Tensor
    time: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        labels = [] if self.label is None else [self.label]
        return [self.data, self.noise, self.time, *labels]


def make_batch(
    signature: ObjectiveSignature,
    shape: tuple[int, ...],
    rows: int,
    classes: int | None,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> Batch:
    """Random rows, drawn on the CPU so that every device computes on the same."""
    data, noise = torch.randn(2, rows, *shape, generator=generator, dtype=dtype)
    time = torch.rand(rows, generator=generator, dtype=dtype)
    kinds = {a.kind for n in signature.networks for a in (*n.arguments, *n.conditions)}
    label = None
    if classes is not None and "label" in kinds:
        label = torch.randint(classes, (rows,), generator=generator).to(device)
    return Batch(data.to(device), label, noise.to(device), time.to(device))


def loss_step(
    module: Callable[..., Any],
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    draws: Mapping[str, Tensor],
    progress: float,
) -> Step:
    """A step of a bound loss, or of a compiled one."""
    step = round(progress * 1000)

    def run() -> Tensor:
        clear(parameters.values())
        value, _ = module(
            batch.data, label=batch.label, draws=draws, progress=progress, step=step, steps=1000
        )
        value.backward()
        result: Tensor = value
        return result

    return run


def left_to_pytorch(step: Step) -> Step:
    """The step with PyTorch's own forward derivatives, whatever rules the network's layers have."""

    def run() -> Tensor:
        with pytorch_rules():
            return step()

    return run


def recomputed(step: Step, networks: Iterable[nn.Module]) -> Step:
    """The step with blocks computed again in the backward pass, where networks can do so."""
    chosen = list(networks)

    def run() -> Tensor:
        with recomputing(chosen):
            return step()

    return run


def unit_role(signature: ObjectiveSignature) -> NetworkSignature | None:
    """The learned network that flow matching could train: it maps a state to a state."""
    for role in signature.learned:
        inputs = {a.kind for a in role.arguments}
        outputs = [h.kind for h in role.heads] or ["state"]
        if "state" in inputs and "state" in outputs and "features" not in inputs:
            return role
    return None


class VelocityStep(nn.Module):
    """Plain flow matching on a network: all times are one time, further scalars are one.

    `|u(z, t, …) − (noise − data)|²`, averaged, with z = (1 − t) data + t noise; arXiv:2210.02747.
    """

    def __init__(self, network: nn.Module, role: NetworkSignature) -> None:
        super().__init__()
        self.network = network
        self.role = role

    def forward(self, batch: Batch) -> Tensor:
        velocity = self.predict(batch)
        target = batch.noise - batch.data
        loss: Tensor = (velocity - target).square().mean()
        return loss

    def predict(self, batch: Batch) -> Tensor:
        """One call of the network, and its first state head (batch, ...)."""
        time = batch.time.view(-1, *[1] * (batch.data.ndim - 1))
        state = (1 - time) * batch.data + time * batch.noise
        arguments = [self._value(a, state, batch) for a in self.role.arguments]
        conditions = {c.name: self._value(c, state, batch) for c in self.role.conditions}
        result = self.network(*arguments, **conditions)
        if len(self.role.heads) > 1:
            kinds = [h.kind for h in self.role.heads]
            result = result[kinds.index("state")]
        prediction: Tensor = result
        return prediction

    def _value(self, argument: Argument, state: Tensor, batch: Batch) -> Tensor:
        if argument.kind == "state":
            return state
        if argument.kind == "time":
            return batch.time
        if argument.kind == "label":
            return (
                torch.full_like(batch.time, -1, dtype=torch.long)
                if batch.label is None
                else (batch.label)
            )
        return torch.ones_like(batch.time)


def unit_step(
    module: Callable[[Batch], Any], parameters: Mapping[str, nn.Parameter], batch: Batch
) -> Step:
    """A flow matching step."""

    def run() -> Tensor:
        clear(parameters.values())
        value = module(batch)
        value.backward()
        result: Tensor = value
        return result

    return run


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def bound(loss: Loss, networks: Mapping[str, nn.Module]) -> LossModule:
    """The loss with these networks, averages and frozen ones included, none of them copied."""
    return loss.bind(dict(networks))
