"""Derivatives beside a recorded pass, operation by operation.

Value and gradients must be those of the pass alone, bit by bit; the derivative that of
`torch.func.jvp`, or of finite differences where PyTorch has none or a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tangent_support import F64, SIX, SQUARE, Function, X, check_beside, constant, heads, write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowdsl.runtime.tangents import mode
from flowdsl.runtime.tangents.rules import attention

aten = torch.ops.aten
IMAGE, FOUR = constant(2, 4, 6, 6), constant(4).abs() + 0.5
KERNEL, BACK = constant(5, 4, 3, 3), constant(4, 5, 3, 3)
ROWS, MASK = torch.tensor([0, 2, 1]), constant(3, 4, 6) > 0
PICK = ROWS.view(3, 1, 1).expand(3, 1, 6)
BIAS = constant(3, 2, 4, 4)
TRIANGLE = torch.ones(4, 4, dtype=torch.bool).tril()


def attend(x: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(heads(x), heads(x * x), heads(x @ SQUARE), **options)


def interleave(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[..., 0::2] = 2 * x[..., 0::2] - x[..., 1::2]
    y[..., 1::2] = x[..., 1::2].sin()
    return y * y


def through_view(x: Tensor) -> Tensor:
    y = x * 2
    row = y[:, 1]
    row.mul_(x[:, 0])
    return y * row[:, None]


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad


def module(build: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(1)
    return build().double()


MLP = module(lambda: nn.Sequential(nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6)))
MHA = module(lambda: nn.MultiheadAttention(6, 2, batch_first=True))
LAYER = module(lambda: nn.TransformerEncoderLayer(6, 2, 12, 0.0, batch_first=True))
GRU = module(lambda: nn.GRU(6, 5, batch_first=True))
LSTM = module(lambda: nn.LSTM(6, 5, batch_first=True))
WEIGHT_NORM = module(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)))

#: These must have a rule: transformers, convolutional networks and MLPs are made of them.
RULED: dict[str, Function] = {
    "linear": lambda x: F.linear(x, SQUARE, SIX),
    "linear without bias": lambda x: F.linear(x, SQUARE),
    "linear of a matrix": lambda x: F.linear(x[0], SQUARE, SIX),
    "matmul": lambda x: x @ x.transpose(1, 2),
    "vectors": lambda x: (x[0] @ SIX).sum() + x[0, 0] @ x[1, 1],
    "addmm": lambda x: torch.addmm(x[0], x[1][:, :4], x[2], beta=0.5, alpha=2),
    "baddbmm": lambda x: torch.baddbmm(x, x @ SQUARE, x.transpose(1, 2) @ x, alpha=0.3),
    "einsum": lambda x: torch.einsum("bnd,de,bme->bnm", x, SQUARE, x),
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "layer norm with gain": lambda x: F.layer_norm(x, (6,), SIX, SIX),
    "layer norm of two dimensions": lambda x: F.layer_norm(x, (4, 6)),
    "layer norm of a view": lambda x: F.layer_norm(x.transpose(1, 2), (4,), FOUR),
    "rms norm": lambda x: F.rms_norm(x, (6,), SIX),
    "group norm": lambda x: F.group_norm(x, 2, FOUR, FOUR),
    "batch norm": lambda x: F.batch_norm(x, None, None, FOUR, FOUR, True),
    "batch norm at rest": lambda x: F.batch_norm(x, FOUR, FOUR, FOUR, FOUR),
    "instance norm": F.instance_norm,
    "softmax": lambda x: x.softmax(-1) * x.softmax(1),
    "log softmax": lambda x: x.log_softmax(-1),
    "gelu": lambda x: F.gelu(x) + F.gelu(x, approximate="tanh"),
    "silu": lambda x: F.silu(x) + F.silu(x * 1, inplace=True),
    "relu": lambda x: F.relu(x) + F.relu(x * 1, inplace=True) + F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x) + F.selu(x) + F.elu(x, 0.5),
    "softplus": lambda x: F.softplus(x) + F.softplus(x, 2.0, 0.5),
    "mish": lambda x: F.mish(x) + F.hardswish(x),
    "sigmoid": lambda x: x.sigmoid() * x.tanh(),
    "waves": lambda x: x.sin() * x.cos(),
    "exp": lambda x: x.exp() + x.expm1() + (x * x + 1).log() + (x * x).log1p(),
    "roots": lambda x: (x * x + 1).sqrt() + (x * x + 1).rsqrt() + 1 / (x * x + 1),
    "erf": lambda x: x.erf() + x.abs(),
    "powers": lambda x: x**2 + x**3 + (x * x + 1) ** -1.5 + x**0,
    "sums": lambda x: (1 + x + x[:, :1] - (3 - x)) + torch.add(x, x * x, alpha=2),
    "product": lambda x: x * x[:, :1] * SIX * 0.5,
    "quotient": lambda x: x / (1 + x * x) + SIX / (1 + x * x) + x / 3,
    "addcmul": lambda x: torch.addcmul(x, x, x + 1, value=2.0),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3) + torch.lerp(x, x * x, x.sin()),
    "where": lambda x: torch.where(MASK, x, 0.0) + torch.where(x > 0, x * x, -x),
    "masked fill": lambda x: x.masked_fill(MASK, 3.0),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0.1) + x.clamp_max(0.1),
    "cat": lambda x: torch.cat([x, SQUARE[None, :4], x * x], 0),
    "stack": lambda x: torch.stack([x, x * x], 1),
    "sum": lambda x: x.sum() + x.sum((0, 1)) * x.mean(-1, keepdim=True) + x.mean(),
    "variance": lambda x: (
        x.var(-1) + x.var((1, 2), False, keepdim=True)[..., 0] + x.std() + x.var()
    ),
    "variance and mean": lambda x: torch.cat(torch.var_mean(x, -1)),
    "length": lambda x: x.norm(dim=-1, keepdim=True) * F.normalize(x, dim=-1) + x.norm(),
    "views": lambda x: x.view(12, 6).transpose(0, 1).reshape(3, -1)[:, None].expand(3, 2, 24) * 2,
    "slices": lambda x: x[:, 1:3, ::2] * x[:, 1][:, None, ::2],
    "pieces": lambda x: x.split(2, 1)[1] * x.chunk(2, 1)[0] * x.unbind(1)[2][:, None],
    "indices": lambda x: x[ROWS][:, ROWS] * x.index_select(0, ROWS)[:, :3],
    "boolean index": lambda x: x[MASK],
    "gather": lambda x: x.gather(1, PICK),
    "moved": lambda x: x.flip(0).roll(1, 1).repeat(1, 2, 1).repeat_interleave(2, 1).tril(),
    "rare views": lambda x: (
        aten.squeeze.dims(x[:, None], [1])
        * aten.squeeze.default(aten._reshape_alias(x, [3, 1, 4, 6], [24, 24, 6, 1]))
        * aten.alias(x)
        + x[0].t().sum()
        + x.triu()
    ),
    "rare pieces": lambda x: (
        aten.split_with_sizes(x, [2, 2], 1)[1].sum() * aten.unsafe_split_with_sizes(x, [1, 3], 1)[1]
    ),
    "rare functions": lambda x: (
        aten._safe_softmax(x, -1) * aten.div.Scalar(x, 3.0) - aten.sub.Scalar(x, 2.0)
    ),
    "rare products": lambda x: (
        torch.addmv(x[0, :, 0], x[1], x[2, 0], alpha=2) + F.embedding(ROWS, x[0]).sum()
    ),
    "windows": lambda x: x.diagonal(0, 1, 2).sum() * x.unfold(1, 2, 1).cumsum(1),
    "padding": lambda x: F.pad(x, (1, 2), value=3.0) * F.pad(x, (1, 2), mode="reflect"),
    "circular padding": lambda x: F.pad(x, (1, 2), mode="circular"),
    "single precision": lambda x: x.float().double(),
    "shapes": lambda x: x + torch.zeros_like(x) + x.new_ones(6) * torch.full_like(x, 2.0),
    "dropout": lambda x: F.dropout(x, 0.4) * torch.rand_like(x),
    "other dropouts": lambda x: F.dropout1d(x, 0.4) + F.alpha_dropout(x, 0.3, training=True),
    "item": lambda x: x * x.sum().item(),
    "attention": attend,
    "causal attention": lambda x: attend(x, is_causal=True),
    "masked attention": lambda x: attend(x, attn_mask=TRIANGLE),
    "biased attention": lambda x: attend(x, attn_mask=BIAS, scale=0.2),
    "cross attention": lambda x: F.scaled_dot_product_attention(
        heads(x), heads(SQUARE[None, :3].expand(3, 3, 6)), heads(x[:, :3])
    ),
    "attention to constants": lambda x: F.scaled_dot_product_attention(
        heads(x), heads(SQUARE[None].expand(3, 6, 6)), heads(SQUARE[None].expand(3, 6, 6))
    ),
    "grouped attention": lambda x: F.scaled_dot_product_attention(
        heads(x), heads(x[..., :3], 1), heads(x[..., 3:], 1), enable_gqa=True
    ),
    "attention layer": lambda x: MHA(x, x, x)[0],
    "fast attention layer": lambda x: MHA(x, x, x, need_weights=False)[0],
    "encoder layer": LAYER,
    "recurrent": lambda x: GRU(x)[0] * LSTM(x)[0],
    "weight norm": WEIGHT_NORM,
    "added in place": write(lambda y: y.add_(SIX).add_(y).sub_(1).mul_(2).div_(3)),
    "multiplied in place": write(lambda y: y.mul_(SIX)[:, 2:].add_(y[:, :2])),
    "functions in place": lambda x: sum(
        write(change)(x)
        for change in (Tensor.sin_, Tensor.exp_, Tensor.sigmoid_, Tensor.tanh_, Tensor.relu_)
    ),
    "bounded in place": write(lambda y: y.mul_(SIX).clamp_(0.1, 0.6)),
    "part zeroed": write(
        lambda y: (y[:, 0].zero_(), y[:, 1:2].fill_(2.0), y.masked_fill_(MASK, 0))
    ),
    "part from part": write(lambda y: y[:, :2].sub_(y[:, 2:] * 2)),
    "turned in place": write(lambda y: y.transpose_(1, 2).mul_(FOUR)),
    "pieces written": interleave,
    "written through a view": through_view,
    "constant written": lambda x: torch.ones(3, 4, 6, dtype=F64).mul_(x),
    "copied": lambda x: torch.empty(3, 4, 6, dtype=F64).copy_(x) * 2,
    "detached": lambda x: (x * x) * (x * x).detach(),
    "unrecorded": lambda x: torch.no_grad()(lambda: x * x)() * x,
    "custom function": Cube.apply,
    "checkpoint": lambda x: checkpoint(MLP, x, use_reentrant=False),
    "compiled": torch.compile(lambda x: x.sin() * x, backend="eager"),
    "vmap": lambda x: torch.func.vmap(lambda row: row.sin() * row.sum())(x),
    "gradient": lambda x: torch.func.grad(lambda y: (y**3).sum())(x),
}

IMAGES: dict[str, Function] = {
    "convolution": lambda x: F.conv2d(x, KERNEL, padding=1),
    "strided": lambda x: F.conv2d(x, KERNEL, SIX[:5], stride=2),
    "transposed": lambda x: F.conv_transpose2d(x, BACK, stride=2),
    "grouped": lambda x: F.conv2d(x, KERNEL[:4, :1], groups=4, padding=1),
    "other dimensions": lambda x: (
        F.conv1d(x[:, :, 0], KERNEL[:, :, 0]).sum() * F.conv3d(x[:, None], KERNEL[:1, None, :3])
    ),
    "channels last": lambda x: F.group_norm(
        F.conv2d(x.contiguous(memory_format=torch.channels_last), KERNEL[:4], padding=1), 2, FOUR
    ),
    "norms": lambda x: (
        F.group_norm(x, 2, FOUR, FOUR) * F.batch_norm(x, None, None, FOUR, FOUR, True)
    ),
    "resized": lambda x: (
        F.interpolate(x, scale_factor=2.0) * F.interpolate(x, scale_factor=2.0, mode="bilinear")
    ),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2.0, mode="bicubic"),
    "pooled": lambda x: F.avg_pool2d(x, 2) * F.max_pool2d(x, 2) * F.adaptive_avg_pool2d(x, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 4),
    "shuffled": lambda x: F.pixel_shuffle(x, 2).sum() * F.pixel_unshuffle(x, 2),
    "unfolded": lambda x: F.unfold(x, 2),
    "folded": lambda x: F.fold(x.reshape(2, 16, 9), 4, 2, stride=1),
    "replicated": lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
    "lines": lambda x: (
        F.interpolate(x[0], scale_factor=2.0) * F.interpolate(x[0], scale_factor=2.0, mode="linear")
        + F.pad(x[0], (3, 3), mode="replicate")
    ),
    "padded": lambda x: F.pad(x, (1, 1, 1, 1)) * F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "dropout": lambda x: F.dropout2d(x, 0.5),
}

#: PyTorch's own derivative of the single operation steps in.
GENERIC: dict[str, Function] = {
    "celu": F.celu,
    "glu": F.glu,
    "bounded": lambda x: F.relu6(x) + F.prelu(x, FOUR),
    "powers of tensors": lambda x: (x * x + 1) ** x + 2**x,
    "extremes": lambda x: torch.maximum(x, x.flip(0)) + x.amax(-1, keepdim=True) + x.max(),
    "steps": lambda x: x - x.floor() + x % 1.0,
    "other lengths": lambda x: x.norm(1, dim=-1) + x.norm(float("inf"), dim=-1),
    "logsumexp": lambda x: x.logsumexp(-1) + torch.cat(torch.std_mean(x, -1)).sum(),
    "products": lambda x: x.cumprod(1) + x.prod(1, keepdim=True),
    "order": lambda x: x.sort(-1)[0][..., :2] * x.topk(2)[0],
    "scatter": lambda x: (
        torch.zeros(3, 4, 6, dtype=F64).scatter(1, PICK, x[:, :1])
        + torch.zeros(3, 4, 6, dtype=F64).index_add(0, ROWS, x)
        + torch.zeros(3, 4, 6, dtype=F64).index_put((ROWS,), x)
    ),
    "overwritten by mask": write(lambda y: y.__setitem__(MASK, 0.0)),
    "strided": lambda x: x.as_strided((3, 3), (1, 2)),
    "fourier": lambda x: torch.fft.irfft(torch.fft.rfft(x) * 2, n=6),
    "complex": lambda x: torch.view_as_real(torch.polar(x, x)),
    "solved": lambda x: torch.linalg.inv(x[:, :, :4] + 4 * torch.eye(4, dtype=F64)),
}


@pytest.mark.parametrize("name", RULED)
def test_operations_with_a_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "derive", lambda *_: pytest.fail("no rule"))
    exact = name not in ("custom function", "other dropouts")
    check_beside(RULED[name], X, exact=exact)


@pytest.mark.parametrize("name", [name for name in RULED if "attention" in name])
@pytest.mark.parametrize("device", ["cpu", "elsewhere"])
def test_attention_in_parts(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row and a head at a time, as on a CPU, and rows with all their heads, as elsewhere."""
    parts = attention._parts
    monkeypatch.setattr(attention, "_BUDGET", 1)
    monkeypatch.setattr(attention, "_BUDGET_ELSEWHERE", 1)
    monkeypatch.setattr(attention, "_parts", lambda q, k, _: parts(q, k, device))
    check_beside(RULED[name], X)


@pytest.mark.parametrize("name", IMAGES)
def test_operations_on_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "derive", lambda *_: pytest.fail("no rule"))
    check_beside(IMAGES[name], IMAGE, exact=name != "channels last")


@pytest.mark.parametrize("name", GENERIC)
def test_operations_without_a_rule(name: str) -> None:
    check_beside(GENERIC[name], X)


def test_a_value_multiplied_by_itself_in_place() -> None:
    """PyTorch's own forward derivative is wrong here, and it refuses the gradient."""
    check_beside(write(lambda y: y.mul_(y)), X, exact=False, backward=False)
