"""Derivatives that gradients flow through: exact, without products by zero, for any network.

References are PyTorch's forward mode where its gradients are right, and the same function spelt
out in elementary operations where they aren't (layer, batch and instance norm).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tangent_support import (
    F64,
    SIX,
    SQUARE,
    PlainDiT,
    SpeltAttention,
    SpeltNorm,
    X,
    constant,
    flops,
    forward_mode,
    gradients,
    heads,
    relative,
)
from torch import Tensor, nn
from torch.nn import functional as F

from flowdsl.runtime.tangents import Differentiable, Live

Function = Callable[[Tensor, Tensor], Tensor]

FOUR, IMAGE, KERNEL = constant(4), constant(2, 4, 6, 6), constant(5, 4, 3, 3)
BIAS, TRIANGLE = constant(3, 2, 4, 4), torch.ones(4, 4, dtype=torch.bool).tril()


def normal(x: Tensor, *dims: int, centred: bool = True, eps: float = 1e-5) -> Tensor:
    x = x - x.mean(dims, keepdim=True) if centred else x
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)


def attend(x: Tensor, w: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(heads(x), heads(x * x), heads(x @ w), **options)


def mixed(x: Tensor, w: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    scores = heads(x) @ heads(x * x).transpose(-1, -2) * (scale or 3**-0.5)
    return (scores if bias is None else scores + bias).softmax(-1) @ heads(x @ w)


def gains(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return w[0, : x.shape[1]].view(-1, *[1] * (x.ndim - 2)), w[1, : x.shape[1]].view(
        -1, *[1] * (x.ndim - 2)
    )


def channels(x: Tensor, w: Tensor) -> dict[str, Tensor]:
    return {"weight": w[0, : x.shape[1]], "bias": w[1, : x.shape[1]]}


def layer(x: Tensor, w: Tensor) -> Tensor:
    return F.multi_head_attention_forward(
        *[x.transpose(0, 1)] * 3, 6, 2, torch.cat([w, w.T, w]), SIX.repeat(3), None, None, False,
        0.0, w, SIX, need_weights=False,
    )[0]  # fmt: skip


def layer_spelt(x: Tensor, w: Tensor) -> Tensor:
    q, k, v = (heads(F.linear(x, m, SIX)) for m in (w, w.T, w))
    weights = (q @ k.transpose(-1, -2) * 3**-0.5).softmax(-1)
    out = (weights @ v).transpose(1, 2).flatten(2)
    return F.linear(out, w, SIX).transpose(0, 1)


#: Functions of a state and a weight; and spelt out where PyTorch has no rule, or a wrong one.
CASES: dict[str, tuple[Function, Function | None]] = {
    "linear": (lambda x, w: F.linear(x.sin(), w, SIX), None),
    "linear of moving weights": (lambda x, w: F.linear(x, w + x[0, :1].T * x[0, 0], x[0, 0]), None),
    "matmul": (lambda x, w: x.sin() @ w @ (w @ x.transpose(1, 2)), None),
    "operators": (lambda x, w: torch.matmul(x[0], w).mm(w).matmul(x[1].T), None),
    "bmm": (lambda x, w: torch.bmm(x, x.transpose(1, 2) @ x).bmm(w.expand(3, 6, 6)), None),
    "addmm": (lambda x, w: torch.addmm(x[1], x[0].sin(), w, beta=0.5, alpha=2.0), None),
    "baddbmm": (lambda x, w: torch.baddbmm(x, x.sin(), w.expand(3, 6, 6), alpha=2.0), None),
    "einsum": (lambda x, w: torch.einsum("bnd,de,bme->bnm", x, w, x.sin()), None),
    "einsum of a list": (lambda x, w: torch.einsum("bnd,de->bne", [x.sin(), w]), None),
    "bilinear": (
        lambda x, w: F.bilinear(x, x.sin(), w[:2, None].expand(2, 6, 6) * w, SIX[:2]),
        None,
    ),
    "layer norm": (
        lambda x, w: F.layer_norm(x, (6,), w[0], w[1]),
        lambda x, w: normal(x, -1) * w[0] + w[1],
    ),
    "layer norm of a plane": (
        lambda x, w: F.layer_norm(x, (4, 6)) @ w,
        lambda x, w: normal(x, -2, -1) @ w,
    ),
    "layer norm with moving gain": (
        lambda x, w: F.layer_norm(x @ w, (6,), x[0, 0], x[0, 1]),
        lambda x, w: normal(x @ w, -1) * x[0, 0] + x[0, 1],
    ),
    "rms norm": (
        lambda x, w: F.rms_norm(x, (6,), w[0], 1e-3),
        lambda x, w: normal(x, -1, centred=False, eps=1e-3) * w[0],
    ),
    "batch norm": (
        lambda x, w: F.batch_norm(x, None, None, w[0, :4], w[1, :4], True),
        lambda x, w: normal(x, 0, 2) * gains(x, w)[0] + gains(x, w)[1],
    ),
    "instance norm": (
        lambda x, w: F.instance_norm(x, **channels(x, w)),
        lambda x, w: normal(x, 2) * gains(x, w)[0] + gains(x, w)[1],
    ),
    "group norm": (
        lambda x, w: F.group_norm(x.transpose(1, 2).contiguous().transpose(1, 2), 2, w[0, :4]),
        lambda x, w: normal(x.view(3, 2, 2, 6), 2, 3).view(3, 4, 6) * gains(x, w)[0],
    ),
    "glu": (lambda x, w: F.glu(x @ w), lambda x, w: (x @ w)[..., :3] * (x @ w)[..., 3:].sigmoid()),
    "attention": (attend, mixed),
    "causal attention": (
        lambda x, w: attend(x, w, is_causal=True),
        lambda x, w: mixed(x, w, torch.zeros(4, 4).masked_fill(~TRIANGLE, -torch.inf)),
    ),
    "masked attention": (
        lambda x, w: attend(x, w, attn_mask=TRIANGLE),
        lambda x, w: mixed(x, w, torch.zeros(4, 4).masked_fill(~TRIANGLE, -torch.inf)),
    ),
    "biased attention": (
        lambda x, w: attend(x, w, attn_mask=BIAS + w[0, 0] * x[0, 0, 0], scale=0.2),
        lambda x, w: mixed(x, w, BIAS + w[0, 0] * x[0, 0, 0], 0.2),
    ),
    "cross attention": (
        lambda x, w: F.scaled_dot_product_attention(x @ w, x[:, :3], x[:, :3].sin()),
        lambda x, w: (x @ w @ x[:, :3].transpose(1, 2) * 6**-0.5).softmax(-1) @ x[:, :3].sin(),
    ),
    "attention to constants": (
        lambda x, w: F.scaled_dot_product_attention(x, w.expand(3, 6, 6), w.expand(3, 6, 6)),
        lambda x, w: (x @ w.T * 6**-0.5).softmax(-1) @ w,
    ),
    "grouped attention": (
        lambda x, w: F.scaled_dot_product_attention(
            heads(x @ w), heads(x[..., :3], 1), heads(x[..., 3:], 1), enable_gqa=True
        ),
        lambda x, w: (
            (heads(x @ w) @ x[:, None, :, :3].transpose(-1, -2) * 3**-0.5).softmax(-1)
            @ x[:, None, :, 3:]
        ),
    ),
    "attention layer": (layer, layer_spelt),
}


def loss(value: Tensor, derivative: Tensor) -> Tensor:
    places = torch.arange(value.numel(), dtype=F64).view_as(value)
    return (value * places.sin() + derivative * places.cos()).sum()


@pytest.mark.parametrize("name", CASES)
def test_values_tangents_and_gradients(name: str) -> None:
    function, spelt = CASES[name]
    found = derived(function, live)
    expected = derived(spelt or function, forward_mode)
    for mine, reference in zip(found, expected, strict=True):
        assert mine.shape == reference.shape
        assert relative(mine, reference) < 1e-10


def derived(function: Function, jvp: Callable[..., Any]) -> list[Tensor]:
    """Value, tangent, and the gradients of a loss of both, the direction's too."""
    x, w = X.clone().requires_grad_(), SQUARE.clone().requires_grad_()
    along = constant(3, 4, 6).flip(0).requires_grad_()
    pair = jvp(lambda x: function(x, w), (x,), (along,))
    return [y.detach() for y in (*pair, *torch.autograd.grad(loss(*pair), (x, w, along)))]


