"""Losses under torch.compile: one graph, the same value and gradients, and refused where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

import flowdsl
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.compiling import CheckedCompiled
from flowdsl.runtime.loss import LossModule
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.trainer import train
from tests.reference.networks import SmoothNetwork
from tests.training_support import TinyNet, tiny_dataset

SHAPE, BATCH, CLASSES = (2, 4, 4), 16, 5

#: Times and scalar conditions of the networks, and how many graphs a whole training needs at most:
#: one, or with a curriculum two per phase, the second for all numbers that change per step.
SHIPPED: dict[str, tuple[int, tuple[str, ...], int]] = {
    "flow_matching": (1, (), 1),
    "meanflow": (2, (), 1),
    "tvm": (2, ("w",), 1),
    "alphaflow": (2, (), 6),
    "trajectory_flow_matching": (2, (), 1),
    "shortcut": (2, (), 1),
}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def bound(name: str) -> LossModule:
    loss = flowdsl.load(name).compile(fixed_shapes=True)
    times, scalars, _ = SHIPPED[name]
    return loss.bind(
        {
            role.name: SmoothNetwork(SHAPE, times, scalars=scalars, classes=CLASSES, seed=i)
            for i, role in enumerate(loss.signature.networks)
        }
    )


def steps(module: LossModule, count: int) -> list[dict[str, Any]]:
    """The arguments of some steps spread over a training."""
    found = []
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        data = torch.randn(BATCH, *SHAPE, generator=generator, dtype=torch.float64)
        progress = step / (count - 1)
        draws = module.loss.draw(data, generator=generator, progress=progress)
        label = torch.randint(CLASSES, (BATCH,), generator=generator)
        given = {"label": label, "draws": draws, "progress": progress, "step": step}
        found.append({"data": data, "steps": count, **given})
    return found


def gradients(module: nn.Module, value: Tensor) -> list[Tensor]:
    learned = [p for p in module.parameters() if p.requires_grad]
    grads = torch.autograd.grad(value, learned, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(learned, grads, strict=True)]


@pytest.mark.parametrize("name", list(SHIPPED))
def test_shipped_objectives_compile_as_one_graph(name: str) -> None:
    module = bound(name)
    compiled = CheckedCompiled(module, "aot_eager")
    before = counters["stats"]["unique_graphs"]
    for given in steps(module, 9):
        value, terms = compiled(**given)
        expected, parts = module(**given)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        assert terms.keys() == parts.keys()
        for mine, other in zip(gradients(module, value), gradients(module, expected), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)
    made = counters["stats"]["unique_graphs"] - before
    assert 1 <= made <= SHIPPED[name][2]
    assert compiled.checks == made


def spoiled(factor: float) -> Callable[..., Any]:
    """A compiler whose backward pass is wrong by a factor."""

    def forward(graph: Any, inputs: Any) -> Any:
        return graph.forward

    def backward(graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            return [None if g is None else g * factor for g in graph.forward(*arguments)]

        return run

    return aot_autograd(fw_compiler=forward, bw_compiler=backward)


def test_wrong_gradients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value is right; only the gradients tell."""
    module = bound("flow_matching")
    for factor, refused in ((1.0, False), (1.0001, True)):
        torch.compiler.reset()
        compiled = CheckedCompiled(module, "aot_eager")
        monkeypatch.setattr(
            compiled, "_compiled", torch.compile(module, backend=spoiled(factor), fullgraph=True)
        )
        given = steps(module, 2)[0]
        if not refused:
            compiled(**given)
            continue
        with pytest.raises(DiagnosticError, match="computes something else") as caught:
            compiled(**given)
        assert "value off by 0.0e+00, gradient by 1.0e-04" in str(caught.value)


class _Square(torch.autograd.Function):
    """A rule of its own, which PyTorch 2.13 forgets inside a compiled derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] * tangent  # wrong on purpose: it shows who asks it


class Ruled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32, dtype=torch.float64)

    def forward(self, z: Tensor, t: Tensor, r: Tensor, *, label: Tensor) -> Tensor:
        rows = self.inner(z.flatten(1)) + (t - r)[:, None]
        return _Square.apply(rows).view_as(z)  # type: ignore[no-untyped-call,no-any-return]


class Broken(Ruled):
    def forward(self, z: Tensor, t: Tensor, r: Tensor, *, label: Tensor) -> Tensor:
        rows = self.inner(z.flatten(1)) + (t - r)[:, None]
        torch._dynamo.graph_break()
        return rows.tanh().view_as(z)


def test_a_rule_that_is_ignored_is_refused() -> None:
    loss = flowdsl.load("meanflow").compile(fixed_shapes=True)
    module = loss.bind(Ruled())
    with pytest.raises(DiagnosticError, match=r"does not compile as one graph|something else"):
        CheckedCompiled(module, "aot_eager")(**steps(module, 2)[0])


def test_a_network_that_breaks_the_graph_is_refused() -> None:
    loss = flowdsl.load("meanflow").compile(fixed_shapes=True)
    module = loss.bind(Broken())
    with pytest.raises(DiagnosticError, match="does not compile as one graph") as caught:
        CheckedCompiled(module, "aot_eager")(**steps(module, 2)[0])
    assert "flowdsl doctor --compile" in str(caught.value)


def test_compilers_have_names() -> None:
    with pytest.raises(DiagnosticError, match='did you mean "inductor"'):
        CheckedCompiled(bound("flow_matching"), "induktor")


class Dropping(TinyNet):
    """With dropout, and buffers that every call in training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, z: Tensor, t: Tensor, r: Tensor, **conditions: Tensor) -> Tensor:
        out = super().forward(z, t, r, **conditions)
        out = self.norm(out.flatten(1)).view_as(out)
        return nn.functional.dropout(out, 0.2, self.training)


def test_training_is_the_same(tmp_path: Any) -> None:
    """Losses, weights and buffers, with random numbers inside the network."""
    loss = flowdsl.load("flow_matching").compile(fixed_shapes=True)
    ends = []
    for words in ([], ["compile=true", "backend=aot_eager"]):
        torch.manual_seed(0)
        network = _velocity()
        config = make_config(["steps=4", "batch=16", "sample_every=0", "tensorboard=false", *words])
        result = train(
            loss, network, tiny_dataset(), config, run_dir=tmp_path / str(len(words)),
            progress=False,
        )  # fmt: skip
        ends.append((result.last, network.state_dict()))
    (plain, weights), (compiled, others) = ends
    assert plain["loss"] == pytest.approx(compiled["loss"], rel=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-7, msg=name)


def _velocity() -> nn.Module:
    class Velocity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Dropping()

        def forward(self, z: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
            return self.network(z, t, t, label=label)  # type: ignore[no-any-return]

    return Velocity()


def test_a_graph_does_not_hang_on_other_networks() -> None:
    """What the loss found out about networks that come and go is no part of a compiled graph."""
    module = bound("meanflow")
    first, second = steps(module, 2)
    module(**first)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    compiled(**first)
    other = bound("meanflow").networks["u"]
    module.loss(other, first["data"], draws=first["draws"], label=first["label"])
    assert module.loss.finding(other) is not None
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(**second)
    del other
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(**second)
