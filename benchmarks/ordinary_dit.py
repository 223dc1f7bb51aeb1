"""A diffusion transformer as anyone would write it, of PyTorch's own layers: nothing in it knows of
flowdsl. For `flowdsl bench --network benchmarks/ordinary_dit.py:small`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention, spelt out: PyTorch has no forward derivative of its fused kernels."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.inputs(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        mixed = scores.softmax(-1) @ value
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first = nn.LayerNorm(width, elementwise_affine=False)
        self.second = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + gate * self.attention(self.first(x) * (1 + scale) + shift)
        return x + gate2 * self.mlp(self.second(x) * (1 + scale2) + shift2)


class Norm(nn.Module):
    """A layer norm in elementary operations. The gradient through the forward derivative of
    PyTorch's own is wrong (2.13), which a step of TVM written with it would train on.
    """

    def __init__(self, width: int, elementwise_affine: bool = True) -> None:
        super().__init__()
        self.affine = elementwise_affine
        if self.affine:
            self.weight = nn.Parameter(torch.ones(width))
            self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        return x * self.weight + self.bias if self.affine else x


class DiT(nn.Module):
    """Pictures (batch, channels, side, side), any number of times and scalars, a label from -1."""

    def __init__(
        self, channels: int, side: int, patch: int, depth: int, width: int, heads: int
    ) -> None:
        super().__init__()
        self.patch, self.grid = patch, side // patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.positions = nn.Parameter(torch.randn(self.grid**2, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(1001, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, channels * patch * patch)

    def forward(self, z: Tensor, *times: Tensor, label: Tensor, **scalars: Tensor) -> Tensor:
        x, _ = self.trunk(z, (*times, *scalars.values()), label)
        return self.paste(self.output(self.norm(x)))

    def trunk(self, z: Tensor, numbers: tuple[Tensor, ...], label: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens after the blocks, and what conditions each row."""
        steps = torch.linspace(0, 3, 32, device=z.device, dtype=z.dtype).exp()
        condition = self.labels(label + 1)
        for number in numbers:
            angles = number.to(z.dtype)[:, None] * steps
            condition = condition + self.time(torch.cat([angles.cos(), angles.sin()], -1))
        batch, channels, _, _ = z.shape
        cells = z.view(batch, channels, self.grid, self.patch, self.grid, self.patch)
        x = self.embed(cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, self.grid**2, -1))
        x = x + self.positions
        for block in self.blocks:
            x = block(x, condition)
        return x, condition

    def paste(self, cells: Tensor) -> Tensor:
        """Tokens as pictures."""
        batch, side = len(cells), self.grid * self.patch
        cells = cells.view(batch, self.grid, self.grid, self.patch, self.patch, -1)
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, side, side)


class TwoHeads(DiT):
    """With a velocity beside the average velocity, as improved MeanFlow has it; each has the last
    four blocks to itself. Computes the one that is asked for.
    """

    takes_only_heads = True

    def __init__(
        self, channels: int, side: int, patch: int, depth: int, width: int, heads: int
    ) -> None:
        super().__init__(channels, side, patch, depth - 4, width, heads)
        self.second = DiT(channels, side, patch, 4, width, heads)
        self.own = nn.ModuleList(Block(width, heads) for _ in range(4))

    def forward(
        self,
        z: Tensor,
        *times: Tensor,
        label: Tensor,
        only_heads: tuple[str, ...] = ("u", "v"),
        **scalars: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        x, condition = self.trunk(z, (*times, *scalars.values()), label)
        return (
            self.end(self, self.own, x, condition) if "u" in only_heads else None,
            self.end(self.second, self.second.blocks, x, condition) if "v" in only_heads else None,
        )

    def end(self, last: DiT, blocks: nn.ModuleList, x: Tensor, condition: Tensor) -> Tensor:
        for block in blocks:
            x = block(x, condition)
        return self.paste(last.output(last.norm(x)))


def small() -> DiT:
    """Six blocks of width 192 on 64 tokens."""
    return DiT(channels=1, side=16, patch=2, depth=6, width=192, heads=3)


def small_spelt_out() -> DiT:
    """The same with layer norms in elementary operations."""
    network = small()
    for module in list(network.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, nn.LayerNorm):
                width = norm.normalized_shape[0]
                setattr(module, name, Norm(width, norm.elementwise_affine))
    return network


def small_two() -> DiT:
    """The same with two results."""
    return TwoHeads(channels=1, side=16, patch=2, depth=6, width=192, heads=3)


def medium() -> DiT:
    """Six blocks of width 384 on 64 tokens."""
    return DiT(channels=1, side=16, patch=2, depth=6, width=384, heads=6)
