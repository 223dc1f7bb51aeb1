"""Networks with several heads, asked for some of them: the same numbers, and less work."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import flowdsl
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.agreement import outcome
from flowdsl.runtime.bench.counting import FlopCounter
from flowdsl.runtime.bench.steps import loss_step, make_batch, trainable
from flowdsl.runtime.compiling import CheckedCompiled
from flowdsl.runtime.contract import Argument, NetworkSignature
from flowdsl.runtime.loss import Loss, LossModule
from flowdsl.runtime.nets import SIZES, configure, network_from_config
from flowdsl.runtime.tangents import Differentiable, Finding, NotShared

SIZE = replace(SIZES["nano"], name="test", depth=3, width=16, heads=2)
ROLE = NetworkSignature(
    name="net",
    arguments=(Argument("z", "state"), Argument("t", "time")),
    conditions=(),
    heads=(Argument("u", "state"), Argument("v", "state"), Argument("w", "scalar")),
)
HEADS = ("u", "v", "w")
ASKED = [(("u",), ("u",)), (("u", "v"), ("u",)), (("u", "v"), ("v",)), ((), ("v", "w"))]


def dit(role: NetworkSignature = ROLE, own_blocks: int = 2) -> nn.Module:
    config = configure(role, shape=(1, 8, 8), classes=10, patch=2)
    torch.manual_seed(0)
    network = network_from_config(replace(config, size=SIZE, own_blocks=own_blocks)).double()
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    return network


def point() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, float]]:
    torch.manual_seed(1)
    z, along = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    return (z, torch.rand(4, dtype=torch.float64)), (along, 1.0)


def reference(network: nn.Module) -> tuple[Any, Any]:
    arguments, (along, _) = point()
    found = torch.func.jvp(network, arguments, (along, torch.ones_like(arguments[1])))
    return found[0], found[1]


def test_computes_the_heads_that_are_named() -> None:
    network = dit()
    arguments, _ = point()
    whole = network(*arguments)
    seen: list[nn.Module] = []
    heads = cast(nn.ModuleList, network.heads)
    for head in heads:
        head.register_forward_hook(lambda module, *_: seen.append(module))
    for name, head, wanted in zip(HEADS, heads, whole, strict=True):
        seen.clear()
        results = network(*arguments, only_heads=(name,))
        assert seen == [head]
        found = dict(zip(HEADS, results, strict=True))
        assert torch.equal(found.pop(name), wanted)
        assert list(found.values()) == [None, None]


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize(("value", "derivative"), ASKED)
def test_values_derivatives_and_gradients_are_those_of_the_whole(
    value: tuple[str, ...], derivative: tuple[str, ...], refused: bool
) -> None:
    network = dit()
    values, derivatives = reference(network)
    finding = Finding(NotShared("in this test")) if refused else None
    engine = Differentiable(network, finding, HEADS)
    asked = engine.only(value, derivative)
    for _ in range(2):  # tried and compared at first, trusted later
        found = asked.shared_jvp(*point())
        assert engine.finding is not None
        assert (engine.finding.refusal is not None) == refused
        for i, name in enumerate(HEADS):
            if name in value:
                torch.testing.assert_close(found[0][i], values[i], rtol=1e-12, atol=1e-12)
            if name in derivative:
                torch.testing.assert_close(found[1][i], derivatives[i], rtol=1e-10, atol=1e-10)
                assert not found[1][i].requires_grad
            else:
                assert found[1][i] is None
    if value:
        parameters = list(network.parameters())
        chosen = [HEADS.index(name) for name in value]
        ours = sum(found[0][i].square().sum() for i in chosen)
        theirs = sum(network(*point()[0])[i].square().sum() for i in chosen)
        for a, b in zip(
            torch.autograd.grad(ours, parameters, allow_unused=True),
            torch.autograd.grad(theirs, parameters, allow_unused=True),
            strict=True,
        ):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_recorded_derivatives() -> None:
    network = dit()
    values, derivatives = reference(network)
    found = Differentiable(network, None, HEADS).only(("v",), ("u",)).jvp(*point())
    torch.testing.assert_close(found[0][1], values[1])
    torch.testing.assert_close(found[1][0], derivatives[0])
    assert found[1][0].requires_grad
    assert found[0][2] is found[1][1] is found[1][2] is None


def test_no_derivative_is_taken_beside_a_head_that_needs_none() -> None:
    engine = Differentiable(dit(), Finding(), HEADS)
    work = []
    for asked in (engine.only(HEADS, ("u",)), engine.only(HEADS, HEADS)):
        with FlopCounter() as counter:
            asked.shared_jvp(*point())
        work.append(counter.total)
    with FlopCounter() as counter:
        engine(*point()[0])
    # of 7 blocks, the head u depends on 3
    beside = [each - counter.total for each in work]
    assert beside[0] == pytest.approx(beside[1] * 3 / 7, rel=0.02)


def test_a_network_that_cannot_leave_heads_out_is_called_as_always() -> None:
    def plain(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return z, 2 * z, t

    engine = Differentiable(plain, None, HEADS)
    assert engine.only(("u",), ("v",)) is engine
    one = Differentiable(dit(replace(ROLE, heads=ROLE.heads[:1])), None, ("u",))
    assert one.only(("u",)) is one


def test_a_loss_leaves_out_the_heads_that_it_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = flowdsl.load("imf")
    best, plain = objective.compile(), objective.compile(optimize=False)
    network = dit(best.signature.networks[0])
    batch = make_batch(
        best.signature, (1, 8, 8), 8, 10, torch.float64, torch.device("cpu"),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    draws = best.draw(batch.data, generator=torch.Generator().manual_seed(2))
    work, outcomes = [], []
    for loss, able in ((plain, True), (best, True), (best, False)):
        monkeypatch.setattr(type(network), "takes_only_heads", able)
        module = loss.bind(network)
        step = loss_step(module, trainable(module), batch, draws, 0.5)
        step()  # tries the network
        with FlopCounter() as counter:
            outcomes.append(outcome(trainable(module), step))
        work.append(counter.total)
    for found in outcomes[1:]:
        assert found.value == pytest.approx(outcomes[0].value, rel=1e-12)
        for name, gradient in found.gradients.items():
            torch.testing.assert_close(gradient, outcomes[0].gradients[name], rtol=1e-9, atol=1e-11)
    assert work[1] < 0.9 * work[2] < 0.8 * work[0]


class Own(nn.Module):
    """Somebody's network for the role `net` of imf, which can leave out either head."""

    takes_only_heads = True

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(5, 8, dtype=torch.float64)
        self.heads = nn.ModuleDict({n: nn.Linear(8, 2, dtype=torch.float64) for n in ("u", "v")})

    def forward(
        self, z: Tensor, *numbers: Tensor, only_heads: Any = None, label: Any = None, **w: Tensor
    ) -> Any:
        times = [x.to(z.dtype)[:, None] for x in (*numbers, *w.values())]
        hidden = self.trunk(torch.cat([z, *times], 1)[:, :5]).tanh()
        asked = ("u", "v") if only_heads is None else only_heads
        return tuple(self.heads[n](hidden) if n in asked else None for n in ("u", "v"))


