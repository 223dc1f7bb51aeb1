"""Small random networks in float64 whose output depends on every input, smoothly and not by
symmetry.

They are called as specs call theirs, `net(z, t, r, label=..., w=...)`, on vectors (batch, d) or
images (batch, channels, height, width). Nothing about them is trained: references and compiled
losses are compared on them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

DTYPE = torch.float64


class SmoothNetwork(nn.Module):
    """Two layers of tanh, scaled and shifted by a random embedding of times, label and scalar
    conditions.

    `shape` is a sample's shape, `times` the number of time arguments, `scalars` the names of scalar
    conditions, `heads` the number of outputs (a tensor for one, else a tuple). Labels are `null`
    (-1) to `classes - 1`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        times: int,
        *,
        scalars: tuple[str, ...] = (),
        heads: int = 1,
        classes: int = 5,
        width: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(shape) not in (1, 3):
            raise ValueError("a sample is a vector or an image")
        self.scalars, self.heads, self.channels = scalars, heads, shape[0]
        make = Convolution if len(shape) == 3 else Dense
        generator = torch.Generator().manual_seed(seed)
        self.inner = make(shape[0], width, generator)
        self.middle = make(width, width, generator)
        self.outer = make(width, heads * shape[0], generator)
        features = 2 * times + len(scalars)
        self.embed = Dense(features, width, generator)
        self.classes = nn.Parameter(
            torch.randn(classes + 1, width, generator=generator, dtype=DTYPE)
        )
        self.modulate = Dense(width, 4 * width, generator)

    def forward(
        self, state: Tensor, *times: Tensor, label: Tensor | None = None, **scalars: Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        assert set(scalars) == set(self.scalars), f"expected {self.scalars}, got {tuple(scalars)}"
        columns = [
            f(time.to(DTYPE)) for time in times for f in (torch.sin, lambda t: torch.exp(-t))
        ]
        columns += [scalars[name].to(DTYPE) for name in self.scalars]
        condition = self.embed(torch.stack(columns, dim=1))
        # index -1, the null label, is the last row
        condition = torch.tanh(
            condition + (self.classes[-1] if label is None else self.classes[label])
        )
        changes = self.modulate(condition)
        changes = changes.reshape(*changes.shape, *([1] * (state.dim() - 2)))
        scale1, shift1, scale2, shift2 = changes.chunk(4, dim=1)
        hidden = torch.tanh(self.inner(state) * (1 + 0.5 * scale1) + shift1)
        hidden = torch.tanh(self.middle(hidden) * (1 + 0.5 * scale2) + shift2)
        values = self.outer(hidden)
        return values if self.heads == 1 else values.chunk(self.heads, dim=1)


class Dense(nn.Module):
    """A linear layer with random weights of a given generator."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        weight = torch.randn(inputs, outputs, generator=generator, dtype=DTYPE) / inputs**0.5
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(0.3 * torch.randn(outputs, generator=generator, dtype=DTYPE))

    def forward(self, values: Tensor) -> Tensor:
        return values @ self.weight + self.bias


class Convolution(nn.Module):
    """A 3 x 3 convolution with random weights of a given generator; the image keeps its size."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        shape = (outputs, inputs, 3, 3)
        weight = torch.randn(shape, generator=generator, dtype=DTYPE) / (9 * inputs) ** 0.5
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(0.3 * torch.randn(outputs, generator=generator, dtype=DTYPE))

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.conv2d(values, self.weight, self.bias, padding=1)


def velocity_network(shape: tuple[int, ...], *, seed: int = 0) -> SmoothNetwork:
    """`v(z, t, label=...)`."""
    return SmoothNetwork(shape, 1, seed=seed)


def average_network(shape: tuple[int, ...], *, seed: int = 0) -> SmoothNetwork:
    """`u(z, t, r, label=...)`."""
    return SmoothNetwork(shape, 2, seed=seed)


def terminal_network(shape: tuple[int, ...], *, seed: int = 0) -> SmoothNetwork:
    """`F(z, t, s, label=..., w=...)`."""
    return SmoothNetwork(shape, 2, scalars=("w",), seed=seed)


def lagging_copy(network: nn.Module, *, by: float = 0.05, seed: int = 0) -> nn.Module:
    """A copy with slightly other parameters and no gradient: what an average looks like in
    training.
    """
    slow = copy.deepcopy(network).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in slow.parameters():
        parameter += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return slow