def live(network: Any, point: Any, direction: Any, **named: Any) -> tuple[Tensor, Tensor]:
    return Differentiable(network).jvp(point, direction, **named)


CONVOLUTIONS: dict[str, tuple[Any, Tensor, Tensor]] = {
    "1d": (F.conv1d, IMAGE[..., 0], KERNEL[..., 0]),
    "2d": (F.conv2d, IMAGE, KERNEL),
    "3d": (F.conv3d, IMAGE[:, None].contiguous(), KERNEL[:, None, :3]),
    "transposed": (F.conv_transpose2d, IMAGE, KERNEL.transpose(0, 1)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(kind: str) -> None:
    convolve, x, kernel = CONVOLUTIONS[kind]
    found = []
    for jvp in (live, forward_mode):
        w, b = kernel.clone().requires_grad_(), SIX[:5].clone().requires_grad_()
        pair = jvp(lambda x, w=w, b=b: convolve(x.sin(), w, b, padding=1), (x,), (x.cos(),))
        found.append([*pair, *torch.autograd.grad(loss(*pair), (w, b))])
    for mine, reference in zip(*found, strict=True):
        assert relative(mine.detach(), reference.detach()) < 1e-10


def step(network: nn.Module, jvp: Callable[..., Any], dtype: torch.dtype, side: int = 8) -> Tensor:
    torch.manual_seed(0)
    z, t = torch.randn(2, 4, side, side, dtype=dtype), torch.rand(2, dtype=dtype)
    point, direction = (z, t, t / 2), (None, None, 1.0)
    value, derivative = jvp(network, point, direction, label=torch.arange(2))
    return (value + derivative).square().sum()


def test_gradient_of_a_transformer_through_its_derivative() -> None:
    torch.manual_seed(0)
    network = PlainDiT().to(F64)
    spelt = PlainDiT(norm=SpeltNorm, attention=SpeltAttention).to(F64)
    spelt.load_state_dict(network.state_dict())
    found = gradients(network, step(network, live, F64))
    expected = gradients(spelt, step(spelt, forward_mode, F64))
    assert found.keys() == expected.keys()
    assert all(relative(found[name], expected[name]) < 1e-10 for name in expected)


def test_price_in_products() -> None:
    """Two forward passes and four backward; PyTorch's way takes three and five."""
    network = PlainDiT(192, 6, 3, 16)
    z, t = torch.randn(2, 4, 16, 16), torch.rand(2)
    forward = flops(torch.no_grad()(lambda: network(z, t, t, torch.arange(2))))
    unrecorded = flops(torch.no_grad()(lambda: step(network, live, torch.float32, 16)))
    assert unrecorded / forward < 2.1
    assert flops(lambda: step(network, live, torch.float32, 16).backward()) / forward < 6.2
    plain = flops(lambda: step(network, forward_mode, torch.float32, 16).backward())
    assert plain / forward > 7.5


def test_dropout_in_attention() -> None:
    def network(x: Tensor) -> Tensor:
        return attend(x, SQUARE, dropout_p=0.5)

    torch.manual_seed(0)
    _, derivative = Differentiable(network).jvp((X,), (1.0,))
    torch.manual_seed(0)
    (_, again), (ahead, _), (behind, _) = (
        (torch.manual_seed(0), Differentiable(network).jvp((x,), (1.0,)))[1]
        for x in (X, X + 1e-6, X - 1e-6)
    )
    assert torch.equal(derivative, again)
    assert relative(derivative, (ahead - behind) / 2e-6) < 1e-7


def test_nested() -> None:
    """A second derivative, and a gradient of the gradient, through layers with rules by hand."""

    def network(x: Tensor) -> Tensor:
        return F.layer_norm(attend(x, SQUARE).transpose(1, 2).flatten(2), (6,), SIX)

    def spelt(x: Tensor) -> Tensor:
        return normal(mixed(x, SQUARE).transpose(1, 2).flatten(2), -1) * SIX

    chosen = Differentiable(network)
    _, twice = forward_mode(lambda x: chosen.jvp((x,), (1.0,))[1], (X,), (1.0,))
    _, expected = forward_mode(lambda x: forward_mode(spelt, (x,), (1.0,))[1], (X,), (1.0,))
    assert relative(twice, expected) < 1e-10
    found = []
    for jvp in (lambda x: chosen.jvp((x,), (1.0,)), lambda x: forward_mode(spelt, (x,), (1.0,))):
        x = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(*jvp(x)), x, create_graph=True)
        found.append(torch.autograd.grad((grad * SIX).sum(), x)[0])
    assert relative(*found) < 1e-10


def test_outside_of_a_derivative_nothing_changes() -> None:
    network = PlainDiT().to(F64)
    z, t = torch.randn(2, 4, 8, 8, dtype=F64), torch.rand(2, dtype=F64)
    with Live():
        inside = network(z, t, t, torch.arange(2))
    assert torch.equal(inside, network(z, t, t, torch.arange(2)))


def test_half_precision() -> None:
    torch.manual_seed(0)
    network = PlainDiT()
    exact = gradients(network, step(network, live, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        rough = gradients(network, step(network, live, torch.float32))
    whole = [torch.cat([g.flatten() for g in found.values()]) for found in (rough, exact)]
    assert relative(*whole) < 0.03


def test_compiled() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6)).to(F64)
    chosen = Differentiable(network)

    def step() -> Tensor:
        return loss(*chosen.jvp((X,), (1.0,)))

    expected = gradients(network, step())
    found = gradients(network, torch.compile(step, backend="aot_eager", fullgraph=True)())
    assert all(relative(found[name], expected[name]) < 1e-10 for name in expected)
