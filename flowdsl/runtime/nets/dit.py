"""The bundled networks: a diffusion transformer, and a small network of numbers alone.

They know how a network role is called and nothing of the objective that trains them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode

from flowdsl.diagnostics import fail
from flowdsl.runtime.contract import NULL_LABEL, ArgumentKind
from flowdsl.runtime.nets.adopt import adopted
from flowdsl.runtime.nets.config import NetworkConfig
from flowdsl.runtime.nets.duals import leads_to
from flowdsl.runtime.nets.inputs import Inputs, Value, bind, check_labels
from flowdsl.runtime.nets.layers import (
    Block,
    LabelEmbedding,
    Linear,
    Prefix,
    TimeEmbedding,
    modulated,
    modulation,
)
from flowdsl.runtime.nets.recompute import through
from flowdsl.runtime.nets.vectors import VectorEmbedding

Output = Tensor | tuple[Tensor | None, ...]


class Network(nn.Module):
    """What the bundled networks share: a configuration, and a vector that conditions each row."""

    def __init__(self, config: NetworkConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.numbers = nn.ModuleList(TimeEmbedding(width) for _ in config.embedded)
        labelled = config.label is not None and config.classes is not None
        self.labels = _labels(config, width) if labelled else None
        self._labels_checked = False

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def describe(self) -> str:
        """One line about size and parts."""
        raise NotImplementedError

    def adopt(self, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        """Takes over the weights of another bundled network, told by its `config.as_dict()`.

        What that one did not see has no effect at first. Raises a diagnostic where they don't fit.
        """
        source = NetworkConfig.from_dict(config)
        self.load_state_dict(adopted(self.state_dict(), self.config, weights, source))

    def condition(self, inputs: Inputs, like: Tensor, first: Tensor | None = None) -> Tensor:
        """Times, scalars and label as one vector per row, `(batch, width)`; `first` stands in for
        the first number.
        """
        total = torch.zeros(inputs.batch, self.width, dtype=like.dtype, device=like.device)
        for vector in self.vectors(inputs, like, first):
            total = total + vector
        return functional.silu(total)

    def vectors(self, inputs: Inputs, like: Tensor, first: Tensor | None = None) -> list[Tensor]:
        """The embeddings of the numbers and then of the label, each `(batch, width)`."""
        numbers = inputs.numbers if first is None else (first, *inputs.numbers[1:])
        found = [embed(number) for embed, number in zip(self.numbers, numbers, strict=True)]
        if inputs.label is not None:
            self._check_labels(inputs.label)
        if self.labels is not None:
            label = inputs.label
            if label is None:
                label = torch.full((inputs.batch,), NULL_LABEL, device=like.device)
            found.append(self.labels(label))
        return found

    def _check_labels(self, label: Tensor) -> None:
        """Always on a CPU; once elsewhere, where to look at values is to wait; never in a trace."""
        traced = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
        if traced or (self._labels_checked and label.device.type != "cpu"):
            return
        check_labels(self.config, label)
        self._labels_checked = True


def _labels(config: NetworkConfig, width: int) -> LabelEmbedding | VectorEmbedding:
    count, inner = config.classes or 0, config.condition_width
    return LabelEmbedding(count, width) if inner is None else VectorEmbedding(count, inner, width)


class DiT(Network):
    """A diffusion transformer with adaptive normalisation (arXiv:2212.09748).

    Called as its role says: states `(batch, channels, height, width)`, times and scalars
    `(batch,)`, conditions by keyword. Several states are joined along the channels; the first time
    is embedded as it is, further ones as their gap to it. State heads have the shape and type of
    the first state, scalar heads the shape `(batch,)`; several heads make a tuple. All are zero
    until trained. Of several heads, `only_heads` names those to compute; the others are None. A
    call that doesn't fit raises a diagnostic.
    """

    #: Whether `forward` takes `only_heads`; any network may say so.
    takes_only_heads = True

    def __init__(self, config: NetworkConfig) -> None:
        size, patch = config.size, config.patch
        channels, height, width = config.shape
        super().__init__(config, size.width)
        #: Whether the backward pass computes the insides of the blocks again, to save their memory.
        self.recompute = False
        cell = channels * patch * patch
        self.patches = Linear(len(config.states) * cell, size.width) if config.states else None
        joins = bool(config.states and config.features)
        self.fusion = Linear(size.width, size.width) if joins else None
        positions = grid_positions(height // patch, width // patch, size.width)
        if config.positions == "learned":
            self.positions: Tensor = nn.Parameter(positions)
        else:
            self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth - config.own_blocks))
        counts = config.prefixes
        shown = nn.ModuleList(Prefix(count, size.width) for count in counts)
        self.prefixes = shown if config.conditioning == "in_context" else None
        self.heads = nn.ModuleList(_head(config, head.kind, cell) for head in config.heads)

    def forward(
        self,
        *arguments: Tensor,
        only_heads: Collection[str] | None = None,
        **conditions: Value,
    ) -> Output:
        inputs = bind(self.config, arguments, conditions)
        tokens, condition, late = self._start(inputs)
        inside = tokens
        encoder, middle = len(self.blocks) - self.config.decoder, len(self.blocks) // 2
        for number, block in enumerate(self.blocks):
            given = condition if number < encoder else late
            tokens = through(block, tokens, given, again=self.recompute)
            inside = tokens if number + 1 == middle else inside
        alone = all(head.kind == "features" for head in self.config.heads)
        handed = _without(self.config.prefix, tokens if alone else inside)
        outputs: list[Tensor | None] = []
        for head, argument in zip(self.heads, self.config.heads, strict=True):
            if only_heads is not None and argument.name not in only_heads:
                outputs.append(None)
                continue
            if argument.kind == "features":
                outputs.append(handed)
                continue
            with leads_to(argument.name):
                output = self._paste(head(tokens, late, self.recompute), argument.kind)
                outputs.append(output.to(inputs.states[0].dtype) if inputs.states else output)
        return tuple(outputs) if len(self.heads) > 1 else cast(Tensor, outputs[0])

    def _start(self, inputs: Inputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The first tokens, and what conditions the first and the last blocks, where that isn't
        among the tokens.
        """
        tokens = self._tokens(inputs)
        like = self.positions if self.patches is None else self.patches.weight
        if self.prefixes is None:
            condition = self.condition(inputs, like)
            late = inputs.second
            return (
                tokens,
                condition,
                condition if late is None else self.condition(inputs, like, late),
            )
        vectors = self.vectors(inputs, like)
        shown = (f(x).to(tokens.dtype) for f, x in zip(self.prefixes, vectors, strict=True))
        return torch.cat([*shown, tokens], dim=1), None, None

    def _tokens(self, inputs: Inputs) -> Tensor:
        """What the blocks begin with: patches at their positions, another network's features, or
        both, where the patches join the features by a layer that is zero at first.
        """
        if self.patches is None:
            assert inputs.features is not None
            return inputs.features
        self._check_type(inputs.states[0])
        # Contiguous: inductor on a CPU returns wrong gradients of a modulated norm of strided ones.
        tokens: Tensor = self.patches(self._cut(inputs.states)).contiguous() + self.positions
        if self.fusion is None or inputs.features is None:
            return tokens
        joined: Tensor = inputs.features + self.fusion(tokens)
        return joined

    def describe(self) -> str:
        size, patch = self.config.size, self.config.patch
        return (
            f"DiT {size.name}: {self.config.depth} blocks of width {size.width} "
            f"with {size.heads} heads, "
            f"{self.config.tokens} tokens of {patch} x {patch} x {self.config.shape[0]}, "
            f"{self.parameter_count:,} parameters"
        )

    def _check_type(self, state: Tensor) -> None:
        assert self.patches is not None
        ours = self.patches.weight.dtype
        if state.dtype != ours and not torch.is_autocast_enabled(state.device.type):
            names = [str(d).removeprefix("torch.") for d in (state.dtype, ours)]
            raise fail(
                "network",
                f"{self.config.name} has {names[1]} weights, but was given a {names[0]} state",
                hint=f"convert one of them, e.g. network.to(torch.{names[0]})",
            )

    def _cut(self, states: tuple[Tensor, ...]) -> Tensor:
        """Pictures as rows of patches, `(batch, tokens, patch² channels)`."""
        joined = torch.cat(states, dim=1) if len(states) > 1 else states[0]
        side = self.config.patch
        batch, channels, height, width = joined.shape
        cells = joined.reshape(batch, channels, height // side, side, width // side, side)
        rows = cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, self.config.tokens, -1)
        return rows.contiguous()

    def _paste(self, output: Tensor, kind: ArgumentKind) -> Tensor:
        """For a state, the inverse of `_cut`; for a scalar, the mean over tokens."""
        if kind == "scalar":
            return output.mean(dim=1).squeeze(-1)
        side = self.config.patch
        channels, height, width = self.config.shape
        cells = output.view(-1, height // side, width // side, side, side, channels)
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)


