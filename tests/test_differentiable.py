"""Derivatives of whole networks: exact, at their price, and by two passes where they must be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tangent_support import F64, PlainDiT, UNet, flops, forward_mode, gradients, relative
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from flowdsl.runtime.bench.counting import FlopCounter
from flowdsl.runtime.contract import Argument, NetworkSignature
from flowdsl.runtime.nets import build_network
from flowdsl.runtime.tangents import (
    Differentiable,
    Finding,
    NotShared,
    ledger,
    mode,
    reach,
    value_and_derivative,
)
from flowdsl.runtime.tangents.ledger import Ledger

Case = tuple[nn.Module, tuple[Tensor, ...], tuple[Any, ...], dict[str, Tensor]]


def bundled(size: str = "nano", side: int = 8, **parts: Any) -> nn.Module:
    times = (Argument("t", "time"), Argument("r", "time"))
    signature = NetworkSignature(
        "u",
        (Argument("z", "state"), *times),
        (Argument("label", "label"),),
        (Argument("u", "state"),),
    )
    network = build_network(
        signature, shape=(4, side, side), classes=3, size=size, patch=2, parts=parts
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


class Adapted(nn.Module):
    """A layer with a correction of low rank beside it, as for fine-tuning."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2)
        self.up = nn.Linear(2, layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def changed(network: Any) -> nn.Module:
    """A bundled network with parts replaced or overruled, whose rules the old ones may not be."""
    first, second, *_ = network.blocks
    first.inner = Adapted(first.inner)
    first.attention.output = Adapted(first.attention.output)
    second.attention.register_forward_hook(lambda module, inputs, output: output.sin())
    second.outer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * inputs[0],))
    torch.nn.utils.parametrizations.weight_norm(second.inner)
    return network


def case(network: nn.Module, batch: int = 3, side: int = 8, dtype: torch.dtype = F64) -> Case:
    torch.manual_seed(0)
    z, along = torch.randn(2, batch, 4, side, side, dtype=dtype)
    t = torch.rand(batch, dtype=dtype)
    label = torch.arange(batch) % 3
    return network.to(dtype), (z, t, t * t), (along, 1.0, None), {"label": label}


def unet() -> Case:
    torch.manual_seed(0)
    z, along = torch.randn(2, 3, 2, 8, 8, dtype=F64)
    network = UNet().to(F64)
    return network, (z, torch.rand(3, dtype=F64)), (along, torch.rand(3, dtype=F64)), {}


def channels_last() -> Case:
    network, point, *others = unet()
    network.eval()  # dropout draws in the order of memory
    network.to(memory_format=torch.channels_last)
    return network, (point[0].to(memory_format=torch.channels_last), point[1]), *others


def total(value: Any) -> Tensor:
    parts = value if isinstance(value, tuple) else (value,)
    return sum((x.square().sum() for x in parts), torch.zeros((), dtype=F64))


def same_pass(case: Case, run: Callable[[], tuple[Any, Any]]) -> None:
    """Value and all gradients must be those of the plain pass, bit by bit, the derivative exact."""
    network, point, direction, named = case
    torch.manual_seed(1)
    value, derivative = run()
    after = torch.get_rng_state()
    mine = gradients(network, total(value))
    torch.manual_seed(1)
    alone = network(*point, **named)
    assert torch.equal(after, torch.get_rng_state())
    theirs = gradients(network, total(alone))
    torch.manual_seed(1)
    # PyTorch derives group norms of contiguous tensors only
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    _, reference = forward_mode(plain, tuple(x.contiguous() for x in point), direction, **named)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    parts = [x if isinstance(x, tuple) else (x,) for x in (value, alone, derivative, reference)]
    for found, expected, slope, exact in zip(*parts, strict=True):
        assert torch.equal(found, expected)
        assert not slope.requires_grad
        assert relative(slope, exact.detach()) < 1e-12


CASES: dict[str, Callable[[], Case]] = {
    "transformer": lambda: case(PlainDiT()),
    "bundled": lambda: case(bundled()),
    "bundled, tokens in context": lambda: case(bundled(conditioning="in_context")),
    "bundled, normalised modulation": lambda: case(bundled(modulation="normalised", qk_norm=True)),
    "bundled, layer norms": lambda: case(bundled(norm="layer")),
    "bundled, decoupled times": lambda: case(bundled(times="decoupled")),
    "bundled, changed by hooks and adapters": lambda: case(changed(bundled())),
    "u-net": unet,
    "u-net in channels last": channels_last,
}


