"""Networks whose derivative cannot be taken beside the pass, and what surrounds a pass."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tangent_support import F64, forward_mode, gradients, relative
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from flowdsl.runtime.tangents import Differentiable, Finding, NotShared, value_and_derivative
from flowdsl.runtime.tangents.mode import Beside
from flowdsl.runtime.tangents.rules import RULES

X = torch.randn(5, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    """Whatever happens, nothing stays switched on."""
    yield
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


class Stash(nn.Module):
    """Keeps a value that it does not return."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, dtype=F64)
        self.kept = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.layer(x).sin()
        return self.kept.cos()


class Stashing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stash = Stash()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.stash(self.dropout(x)) * self.stash.kept


def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Beside]:
    made: list[Beside] = []
    start = Beside.__init__

    def count(self: Beside) -> None:
        made.append(self)
        start(self)

    monkeypatch.setattr(Beside, "__init__", count)
    return made


def check_call(network: nn.Module, chosen: Differentiable, along: Any = 1.0) -> None:
    """One call: the plain pass, and the derivative with the same random numbers and buffers."""
    twin, other = copy.deepcopy(network), copy.deepcopy(network)
    torch.manual_seed(3)
    value, derivative = chosen.shared_jvp((X,), (along,))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    alone = twin(X)
    assert torch.equal(after, torch.get_rng_state())
    assert torch.equal(value, alone)
    assert derivative.grad_fn is None
    mine, theirs = gradients(network, value.sum()), gradients(twin, alone.sum())
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for buffer, expected in zip(network.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, expected)
    torch.manual_seed(3)
    ahead = copy.deepcopy(other)(X + 1e-6 * along)
    torch.manual_seed(3)
    quotient = (ahead - copy.deepcopy(other)(X - 1e-6 * along)) / 2e-6
    assert relative(derivative, quotient.detach()) < 1e-7


def test_a_value_that_left_its_module_by_the_back_door(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotShared, match="isn't its output"):
        value_and_derivative(Stashing(), (X,), (1.0,))
    made, network = attempts(monkeypatch), Stashing()
    chosen = Differentiable(network)
    check_call(network, chosen)
    network.stash.kept = torch.zeros(0)
    check_call(network, chosen)
    assert len(made) == 1
    assert chosen.finding is not None
    assert "two passes: a value made inside a module" in chosen.finding.text
    Differentiable(network, chosen.finding).shared_jvp((X,), (1.0,))
    assert len(made) == 1


def batch_normed() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.SiLU(), nn.Dropout(0.3), nn.Linear(4, 4))
    return nn.Sequential(*layers).to(F64)


def spectral() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4, dtype=F64))
    return nn.Sequential(layer, nn.Tanh())


@pytest.mark.parametrize("finding", [None, Finding(), Finding(NotShared("asked for"))])
@pytest.mark.parametrize("build", [batch_normed, spectral])
def test_buffers_are_written_once(build: Callable[[], nn.Module], finding: Finding | None) -> None:
    network = build()
    chosen = Differentiable(network, finding)
    check_call(network, chosen, X * X)
    check_call(network, chosen, X * X)
    assert chosen.finding is not None
    assert (chosen.finding.refusal is None) == (finding is None or finding.refusal is None)


class Late(nn.Module):
    """Refused after dropout has drawn and a buffer was written."""

    def __init__(self) -> None:
        super().__init__()
        self.first = batch_normed()

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(self.first(x)).conj()).real


def test_a_failed_trial_leaves_no_traces() -> None:
    network = Late()
    chosen = Differentiable(network)
    check_call(network, chosen, X * X)
    assert chosen.finding is not None
    assert "_conj" in chosen.finding.text


def test_a_network_that_changes_its_mind() -> None:
    """One that was found to share, and later takes a way that cannot."""

    class Network(nn.Linear):
        odd = False

        def forward(self, x: Tensor) -> Tensor:
            y = torch.dropout(super().forward(x), 0.5, True)
            return torch.fft.ifft(torch.fft.fft(y).conj()).real if self.odd else y.sin()

    network = Network(4, 4, dtype=F64)
    chosen = Differentiable(network)
    check_call(network, chosen)
    network.odd = True
    check_call(network, chosen)
    assert chosen.finding is not None
    assert chosen.finding.refusal is not None


def test_a_wrong_rule_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Linear(4, 4, dtype=F64), nn.SiLU())

    def wrong(args: Any, kwargs: Any, out: Tensor, t: Tensor) -> Tensor:
        return 1.0001 * aten.silu_backward(t, args[0])

    monkeypatch.setitem(RULES, aten.silu.default, (1, wrong))
    chosen = Differentiable(network)
    check_call(network, chosen)
    assert chosen.finding is not None
    assert chosen.finding.refusal is not None
    assert "off by 1e-04" in chosen.finding.text