class Head(nn.Module):
    """The last layer of one output, after the blocks that this output has to itself."""

    def __init__(self, config: NetworkConfig, outputs: int) -> None:
        super().__init__()
        width = config.size.width
        self.norm, self.prefix = config.norm, config.prefix
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.own_blocks))
        self.modulation = modulation(config, 2)
        self.output = Linear(width, outputs)

    def forward(self, tokens: Tensor, condition: Tensor | None, recompute: bool = False) -> Tensor:
        for block in self.blocks:
            tokens = through(block, tokens, condition, again=recompute)
        tokens = _without(self.prefix, tokens)
        # A small layer, whose rounding would be that of the output: not under autocast.
        with torch.autocast(tokens.device.type, enabled=False):
            full = self.output.weight.dtype
            given = None if condition is None else condition.to(full)
            shift, scale = self.modulation(given).unbind(-2)
            return cast(Tensor, self.output(modulated(tokens.to(full), shift, scale, self.norm)))


class ScalarNetwork(Network):
    """A network of numbers alone, such as a learned log variance `phi(t, r)`, zero until trained.

    Called as its role says, with times and scalars `(batch,)` and conditions by keyword; returns
    `(batch,)` in the type of the weights, or a tuple of these.
    """

    WIDTH = 64

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config, self.WIDTH)
        self.hidden = Linear(self.WIDTH, self.WIDTH)
        self.output = Linear(self.WIDTH, len(config.heads))

    def forward(self, *arguments: Tensor, **conditions: Value) -> Output:
        inputs = bind(self.config, arguments, conditions)
        condition = self.condition(inputs, self.output.weight)
        with torch.autocast(condition.device.type, enabled=False):
            values: Tensor = self.output(functional.silu(self.hidden(condition)))
        outputs = values.unbind(-1)
        return outputs if len(outputs) > 1 else outputs[0]

    def describe(self) -> str:
        return f"network of numbers: width {self.WIDTH}, {self.parameter_count:,} parameters"


def grid_positions(height: int, width: int, features: int) -> Tensor:
    """Sines and cosines of row and column, `(height · width, features)`, as in DiT and MAE."""
    count = features // 4
    steps = torch.arange(count, dtype=torch.float64) / count
    frequencies = torch.exp(-math.log(10_000) * steps)
    waves = []
    for n in (height, width):
        angles = torch.arange(n, dtype=torch.float64)[:, None] * frequencies
        waves.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
    rows = waves[0][:, None].expand(height, width, 2 * count)
    columns = waves[1][None].expand(height, width, 2 * count)
    grid = torch.cat([rows, columns], dim=-1).reshape(height * width, features)
    return grid.to(torch.get_default_dtype())


def _head(config: NetworkConfig, kind: ArgumentKind, cell: int) -> nn.Module:
    return nn.Identity() if kind == "features" else Head(config, cell if kind == "state" else 1)


def _without(prefix: int, tokens: Tensor) -> Tensor:
    """The tokens of the picture alone."""
    return tokens[:, prefix:].contiguous() if prefix else tokens
