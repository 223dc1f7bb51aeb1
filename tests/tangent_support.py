"""Networks as people write them, in plain torch, and instruments to count what they cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from flowdsl.runtime.tangents import value_and_derivative

F64 = torch.float64
Function = Callable[[Tensor], Tensor]


def waves(time: Tensor, count: int = 16) -> Tensor:
    angles = time[:, None] * torch.exp(-torch.arange(count // 2, dtype=time.dtype) / 3)
    return torch.cat([angles.cos(), angles.sin()], -1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        parts = self.qkv(x).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = self.mix(*parts.unbind(0))
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value)


class SpeltAttention(Attention):
    """The same from elementary operations."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return scores.softmax(-1) @ value


class SpeltNorm(nn.LayerNorm):
    """Layer norm from elementary operations, whose derivatives PyTorch gets right."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, norm: Any, attention: Any) -> None:
        super().__init__()
        self.norm1 = norm(width, elementwise_affine=False)
        self.norm2 = norm(width, elementwise_affine=False)
        self.attention = attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + gate * self.attention(self.norm1(x) * (1 + scale) + shift)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class PlainDiT(nn.Module):
    """A diffusion transformer on `(batch, 4, side, side)`, as in the repositories of papers."""

    def __init__(
        self,
        width: int = 24,
        depth: int = 2,
        heads: int = 2,
        side: int = 8,
        norm: Any = nn.LayerNorm,
        attention: Any = Attention,
    ) -> None:
        super().__init__()
        self.side = side // 2
        self.patches = nn.Conv2d(4, width, 2, 2)
        self.positions = nn.Parameter(torch.randn(1, self.side**2, width) * 0.1)
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.gap = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(4, width)
        self.blocks = nn.ModuleList(Block(width, heads, norm, attention) for _ in range(depth))
        self.norm = norm(width, elementwise_affine=False)
        self.out = nn.Linear(width, 16)

    def forward(self, z: Tensor, t: Tensor, r: Tensor, label: Tensor) -> Tensor:
        x = self.patches(z).flatten(2).transpose(1, 2) + self.positions
        condition = self.time(waves(t)) + self.gap(waves(t - r)) + self.label(label)
        for block in self.blocks:
            x = block(x, condition)
        x = self.out(self.norm(x)).view(-1, self.side, self.side, 4, 2, 2)
        return x.permute(0, 3, 1, 4, 2, 5).reshape_as(z)


class Residual(nn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(2, ins), nn.GroupNorm(2, outs)
        self.conv1 = nn.Conv2d(ins, outs, 3, padding=1)
        self.conv2 = nn.Conv2d(outs, outs, 3, padding=1)
        self.skip = nn.Conv2d(ins, outs, 1)
        self.time = nn.Linear(16, outs)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x), inplace=True))
        h += self.time(emb)[:, :, None, None]
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        return self.skip(x) + h


class UNet(nn.Module):
    """Convolutions, group norms, dropout, skips, in-place operations; two outputs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.down = Residual(width, width)
        self.middle = Residual(width, 2 * width)
        self.up = Residual(3 * width, width)
        self.out = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        emb = waves(t)
        high = self.down(self.stem(z), emb)
        low = self.middle(functional.avg_pool2d(high, 2), emb)
        x = torch.cat([high, functional.interpolate(low, scale_factor=2.0)], 1)
        x = self.up(x, emb)
        return self.out(x), x.mean((1, 2, 3))


def forward_mode(
    network: Callable[..., Any], point: tuple[Any, ...], direction: tuple[Any, ...], **named: Any
) -> tuple[Any, Any]:
    """`torch.func.jvp` as it is, with attention that it can derive."""
    moving = [i for i, along in enumerate(direction) if along is not None]
    tangents = tuple(torch.zeros_like(point[i]) + direction[i] for i in moving)

    def along(*moved: Tensor) -> Any:
        full = list(point)
        for i, x in zip(moving, moved, strict=True):
            full[i] = x
        return network(*full, **named)

    with sdpa_kernel(SDPBackend.MATH):
        value, derivative = torch.func.jvp(along, tuple(point[i] for i in moving), tangents)[:2]
    return value, derivative


def gradients(network: nn.Module, value: Tensor) -> dict[str, Tensor]:
    network.zero_grad(set_to_none=True)
    value.backward()
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return found


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


class Flops(TorchDispatchMode):
    """Counts the multiplications and additions of matrix products, convolutions, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "matmul"):
            self.total += 2 * args[0].numel() * args[1].shape[-1]
        elif name in ("addmm", "baddbmm", "baddbmm_"):
            self.total += 2 * args[1].numel() * args[2].shape[-1]
        elif name == "convolution":
            self.total += 2 * out.numel() * args[1][0].numel()
        elif name == "convolution_backward":
            self.total += 2 * sum(args[-1][:2]) * args[0].numel() * args[2][0].numel()
        elif name == "_scaled_dot_product_flash_attention_for_cpu":
            self.total += 4 * args[0].numel() * args[1].shape[2]
        elif name == "_scaled_dot_product_flash_attention_for_cpu_backward":
            self.total += 10 * args[1].numel() * args[2].shape[2]
        return out


def flops(step: Callable[[], Any]) -> int:
    with Flops() as counter:
        step()
    return counter.total


def constant(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(sum(shape)))


X, SQUARE, SIX = constant(3, 4, 6), constant(6, 6), constant(6).abs() + 0.5


def heads(x: Tensor, count: int = 2) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def write(change: Callable[[Tensor], Any]) -> Function:
    """A function that changes a copy of its argument in place."""

    def function(x: Tensor) -> Tensor:
        y = x * 1
        change(y)
        return y

    return function


def expected(function: Function, x: Tensor, along: Tensor, exact: bool) -> Tensor:
    torch.manual_seed(7)
    if exact:
        return forward_mode(function, (x,), (along,))[1]
    ahead = function(x + 1e-6 * along)
    torch.manual_seed(7)
    return (ahead - function(x - 1e-6 * along)) / 2e-6


def check_beside(
    function: Function, x: Tensor, *, exact: bool = True, backward: bool = True
) -> None:
    """Value and gradient must be those of the function alone, bit by bit; the derivative that of
    `torch.func.jvp`, or where that isn't `exact`, of finite differences.
    """
    along = torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(5))
    x = x.clone().requires_grad_()
    torch.manual_seed(7)
    value, derivative = value_and_derivative(function, (x,), (along,))
    torch.manual_seed(7)
    alone = function(x)
    assert torch.equal(value, alone)
    assert value.requires_grad == alone.requires_grad
    assert derivative.shape == value.shape
    assert derivative.dtype == value.dtype
    assert derivative.grad_fn is None
    if value.requires_grad and backward:
        mine = torch.autograd.grad(value.sum(), x)[0]
        assert torch.equal(mine, torch.autograd.grad(alone.sum(), x)[0])
    reference = expected(function, x.detach(), along, exact).detach()
    error, scale = (derivative - reference).norm(), reference.norm() + along.norm()
    assert float(error / scale) < (1e-12 if exact else 1e-7)