@pytest.mark.parametrize("name", CASES)
def test_networks_in_one_pass(name: str) -> None:
    network, point, direction, named = given = CASES[name]()
    same_pass(given, lambda: value_and_derivative(network, point, direction, **named))


@pytest.mark.parametrize("name", CASES)
def test_networks_in_two_passes(name: str) -> None:
    network, point, direction, named = given = CASES[name]()
    slow = Differentiable(network, Finding(NotShared("asked for")))
    same_pass(given, lambda: slow.shared_jvp(point, direction, **named))


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("bundled")])
def test_gradients_through_the_derivative_of_a_network(name: str) -> None:
    found = []
    for derive in (lambda n, *rest, **named: Differentiable(n).jvp(*rest, **named), forward_mode):
        torch.manual_seed(0)
        network, point, direction, named = CASES[name]()
        value, derivative = derive(network, point, direction, **named)
        found.append(gradients(network, total(value * derivative) + total(derivative)))
    mine, theirs = found
    assert mine.keys() == theirs.keys()
    assert all(relative(mine[name], theirs[name]) < 1e-10 for name in theirs)


@pytest.mark.parametrize("name", CASES)
def test_networks_by_choice(name: str) -> None:
    network, point, direction, named = given = CASES[name]()
    chosen = Differentiable(network)
    same_pass(given, lambda: chosen.shared_jvp(point, direction, **named))
    assert chosen.finding is not None
    assert chosen.finding.refusal is None
    assert chosen.finding.error is not None
    assert chosen.finding.error < 1e-12
    assert "one pass" in chosen.finding.text
    same_pass(given, lambda: chosen.shared_jvp(point, direction, **named))


def test_one_tensor_as_two_arguments() -> None:
    def network(x: Tensor, y: Tensor) -> Tensor:
        return x.sin() * y

    x = torch.randn(4, dtype=F64)
    value, derivative = value_and_derivative(network, (x, x), (2.0, None))
    assert torch.equal(value, x.sin() * x)
    assert torch.allclose(derivative, 2 * x.cos() * x)
    _, derivative = value_and_derivative(network, (x, x), (None, None))
    assert not derivative.any()


def test_what_the_network_returns_unchanged() -> None:
    x = torch.randn(4, dtype=F64, requires_grad=True)
    (value, fixed), (derivative, none) = value_and_derivative(
        lambda x: (x, torch.ones(2)), (x,), (3.0,)
    )
    assert torch.equal(value, x)
    assert torch.equal(derivative, torch.full_like(x, 3.0))
    assert torch.equal(fixed, torch.ones(2))
    assert not none.any()
    assert torch.autograd.grad(value.sum(), x)[0].eq(1).all()


@pytest.mark.parametrize("build", [PlainDiT, bundled])
def test_half_precision(build: Callable[[], nn.Module]) -> None:
    """Under autocast: the same pass, and as close to float32 as PyTorch's own derivative."""
    network, point, direction, named = case(build(), dtype=torch.float32)
    exact = value_and_derivative(network, point, direction, **named)[1]
    with torch.autocast("cpu", torch.bfloat16):
        value, derivative = value_and_derivative(network, point, direction, **named)
        alone = network(*point, **named)
        with torch.no_grad():
            theirs = forward_mode(network, point, direction, **named)[1]
        chosen = Differentiable(network)
        chosen.shared_jvp(point, direction, **named)
    assert torch.equal(value, alone)
    mine, other = gradients(network, total(value)), gradients(network, total(alone))
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert relative(derivative.float(), exact) < 1.2 * relative(theirs.float(), exact) + 1e-4
    assert chosen.finding is not None
    assert chosen.finding.refusal is None


