"""Derivatives beside a recorded pass: programs of random operations, everything that must be
refused, and the rules of kernels that only a GPU has.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tangent_support import (
    F64,
    SIX,
    SQUARE,
    Function,
    X,
    check_beside,
    constant,
    forward_mode,
    heads,
    relative,
    write,
)
from torch import Tensor
from torch.nn import functional as F

from flowdsl.runtime.tangents import NotShared, value_and_derivative
from flowdsl.runtime.tangents.rules import RULES, norms

UNARY: tuple[Function, ...] = (
    torch.sin,
    F.silu,
    lambda x: x @ SQUARE,
    lambda x: F.layer_norm(x, (6,)),
    lambda x: x.softmax(-1),
    lambda x: x.flip(1).contiguous(),
    lambda x: x.transpose(0, 1).contiguous().view(4, 3, 6).transpose(0, 1),
    lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    write(lambda y: y[:, ::2].mul_(0.5)),
    write(lambda y: y[0].copy_(y[1])),
    write(lambda y: y[:, 2:].add_(y[:, :2])),
    lambda x: x.detach() + x,
)
BINARY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    torch.add,
    torch.mul,
    lambda x, y: x - 0.5 * y,
    lambda x, y: x / (2 + y * y),
    lambda x, y: torch.where(x > y, x, y * y),
    lambda x, y: F.scaled_dot_product_attention(x[:, None], y[:, None], x[:, None])[:, 0],
    lambda x, y: torch.stack([x, y]).mean(0),
    lambda x, y: write(lambda z: z[:, 1:].mul_(y[:, :-1]))(x),
)
STEPS = st.tuples(
    st.integers(0, len(UNARY) + len(BINARY) - 1), st.integers(0, 99), st.integers(0, 99)
)


@settings(max_examples=200)
@given(st.lists(STEPS, min_size=1, max_size=8))
def test_any_program(program: list[tuple[int, int, int]]) -> None:
    """Programs of random operations, each on earlier values."""

    def function(x: Tensor) -> Tensor:
        values = [x, SIX + torch.zeros_like(x)]
        for operation, first, second in program:
            a, b = values[first % len(values)], values[second % len(values)]
            if operation < len(UNARY):
                values.append(UNARY[operation](a))
            else:
                values.append(BINARY[operation - len(UNARY)](a, b))
        return torch.stack(values).sum(0)

    check_beside(function, X)


class Hidden(torch.autograd.Function):
    """A kernel that PyTorch does not see, as far as it can tell."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blank: bool) -> Tensor:
        out = torch.empty_like(x) if blank else torch.zeros_like(x)
        out.numpy()[...] = 2 * x.detach().numpy()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return 2 * grad, None


