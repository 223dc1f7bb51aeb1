"""Flows and functions of rows that carry derivative rules of their own, against plain torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowdsl.exact import FlowMap, GaussianMixture, Guidance, MixtureField, linear_path
from flowdsl.exact.field import label_column
from flowdsl.exact.forward import row_by_row
from flowdsl.exact.integrate import mean_slope
from flowdsl.exact.stages import Stages
from flowdsl.exact.variation import Average, Memo, Prepared
from tests.exact_support import PATHS, along, every_path, seeded, states_of, times_of

torch.set_num_threads(1)

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def example(guidance: float = 1.7) -> tuple[Function, Function, tuple[Tensor, ...]]:
    """An average velocity, the same in plain torch, and a point."""
    field = MixtureField(
        GaussianMixture.random(seed=4, classes=2), linear_path(), Guidance(guidance)
    )
    generator = seeded(4)
    start, end = (times_of(field.path, 6, generator) for _ in range(2))
    state, _, _, label = states_of(field, start, generator)
    flow = FlowMap(field, 2)

    def plain(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return mean_slope(lambda y, tau: field.velocity(y, tau, label), x, t, s, 2)

    return lambda x, t, s: flow.average_velocity(x, t, s, label), plain, (state, start, end)


def twice(function: Function, point: tuple[Tensor, ...], move: tuple[Tensor, ...]) -> Tensor:
    """The second derivative along a direction, forward in forward mode."""
    return along(lambda *p: along(function, p, move)[1], point, move)[1]


def test_values_and_derivatives_are_those_of_plain_torch() -> None:
    fast, plain, point = example()
    move = tuple(torch.randn(p.shape, generator=seeded(5), dtype=torch.float64) for p in point)
    for mine, theirs in zip(along(fast, point, move), along(plain, point, move), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    second, expected = twice(fast, point, move), twice(plain, point, move)
    assert float(expected.abs().max()) > 0.1  # forward in forward mode is not silently zero
    torch.testing.assert_close(second, expected, rtol=1e-9, atol=1e-10)


def test_a_gradient_through_a_forward_derivative_is_that_of_plain_torch() -> None:
    fast, plain, point = example()
    move = tuple(torch.ones_like(p) for p in point)
    gradients = []
    for function in (fast, plain):
        leaves = [p.clone().requires_grad_() for p in point]
        value = along(function, tuple(leaves), move)[1].square().sum()
        gradients.append(torch.autograd.grad(value, leaves))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@every_path
def test_stages_are_the_field_and_its_derivatives(path) -> None:
    field = MixtureField(GaussianMixture.random(seed=6, classes=2), path, Guidance(1.4))
    generator = seeded(6)
    time = times_of(path, 20, generator)
    state, _, _, label = states_of(field, time, generator)
    prepared = field.prepared(time, label)
    tau = time if field.clock is None else field.clock.forward(time)
    stages = prepared.make(tau[None], True, prepared.columns)
    value, jacobian, rate = stages.differentiated(state.mT.contiguous(), 0)

    def clocked(x: Tensor, tau: Tensor) -> Tensor:
        if field.clock is None:
            return field.velocity(x, tau, label)
        real = field.clock.backward(tau)
        return field.clock.rate(real)[:, None] * field.velocity(x, real, label)

    torch.testing.assert_close(value.mT, clocked(state, tau))
    torch.testing.assert_close(stages.velocity(state.mT.contiguous(), 0), value)
    still, one = torch.zeros_like(state), torch.ones_like(tau)
    torch.testing.assert_close(rate.mT, along(clocked, (state, tau), (still, one))[1])
    for k in range(2):
        axis = torch.eye(2, dtype=torch.float64)[k].expand_as(state)
        torch.testing.assert_close(
            jacobian[:, k].mT, along(clocked, (state, tau), (axis, 0 * one))[1]
        )


def test_copies_of_a_state_are_integrated_once_and_remembered() -> None:
    field = MixtureField(GaussianMixture.random(seed=7), linear_path())
    generator = seeded(7)
    start, end = (times_of(field.path, 5, generator) for _ in range(2))
    state, *_ = states_of(field, start, generator)
    seen: list[int] = []

    def make(times: Tensor, rates: bool, columns: Tensor) -> Stages:
        seen.append(times.shape[1])
        return field.stages(times, rates, columns, strength=None)

    rows = [p.repeat_interleave(4, dim=0) for p in (state, start, end)]
    rows[0] = rows[0] + 1e-15 * torch.randn(20, 2, generator=generator, dtype=torch.float64)
    prepared = Prepared(label_column(rows[1], None), make)
    average = Average(prepared, lambda x, t, s: x, 2, Memo())
    value = average(*rows)
    assert seen == [5]
    torch.testing.assert_close(average(*rows), value)
    assert seen == [5]  # not again
    torch.testing.assert_close(value[::4], FlowMap(field, 2).average_velocity(state, start, end))


def test_a_memo_forgets_what_came_first() -> None:
    memo, one = Memo(size=2), torch.zeros(1)
    for key in (b"a", b"b", b"c"):
        memo.keep(key, (one, None))
    assert [memo.find(k) is not None for k in (b"a", b"b", b"c")] == [False, True, True]


@pytest.mark.parametrize("name", PATHS)
def test_points_of_the_posterior_have_its_mean_and_covariance(name: str) -> None:
    field = MixtureField(GaussianMixture.random(seed=8, classes=2), PATHS[name])
    generator = seeded(8)
    time = times_of(field.path, 15, generator)
    state, _, _, label = states_of(field, time, generator)
    data, noise = field.posterior_points(state, time, label)
    each = time.repeat_interleave(4)
    torch.testing.assert_close(field.path.state(data, noise, each), state.repeat_interleave(4, 0))
    velocity = field.path.velocity(data, noise, each).reshape(15, 4, 2)
    mean, covariance = field.posterior_velocity(state, time, label)
    torch.testing.assert_close(velocity.mean(1), mean)
    away = velocity - mean[:, None]
    torch.testing.assert_close(torch.einsum("rci,rcj->rij", away, away) / 4, covariance)


# --- functions of rows ---


def bent(x: Tensor, t: Tensor) -> Tensor:
    return torch.stack([torch.sin(x[:, 0] * t) + x[:, 1] ** 3, t * t * x[:, 0]], 1)


def test_functions_of_rows_are_differentiated_in_every_mode() -> None:
    x = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)
    t = torch.rand(5, generator=seeded(2), dtype=torch.float64)
    move = (torch.ones_like(x), 0.5 * torch.ones_like(t))

    def rows(x: Tensor, t: Tensor) -> Tensor:
        return row_by_row(bent, x, t)

    for mine, theirs in zip(along(rows, (x, t), move), along(bent, (x, t), move), strict=True):
        torch.testing.assert_close(mine, theirs)
    second = [along(lambda *p, f=f: along(f, p, move)[1], (x, t), move)[1] for f in (rows, bent)]
    torch.testing.assert_close(*second)
    leaves = [x.clone().requires_grad_(), t.clone().requires_grad_()]
    assert torch.autograd.gradcheck(rows, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(rows, leaves)
    # one argument of two moves, and a tensor given twice stays one
    half = along(lambda x: rows(x, t), (x,), (move[0],))[1]
    torch.testing.assert_close(half, along(lambda x: bent(x, t), (x,), (move[0],))[1])
    assert row_by_row(lambda a, b: (a - b if a is not b else a + 7)[:, None], t, t)[0] == t[0] + 7


def test_a_certificate_does_not_make_torch_import_its_compiler() -> None:
    """It takes longer than the certificate, and comes with the first mixed operation forward."""
    code = (
        "import sys; from flowdsl.pipeline import load, compiled;"
        "from flowdsl.certify import certify;"
        "r = certify(load('meanflow'), compiled, rows=64, batches=4);"
        "assert any(t.measurements for t in r.terms);"
        "print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False", found.stdout
