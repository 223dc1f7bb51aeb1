"""What an objective asks of a network: every call that its loss makes, with the arguments it makes
it with.

They are not derived from the spec but observed: the loss runs once with a network that surely works
and writes down how it is called, forward derivatives included.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from flowdsl.runtime.contract import Argument, NetworkSignature
from flowdsl.runtime.loss import Loss
from flowdsl.runtime.nets.duals import innermost_transform, split
from flowdsl.runtime.roles import call_text


@dataclass(frozen=True, eq=False)
class Call:
    """One call: `role(*arguments, **conditions)`, on some rows.

    `direction` has, for a forward derivative, the tangent of each argument, None for those that
    stay; it is None for a plain evaluation. `gradient`: whether gradients flow through the result.
    """

    role: NetworkSignature
    arguments: tuple[Tensor, ...]
    conditions: Mapping[str, Tensor]
    direction: tuple[Tensor | None, ...] | None = None
    gradient: bool = False

    @property
    def rows(self) -> int:
        return len(self.arguments[0])

    @property
    def moving(self) -> tuple[int, ...]:
        """Which arguments move, in a forward derivative."""
        return tuple(i for i, d in enumerate(self.direction or ()) if d is not None)

    @property
    def text(self) -> str:
        """`u(z, t, r, label=…)`, or `d/d(z, t)[u(z, t, r, label=…)]`."""
        written = call_text(self.role)
        if self.direction is None:
            return written
        names = [self.role.arguments[i].name for i in self.moving]
        under = names[0] if len(names) == 1 else f"({', '.join(names)})"
        return f"d/d{under}[{written}]"

    @property
    def form(self) -> tuple[object, ...]:
        """Calls of one form differ in numbers only."""
        return self.rows, self.direction is None, self.moving, self.gradient, *self.conditions

    def to(self, dtype: torch.dtype) -> Call:
        """The same call with its floating-point tensors in this type."""

        def turned(x: Tensor) -> Tensor:
            return x.to(dtype) if x.is_floating_point() else x

        direction = self.direction
        if direction is not None:
            direction = tuple(None if d is None else turned(d) for d in direction)
        return replace(
            self,
            arguments=tuple(turned(x) for x in self.arguments),
            conditions={name: turned(x) for name, x in self.conditions.items()},
            direction=direction,
        )

    def on(self, rows: slice) -> Call:
        """The same call on some of its rows."""
        direction = self.direction
        if direction is not None:
            direction = tuple(None if d is None else d[rows] for d in direction)
        return replace(
            self,
            arguments=tuple(x[rows] for x in self.arguments),
            conditions={name: x[rows] for name, x in self.conditions.items()},
            direction=direction,
        )


class StandIn(nn.Module):
    """A small smooth network for any role, unlike that of any other role, which writes down how it
    is called.
    """

    def __init__(self, role: NetworkSignature) -> None:
        super().__init__()
        self.role = role
        own = 1 + zlib.crc32(role.name.encode()) / 2**32
        self.weights = nn.Parameter(own * torch.linspace(0.2, 0.5, max(1, len(role.heads))))
        self.calls: list[Call] = []

    def forward(self, *arguments: Tensor, **conditions: Tensor) -> Any:
        if not torch.compiler.is_compiling():
            self._write_down(arguments, conditions)
        kinds = [a.kind for a in self.role.arguments]
        inputs = list(zip(kinds, arguments, strict=True))
        states = [x for kind, x in inputs if kind in ("state", "features")]
        numbers = sum((x for kind, x in inputs if kind in ("time", "scalar")), torch.zeros(()))
        numbers = sum((0.1 * x for x in conditions.values()), numbers)
        heads = self.role.heads or (Argument(self.role.name, "state"),)
        outputs = [
            _head(head, weight, states, numbers)
            for head, weight in zip(heads, self.weights, strict=True)
        ]
        return tuple(outputs) if len(heads) > 1 else outputs[0]

    def _write_down(self, arguments: tuple[Tensor, ...], conditions: Mapping[str, Tensor]) -> None:
        values, tangents = arguments, None
        if innermost_transform() == "jvp":
            values, tangents = split(*arguments)
        self.calls.append(
            Call(
                self.role,
                tuple(_bare(x) for x in values),
                {name: _bare(x) for name, x in conditions.items()},
                None if tangents is None else tuple(d if d is None else _bare(d) for d in tangents),
                torch.is_grad_enabled(),
            )
        )


def _head(head: Argument, weight: Tensor, states: list[Tensor], numbers: Tensor) -> Tensor:
    """A polynomial in everything: linear in the states, quadratic with the numbers."""
    if not states:
        return weight * (1 + numbers)
    state = states[0]
    for other in states[1:]:
        state = state + 0.5 * other if other.shape == state.shape else state
    if head.kind == "scalar":
        return weight * (numbers + state.flatten(1).mean(1))
    if numbers.ndim:
        numbers = numbers.view(-1, *[1] * (state.ndim - 1))
    return weight * (state * (1 + numbers) + numbers)


def _bare(x: Tensor) -> Tensor:
    """A tensor without the transforms around it."""
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return x.detach().clone()


@dataclass(frozen=True, eq=False)
class Step:
    """The inputs of one step of the loss."""

    data: Tensor
    label: Tensor | None
    draws: Mapping[str, Tensor]
    progress: float

    def run(self, module: Callable[..., Any]) -> Tensor:
        """Forward and backward of a bound loss, however it is wrapped."""
        value: Tensor = module(
            self.data,
            label=self.label,
            draws=self.draws,
            progress=self.progress,
            step=round(self.progress * 1000),
            steps=1000,
        )[0]
        value.backward()  # type: ignore[no-untyped-call]
        return value


def observed_calls(
    loss: Loss,
    role: str,
    shape: tuple[int, ...],
    *,
    batch: int,
    classes: int | None,
    progresses: tuple[float, ...],
    seed: int = 0,
) -> tuple[tuple[Call, ...], tuple[Step, ...]]:
    """Every form of call of a role, and the steps that made them, one for each progress."""
    signature = loss.signature
    generator = torch.Generator().manual_seed(seed)
    networks = {n.name: StandIn(n) for n in signature.networks}
    module = loss.bind(dict(networks))
    steps = []
    for progress in progresses:
        data = torch.randn(batch, *shape, generator=generator)
        label = None
        if classes is not None:
            label = torch.randint(classes, (batch,), generator=generator)
            label[-1] = -1  # a row without a class, which every network must take
        at = round(progress * 1000)
        draws = loss.draw(data, generator=generator, progress=progress, step=at, steps=1000)
        steps.append(Step(data, label, draws, progress))
        module(data, label=label, draws=draws, progress=progress, step=at, steps=1000)
    forms = {call.form: call for call in networks[role].calls}
    return tuple(forms.values()), tuple(steps)