@torch.library.custom_op("flowdsl_test::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return x * 2


def after_detach(x: Tensor) -> Tensor:
    y = x * x
    constant = y.detach()
    y.add_(1)
    return y * constant


@torch.no_grad()
def into_output(x: Tensor) -> Tensor:
    return torch.mul(x, x, out=torch.empty_like(x))


REFUSED: dict[str, tuple[Function, str]] = {
    "an operation without a derivative": (lambda x: torch.cdist(x, x + 1), "_cdist_forward"),
    "a library's own operation": (double, "flowdsl_test.double"),
    "a hidden kernel": (lambda x: Hidden.apply(x, True), "does not see"),
    "a hidden kernel on zeros": (lambda x: Hidden.apply(x, False), "HiddenBackward"),
    "random numbers": (lambda x: torch.bernoulli(x.sigmoid()), "random numbers"),
    "random numbers in place": (lambda x: (x * 1).bernoulli_(), "random numbers"),
    "Tensor.data": (lambda x: (x * x).data * x, "detach"),
    "writing after detach": (after_detach, "after it was detached"),
    "out=": (into_output, "mul.out"),
    "reinterpreted": (lambda x: (x * x).view(torch.int64).view(F64), "view.dtype"),
    "conjugated": (lambda x: torch.fft.rfft(x).conj().abs(), "_conj"),
    "sparse": (lambda x: torch.sparse.mm(SQUARE.to_sparse(), x[0].T), "layout"),
    "no tensor": (lambda x: (x * x, "text"), "returns a str"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, words = REFUSED[name]
    with pytest.raises(NotShared, match=words):
        value_and_derivative(function, (X.clone().requires_grad_(),), (1.0,))


def test_a_refusal_cannot_be_caught_by_the_network() -> None:
    def network(x: Tensor) -> Tensor:
        try:
            return torch.cdist(x, x + 1)
        except Exception:
            return x

    with pytest.raises(NotShared):
        value_and_derivative(network, (X,), (1.0,))


#: Kernels that only a GPU has; their rules need none.
FUSED = ("flash", "efficient", "cudnn")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", FUSED)
def test_rules_of_attention_kernels_on_a_gpu(kernel: str, causal: bool) -> None:
    operation = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention").default
    inputs = [heads(x) for x in (X, X * X, X @ SQUARE)]
    tangents = [heads(constant(3, 4, 6)).flip(i) for i in range(3)]

    def attention(*qkv: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*qkv, is_causal=causal, scale=0.3)

    value, reference = forward_mode(attention, tuple(inputs), tuple(tangents))
    outputs = len(operation._schema.returns)
    found, *others = _by_rule(
        operation, (value, *[torch.zeros(1)] * (outputs - 1)), tangents,
        query=inputs[0], key=inputs[1], value=inputs[2], is_causal=causal, scale=0.3,
    )  # fmt: skip
    assert len(others) == outputs - 1
    assert not any(others)
    assert relative(found, reference) < 1e-12
    with pytest.raises(NotShared, match="dropout"):
        _by_rule(
            operation, (value,), tangents,
            query=inputs[0], key=inputs[1], value=inputs[2], dropout_p=0.1,
        )  # fmt: skip


@pytest.mark.parametrize("moving", ["state", "gain", "both"])
def test_the_rule_of_rms_norm_on_a_gpu(moving: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def backward(grad: Tensor, x: Tensor, shape: Any, scale: Tensor, *others: Any) -> Any:
        assert others == (None, [True, False])
        x = x.detach().requires_grad_()
        return torch.autograd.grad(F.rms_norm(x, shape, eps=1e-3), x, grad)[0], None

    monkeypatch.setattr(norms, "aten", SimpleNamespace(_fused_rms_norm_backward=backward))
    dx = X.cos() if moving != "gain" else None
    dw = SIX.cos() if moving != "state" else None
    scale = torch.rsqrt(X.square().mean(-1, keepdim=True) + 1e-3)
    found, none = _by_rule(
        torch.ops.aten._fused_rms_norm.default, (X, scale), [dx, None, dw],
        input=X, normalized_shape=[6], weight=SIX, eps=1e-3,
    )  # fmt: skip
    expected = forward_mode(
        lambda x, w: F.rms_norm(x, (6,), w, 1e-3),
        (X, SIX),
        (0.0 if dx is None else dx, 0.0 if dw is None else dw),
    )[1]
    assert none is None
    assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("train", [False, True])
def test_the_rule_of_batch_norm_on_a_gpu(train: bool) -> None:
    operation, gain = torch.ops.aten.cudnn_batch_norm.default, SIX[:4]
    mean, variance = SIX[:4] - 1, SIX[2:]
    out = torch.native_batch_norm(X, None, None, mean.clone(), variance.clone(), train, 0.0, 1e-3)
    found, *others = _by_rule(
        operation, (*out, torch.zeros(0)), [X.cos()], input=X, weight=gain, running_mean=mean,
        running_var=variance, training=train, exponential_average_factor=0.0, epsilon=1e-3,
    )  # fmt: skip
    statistics = (None, None) if train else (mean, variance)
    expected = forward_mode(
        lambda x: F.batch_norm(x, *statistics, gain, None, train, 0.0, 1e-3), (X,), (X.cos(),)
    )[1]
    assert others == [None] * 3
    assert relative(found, expected) < 1e-12


def test_the_rule_of_linear_where_it_is_one_operation() -> None:
    parts = [X.cos(), SQUARE.cos(), SIX.cos()]
    out = F.linear(X, SQUARE, SIX)
    found = _by_rule(torch.ops.aten.linear.default, out, parts, input=X, weight=SQUARE, bias=SIX)
    expected = forward_mode(F.linear, (X, SQUARE, SIX), tuple(parts))[1]
    assert relative(found, expected) < 1e-12


def test_the_rule_of_dropout_on_a_gpu() -> None:
    out = torch.native_dropout(X, 0.3, True)
    found, _ = _by_rule(
        torch.ops.aten.native_dropout.default, out, [X * X], input=X, p=0.3, train=True
    )
    assert torch.allclose(found, torch.where(out[1], X * X / 0.7, 0))


def _by_rule(operation: Any, out: Any, tangents: list[Tensor | None], **named: Any) -> Any:
    """Calls a rule as the mode does: arguments in the order of the schema, defaults left out."""
    count, rule = RULES[operation]
    given = {a.name: named.get(a.name, a.default_value) for a in operation._schema.arguments}
    options = {a.name: given.pop(a.name) for a in operation._schema.arguments if a.kwarg_only}
    args = list(given.values())
    defaults = [a.default_value for a in operation._schema.arguments if not a.kwarg_only]
    while len(args) > count and args[-1] == defaults[len(args) - 1]:
        args.pop()
    return rule(tuple(args), options, out, *(*tangents, *[None] * count)[:count])