@cache
def imf() -> Loss:
    return flowdsl.load("imf").compile(fixed_shapes=True)


def own_steps(network: nn.Module) -> tuple[LossModule, dict[str, Any]]:
    loss = imf()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    return loss.bind(network), {"data": data, "draws": loss.draw(data, generator=generator)}


def test_somebodys_network_leaves_heads_out_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, checked against the loss as written, with fewer products than all heads need."""
    products = []

    def look(graph: torch.fx.GraphModule, example: Any) -> Any:
        products.append(sum("linear" in str(n.target) for n in graph.graph.nodes))
        return graph.forward

    values = []
    for able in (True, False):
        torch.compiler.reset()
        torch.manual_seed(0)
        monkeypatch.setattr(Own, "takes_only_heads", able)
        module, given = own_steps(Own())
        compiled = CheckedCompiled(module, "eager")
        turned = torch.compile(module, backend=look, fullgraph=True)
        monkeypatch.setattr(compiled, "_compiled", turned)
        values.append(compiled(**given)[0])
        assert compiled.checks == 1
    assert len(products) == 2
    assert 0 < products[0] < products[1]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)


class Deaf(Own):
    def forward(self, z: Tensor, h: Tensor, *, label: Any, omega: Any, lo: Any, hi: Any) -> Any:
        return super().forward(z, h, label=label, omega=omega, lo=lo, hi=hi)


class Short(Own):
    def forward(self, *arguments: Tensor, only_heads: Any = None, **conditions: Any) -> Any:
        found = super().forward(*arguments, only_heads=only_heads, **conditions)
        return tuple(x for x in found if x is not None)


class Forgetful(Own):
    def forward(self, *arguments: Tensor, only_heads: Any = None, **conditions: Any) -> Any:
        u, v = super().forward(*arguments, only_heads=only_heads, **conditions)
        return (u if only_heads is None else None), v


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Deaf, "says that it takes only_heads, and has no such argument"),
        (Short, "asked for v alone by only_heads, it returns 1 of 2 values"),
        (Forgetful, "asked for u, v alone by only_heads, it returns None for u"),
    ],
)
def test_a_network_that_does_not_do_what_it_says_is_told(
    network: type[nn.Module], words: str
) -> None:
    module, given = own_steps(network())
    with pytest.raises(DiagnosticError, match=words):
        module(**given)
    if network is Short:
        torch.compiler.reset()
        with pytest.raises(DiagnosticError, match=words):
            CheckedCompiled(module, "eager")(**given)


def test_emitted_code_asks_for_what_it_reads() -> None:
    source = flowdsl.load("imf").emit()
    assert 'only(net, ("v",))' in source
    assert 'only(net, ("u", "v"), ("u",))' in source
    assert "only(" not in flowdsl.load("imf").emit(optimize=False)
    assert "only(" not in flowdsl.load("meanflow").emit()