def test_a_derivative_of_zero_is_no_reason_to_doubt() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    chosen = Differentiable(network)
    chosen.shared_jvp((X.float(),), (1.0,))  # the same shift for all is taken off again
    assert chosen.finding is not None
    assert chosen.finding.refusal is None


def test_without_any_forward_derivative_to_compare_with() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 2 * x * grad

    chosen = Differentiable(Square.apply)
    _, derivative = chosen.shared_jvp((X.clone().requires_grad_(),), (1.0,))
    assert torch.allclose(derivative, 2 * X)
    assert chosen.finding == Finding()
    assert "not checked" in chosen.finding.text


WRAPPED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "compiled": (lambda n: torch.compile(n, backend="eager"), "compiled"),
    "threads": (nn.DataParallel, "threads"),
    "inside": (lambda n: nn.Sequential(nn.DataParallel(n)), "threads"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap, words = WRAPPED[name]
    inner = nn.Linear(4, 4, dtype=F64)
    made = attempts(monkeypatch)
    chosen = Differentiable(wrap(inner))
    value, derivative = chosen.shared_jvp((X,), (1.0,))
    assert chosen.finding is not None
    assert words in chosen.finding.text
    assert torch.allclose(derivative, inner.weight.sum(1).expand_as(value))
    assert not made


def test_compiled_in_place() -> None:
    network = nn.Linear(4, 4, dtype=F64)
    network.compile(backend="eager")
    chosen = Differentiable(network)
    chosen.shared_jvp((X,), (1.0,))
    assert chosen.finding is not None
    assert "compiled" in chosen.finding.text


def test_distributed(tmp_path: Any) -> None:
    """The loss is to be wrapped, with the network inside, where one pass is right."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        wrap = nn.parallel.DistributedDataParallel
        chosen = Differentiable(wrap(nn.Linear(4, 4, dtype=F64)))
        chosen.shared_jvp((X,), (1.0,))
        assert chosen.finding is not None
        assert "DistributedDataParallel" in chosen.finding.text

        class Loss(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = nn.Sequential(nn.Linear(4, 4, dtype=F64), nn.SiLU())

            def forward(self, x: Tensor) -> Tensor:
                value, derivative = value_and_derivative(self.network, (x,), (1.0,))
                return (value - derivative).square().sum()

        loss = Loss()
        expected = gradients(loss, loss(X))
        assert all(
            torch.allclose(expected[name.removeprefix("module.")], grad)
            for name, grad in gradients(wrap(loss), wrap(loss)(X)).items()
        )
    finally:
        torch.distributed.destroy_process_group()


def test_modules_in_other_threads() -> None:
    inner = nn.Linear(4, 4, dtype=F64)

    def network(x: Tensor) -> Tensor:
        found: list[Tensor] = []
        thread = threading.Thread(target=lambda: found.append(inner(x)))
        thread.start()
        thread.join()
        return x + found[0]

    with pytest.raises(NotShared, match="several threads"):
        value_and_derivative(network, (X,), (1.0,))


def test_another_network_in_another_thread() -> None:
    other = nn.Linear(4, 4, dtype=F64)

    def network(x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: other(X))
        thread.start()
        thread.join()
        return x.sin()

    _, derivative = value_and_derivative(network, (X.clone(),), (1.0,))
    assert torch.allclose(derivative, X.cos())


def test_inside_other_transforms() -> None:
    network = nn.Sequential(nn.Linear(4, 4, dtype=F64), nn.Tanh())
    chosen = Differentiable(network)

    def slope(x: Tensor) -> Tensor:
        return chosen.shared_jvp((x,), (1.0,))[1]

    twice = torch.func.jvp(slope, (X,), (torch.ones_like(X),))[1]
    reference = forward_mode(lambda x: forward_mode(network, (x,), (1.0,))[1], (X,), (1.0,))[1]
    assert relative(twice, reference) < 1e-12
    assert chosen.finding is None
    with torch.inference_mode():
        assert relative(slope(X), forward_mode(network, (X,), (1.0,))[1]) < 1e-12
    assert chosen.finding is None


def test_compiled_as_a_whole() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 4)).to(F64)
    chosen = Differentiable(network)

    def loss() -> Tensor:
        value, derivative = chosen.shared_jvp((X,), (1.0,))
        return (value - derivative).square().sum()

    expected = gradients(network, loss())
    found = gradients(network, torch.compile(loss, backend="aot_eager", fullgraph=True)())
    assert all(relative(found[name], expected[name]) < 1e-10 for name in expected)


def test_an_error_of_the_network_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        Differentiable(lambda x: x * (1 / 0)).shared_jvp((X,), (1.0,))
