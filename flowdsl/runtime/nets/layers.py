"""The parts of the bundled networks."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowdsl.diagnostics import fail
from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.runtime.nets.attention import attention
from flowdsl.runtime.nets.config import NetworkConfig, Norm
from flowdsl.runtime.nets.duals import (
    innermost_transform,
    join,
    product,
    split,
    tangent_mode,
    total,
)
from flowdsl.runtime.nets.norms import normalised, tangent_of_norm

#: Angular frequencies of the time features, geometrically spaced between these, and their number.
#: Higher ones fit a velocity sooner, but their derivatives spoil a map: on digits, four hundred
#: steps of MeanFlow leave one-step samples half as far again from the data with 8 as with 2, and
#: more than three times as far with 16. DiT's, below 1, fit neither as well.
LOWEST, HIGHEST = 0.25, 2.0
FEATURES = 64


class Linear(nn.Linear):
    """`x Wᵀ + b`, whose tangent under `torch.func.jvp` is `ẋ Wᵀ`: one product.

    PyTorch's own rule also multiplies `x` by the tangent of the weight, which is zero, at full
    price (pytorch#69687). The weights are set by `build.initialise`, not here.
    """

    def reset_parameters(self) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if innermost_transform() != "jvp":
            return self._beside(input)
        (value, *_), (tangent, *others) = split(input, self.weight, self.bias)
        if tangent is None or any(t is not None for t in others):
            return functional.linear(input, self.weight, self.bias)
        output = functional.linear(value, self.weight, self.bias)
        return join(output, functional.linear(tangent, self.weight).to(output.dtype))

    def _beside(self, input: Tensor) -> Tensor:
        mode = tangent_mode()
        weight, bias = self.weight, self.bias
        if mode is None or not isinstance(weight, nn.Parameter):
            return functional.linear(input, weight, bias)
        return mode.paired(
            lambda: (functional.linear(input, weight, bias),),
            lambda _, tangent: functional.linear(tangent, weight),
            input,
        )


def time_features(time: Tensor, count: int = FEATURES) -> Tensor:
    """Sines and cosines of times or scalars `(batch,)`, as `(batch, count)`.

    In float32, or float64 for float64 times, whatever autocast says. A time is taken as it is: the
    factor of 1000 usual in diffusion models would come back in every derivative. Raises for times
    in half precision, whose rounding is as large as the gaps between them.
    """
    if time.dtype in (torch.float16, torch.bfloat16):
        name = str(time.dtype).removeprefix("torch.")
        raise fail(
            "network",
            f"a time arrives in {name}, too coarse to be differentiated",
            hint="pass times and scalar conditions in float32, whatever the precision of the rest",
        )
    with torch.autocast(time.device.type, enabled=False):
        precise = time if time.dtype == torch.float64 else time.float()
        steps = torch.linspace(0, 1, count // 2, dtype=precise.dtype, device=precise.device)
        frequencies = torch.exp(math.log(LOWEST) + math.log(HIGHEST / LOWEST) * steps)
        angles = precise[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """A time, a gap between times, or a scalar `(batch,)`, as a vector `(batch, width)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = Linear(FEATURES, width)
        self.outer = Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        features = time_features(time).to(self.inner.weight.dtype)
        # One vector per row instead of one per token: full precision costs next to nothing.
        with torch.autocast(time.device.type, enabled=False):
            return cast(Tensor, self.outer(functional.silu(self.inner(features))))


class LabelEmbedding(nn.Module):
    """Classes `(batch,)`, and the null label, as vectors `(batch, width)`."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Parameter(torch.empty(classes + 1, width))

    def forward(self, label: Tensor) -> Tensor:
        row = torch.where(label == NULL_LABEL, self.classes, label)
        return functional.embedding(row, self.table)


class Prefix(nn.Module):
    """One condition as several tokens: its vector `(batch, width)`, each time with a vector that is
    learned, as `(batch, count, width)` (arXiv:2512.02012, improved MeanFlow).
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, width))

    def forward(self, vector: Tensor) -> Tensor:
        return vector[:, None] + self.tokens


class Modulation(Linear):
    """Shifts, scales and gates from the condition `(batch, width)`: `count` vectors, each
    `(batch, 1, width)`, which `normalised` brings to one size. All are zero until trained.
    """

    def __init__(self, width: int, count: int, *, normal: bool) -> None:
        super().__init__(width, count * width)
        self.count, self.normal = count, normal

    def forward(self, input: Tensor) -> Tensor:
        vectors = super().forward(input).view(len(input), 1, self.count, -1)
        return normalised(vectors, "rms") if self.normal else vectors


class Vectors(nn.Module):
    """What modulates every row alike, `(1, 1, count, width)`, where tokens are the conditions."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(count, width))

    def forward(self, _: None) -> Tensor:
        return self.vectors[None, None]


def modulation(config: NetworkConfig, count: int) -> nn.Module:
    """What makes `count` vectors that modulate tokens, of a row's condition or without one."""
    if config.conditioning == "in_context":
        return Vectors(config.size.width, count)
    return Modulation(config.size.width, count, normal=config.modulation == "normalised")


class SelfAttention(nn.Module):
    """Self-attention of tokens `(batch, tokens, width)`, with normalised queries and keys if so."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = Linear(width, 3 * width)
        self.output = Linear(width, width)
        self.gains = nn.Parameter(torch.ones(2, width // heads)) if qk_norm else None

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.inputs(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        if self.gains is not None:
            gains = self.gains.to(query.dtype)
            query = normalised(query, "rms") * gains[0]
            key = normalised(key, "rms") * gains[1]
        mixed = attention(query, key, value).transpose(1, 2)
        return cast(Tensor, self.output(mixed.reshape(batch, count, width)))


class Block(nn.Module):
    """A transformer block with adaptive normalisation, which starts as the identity.

    DiT with adaLN-Zero, arXiv:2212.09748, section 3.2. Tokens `(batch, tokens, width)`, condition
    `(batch, width)`, or none where it is among the tokens.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, heads, qk_norm = config.size.width, config.size.heads, config.qk_norm
        self.norm = config.norm
        self.modulation = modulation(config, 6)
        self.attention = SelfAttention(width, heads, qk_norm)
        self.inner = Linear(width, 4 * width)
        self.outer = Linear(4 * width, width)

    def forward(self, tokens: Tensor, condition: Tensor | None) -> Tensor:
        vectors: Tensor = self.modulation(condition)
        shift, scale, gate, shift2, scale2, gate2 = vectors.unbind(-2)
        mixed = self.attention(modulated(tokens, shift, scale, self.norm))
        tokens = _added(tokens, gate, mixed)
        hidden = self.inner(modulated(tokens, shift2, scale2, self.norm))
        return _added(tokens, gate2, self.outer(functional.gelu(hidden, approximate="tanh")))


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor, norm: Norm) -> Tensor:
    """Normalised tokens `(batch, tokens, width)`, scaled and shifted row by row."""

    def value() -> tuple[Tensor, Tensor, Tensor]:
        normal, factor = normalised(tokens, norm), 1 + scale
        return normal * factor + shift, normal, factor

    def tangent(
        values: tuple[Tensor, ...], dx: Tensor | None, dshift: Tensor | None, dscale: Tensor | None
    ) -> Tensor:
        _, normal, factor = values
        moved = None if dx is None else tangent_of_norm(tokens, normal, dx, norm)
        found = product(normal, factor, moved, dscale)
        return total(found, dshift)

    mode = tangent_mode()
    return value()[0] if mode is None else mode.paired(value, tangent, tokens, shift, scale)


def _added(tokens: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """`tokens + gate * branch`."""

    def value() -> tuple[Tensor]:
        return (tokens + gate * branch,)

    def tangent(
        _: tuple[Tensor], dx: Tensor | None, dgate: Tensor | None, dbranch: Tensor | None
    ) -> Tensor:
        return total(product(gate, branch, dgate, dbranch), dx)

    mode = tangent_mode()
    return value()[0] if mode is None else mode.paired(value, tangent, tokens, gate, branch)