class Cost:
    """In units of one forward pass: 6 blocks of width 192, 64 tokens."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.network, self.point, self.direction, self.named = case(build(), 2, 16, torch.float32)
        self.forward = flops(torch.no_grad()(self.plain))

    def plain(self) -> Tensor:
        return self.network(*self.point, **self.named)

    def share(self) -> Tensor:
        call = (self.network, self.point, self.direction)
        value, derivative = value_and_derivative(*call, **self.named)
        return (value - derivative).square().sum()


BUILDS = [
    pytest.param(lambda: PlainDiT(192, 6, 3, 16), id="plain"),
    pytest.param(lambda: bundled("micro", 16), id="bundled"),
]


@pytest.mark.parametrize("build", BUILDS)
def test_price_in_products(build: Callable[[], nn.Module]) -> None:
    cost = Cost(build)
    recorded = flops(lambda: cost.plain().square().sum().backward()) / cost.forward
    assert 2.9 < recorded < 3.1
    assert flops(lambda: cost.share().backward()) / cost.forward < recorded + 1.1


def test_bundled_layers_are_seen_as_wholes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of whole layers spare the time that it takes to look at every operation."""
    cost, seen = Cost(lambda: bundled("micro", 16)), []
    run = mode.Beside._run

    def count(self: Any, func: Any, *rest: Any) -> Any:
        seen.append(func)
        return run(self, func, *rest)

    monkeypatch.setattr(mode.Beside, "_run", count)
    cost.share()
    whole = len(seen)
    seen.clear()
    monkeypatch.setattr("flowdsl.runtime.nets.duals.TangentMode", type(None))
    cost.share()
    assert whole < 0.4 * len(seen)


def test_a_mode_in_between_sees_every_operation() -> None:
    """A rule of a whole layer would hide its products from a counter that is closer to them."""
    network, point, direction, named = case(bundled("micro"))

    def counted(*arguments: Any, **conditions: Any) -> Tensor:
        with FlopCounter() as counter:
            value = network(*arguments, **conditions)
        counts.append(counter.total)
        return value

    counts: list[int] = []
    counted(*point, **named)
    same = (network, point, direction, named)
    same_pass(same, lambda: value_and_derivative(counted, point, direction, **named))
    assert counts[1] == counts[0]


@pytest.mark.parametrize("build", BUILDS)
def test_price_in_memory(build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tangents may at no time take more than a sixth of what the pass keeps for its gradient."""
    cost = Cost(build)
    saved = saved_bytes(cost.plain, {id(p) for p in cost.network.parameters()})
    assert peak_of_tangents(cost.share, monkeypatch) < saved / 6
    monkeypatch.setattr(Ledger, "close", lambda *_: None)
    monkeypatch.setattr(Ledger, "drop_unreachable", lambda *_: None)
    assert peak_of_tangents(cost.share, monkeypatch) > 0.8 * saved


class Loop(nn.Module):
    """Many layers in the body of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(20))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = nn.functional.silu(layer(x))
        return x


def sequence() -> nn.Module:
    return nn.Sequential(*[m for layer in Loop().layers for m in (layer, nn.SiLU())])


@pytest.mark.parametrize("build", [Loop, sequence])
def test_values_out_of_reach(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a module computed and can no longer use has no tangent, though autograd keeps it."""
    network, x = build(), torch.randn(64, 32)
    peak = peak_of_tangents(lambda: value_and_derivative(network, (x,), (1.0,)), monkeypatch)
    assert peak < 8 * x.nbytes
    monkeypatch.setattr(ledger, "unreachable", lambda: reach._gone)  # as where it cannot be told
    peak = peak_of_tangents(lambda: value_and_derivative(network, (x,), (1.0,)), monkeypatch)
    assert peak > 15 * x.nbytes


class Aliases(nn.Module):
    """Makes another tensor of the same value, in the same place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.squeeze(1).view_as(x).tanh())


def test_one_value_as_several_tensors() -> None:
    inner = [Aliases() for _ in range(3)]

    def network(x: Tensor) -> Tensor:
        y, other = x * 2, (x * 3).squeeze(1)  # the tensor squeezed is gone, its value isn't
        for module in inner:
            y = y + module(y[:]) * y.flatten(1)
            y = y.squeeze(1) + 0 * module(x)
        return y * other

    x = torch.randn(3, 4, dtype=F64)
    _, derivative = value_and_derivative(network, (x,), (1.0,))
    assert relative(derivative, forward_mode(network, (x,), (1.0,))[1]) < 1e-12


def saved_bytes(step: Callable[[], Any], excluded: set[int]) -> int:
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if id(x if x._base is None else x._base) not in excluded:
            storages[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = step()
    assert kept is not None
    return sum(storages.values())


def peak_of_tangents(step: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> int:
    seen: list[tuple[StorageWeakRef, int]] = []
    peak = 0
    note = Ledger.note

    def watch(self: Ledger, x: Tensor, tangent: Tensor) -> None:
        nonlocal peak
        storage = tangent.untyped_storage()
        seen.append((StorageWeakRef(storage), storage.nbytes()))
        note(self, x, tangent)
        seen[:] = [s for s in seen if not s[0].expired()]
        peak = max(peak, sum({s[0].cdata: s[1] for s in seen}.values()))

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "note", watch)
        step()
    return peak
