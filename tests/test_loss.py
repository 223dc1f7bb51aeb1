"""`Loss` and `LossModule`: what a caller gets wrong is told; EMA, autocast, compile, processes
work.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowdsl.diagnostics import DiagnosticError
from flowdsl.emit import compile_objective
from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.runtime.loss import Loss
from tests import objectives
from tests.compiler_support import DTYPE, Net, batch, networks

MEANFLOW = compile_objective(objectives.meanflow())
TVM = compile_objective(objectives.tvm())


class Plain(nn.Module):
    """A network in float32 of two layers; its times must arrive in full precision."""

    def __init__(self, size: int = 3, width: int = 16, scalars: int = 2) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(size + scalars, width), nn.Linear(width, size)
        self.names = nn.Embedding(12, width)

    def forward(self, z: Tensor, *times: Tensor, label: Tensor, **more: Tensor) -> Tensor:
        assert all(t.dtype == torch.float32 for t in times)
        scalars = [*times, *(more[k] for k in sorted(more))]
        hidden = self.one(torch.cat([z, *(s[:, None] for s in scalars)], 1))
        result: Tensor = self.two(torch.tanh(hidden + self.names(label - NULL_LABEL)))
        return result


def value_of(loss: Loss, network: Any, **more: Any) -> Tensor:
    data, label = batch(8)
    value, _ = loss(network, data, **{"label": label, **more})
    return value


def test_a_single_network_needs_no_name() -> None:
    nets = networks(objectives.meanflow())
    data, label = batch(8)
    draws = MEANFLOW.draw(data)
    by_name, _ = MEANFLOW({"u": nets["u"]}, data, draws=draws, label=label)
    alone, metrics = MEANFLOW(nets["u"], data, draws=draws, label=label)
    assert alone.item() == by_name.item()
    assert alone.shape == ()
    assert list(metrics) == ["target"]
    assert not metrics["target"].requires_grad


def test_no_label_is_no_class() -> None:
    nets = networks(objectives.meanflow())
    data, label = batch(8)
    draws = MEANFLOW.draw(data)
    none, _ = MEANFLOW(nets, data, draws=draws)
    null, _ = MEANFLOW(nets, data, draws=draws, label=torch.full_like(label, NULL_LABEL))
    assert none.item() == null.item()


def test_draws_decide_everything() -> None:
    nets = networks(objectives.tvm())
    data, label = batch(8)
    draws = TVM.draw(data)
    values = {TVM(nets, data, draws=draws, label=label)[0].item() for _ in range(3)}
    assert len(values) == 1
    torch.manual_seed(0)
    one = TVM(nets, data, label=label)[0].item()
    assert one != TVM(nets, data, label=label)[0].item()
    torch.manual_seed(0)
    assert one == TVM(nets, data, label=label)[0].item()


def test_terms_can_be_chosen() -> None:
    nets = networks(objectives.tvm())
    data, label = batch(8)
    draws = TVM.draw(data)
    both, metrics = TVM(nets, data, draws=draws, label=label)
    parts = [TVM(nets, data, draws=draws, label=label, terms=[t])[0] for t in ("target", "anchor")]
    assert both.item() == pytest.approx(sum(p.item() for p in parts), rel=1e-14)
    assert metrics["anchor"].item() == pytest.approx(parts[1].item(), rel=1e-14)


def test_a_player_step_evaluates_its_own_terms_only() -> None:
    objective = objectives.distillation()
    loss = compile_objective(objective)
    nets, (data, label) = networks(objective), batch(8)
    _, metrics = loss(nets, data, label=label, terms=["critic"])
    assert list(metrics) == ["critic"]
    assert nets["teacher"].calls == 0
    assert nets["fake"].calls == 1


def failing(call: Callable[[], object]) -> str:
    with pytest.raises(DiagnosticError) as caught:
        call()
    return str(caught.value)


def test_missing_and_extra_networks() -> None:
    nets = networks(objectives.tvm())
    message = failing(lambda: value_of(TVM, nets["F"]))
    assert "tvm has 2 networks, and one was given" in message
    assert '{"F": …, "slow": …}' in message
    message = failing(lambda: value_of(TVM, {"F": nets["F"], "slwo": nets["slow"]}))
    assert 'the network "slow" of tvm is missing' in message
    assert 'did you mean "slwo"?' in message
    message = failing(lambda: value_of(TVM, {**nets, "teacher": nets["F"]}))
    assert 'tvm has no network "teacher"' in message


def test_networks_that_cannot_be_called_so() -> None:
    def no_label(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return z

    message = failing(lambda: value_of(MEANFLOW, no_label))
    assert "cannot be called as the spec says" in message
    assert "u(z, t, r, label=…)" in message
    assert "no_label(z: 'Tensor', t: 'Tensor', r: 'Tensor')" in message

    def inner_error(z: Tensor, t: Tensor, r: Tensor, label: Tensor) -> Tensor:
        raise TypeError("of the network's own")

    with pytest.raises(TypeError, match="of the network's own"):
        value_of(MEANFLOW, inner_error)


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        (lambda z: z[:, :2], "returns shape (6, 2) for u"),
        (lambda z: z.sum(1), "returns shape (6,) for u"),
        (lambda z: (z, z), "returns a tuple"),
        (lambda z: z.long(), "returns torch.int64 for u"),
        (lambda z: None, "returns NoneType for u"),
    ],
)
def test_networks_that_return_something_else(
    returns: Callable[[Tensor], object], said: str
) -> None:
    message = failing(lambda: value_of(MEANFLOW, lambda z, t, r, label: returns(z)))
    assert said in message
    assert "required" in message


def test_heads_come_as_a_tuple() -> None:
    objective = objectives.imf()
    loss = compile_objective(objective)
    net: Callable[..., Tensor] = lambda z, h, label, lo, omega: z  # noqa: E731
    assert "a tuple (u, v)" in failing(lambda: value_of(loss, net))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"t": None}, 'the draw "t" is missing'),
        ({"u": torch.zeros(8)}, 'meanflow draws no "u"'),
        ({"t": torch.zeros(7)}, 'the draw "t" has the wrong shape'),
        ({"t": [0.0] * 8}, 'the draw "t" has the wrong shape'),
        ({"t": torch.zeros(8, dtype=torch.bfloat16)}, "too coarse for a time"),
        ({"diagonal": torch.ones(8, dtype=torch.bool)}, "its share is exactly 6"),
    ],
)
def test_wrong_draws(change: Mapping[str, Any], said: str) -> None:
    data, _ = batch(8)
    draws = {**MEANFLOW.draw(data), **change}
    draws = {k: v for k, v in draws.items() if v is not None}
    assert said in failing(lambda: value_of(MEANFLOW, networks(objectives.meanflow()), draws=draws))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"label": torch.zeros(8)}, "labels must be integers"),
        ({"label": torch.zeros(7, dtype=torch.long)}, "required"),
        ({"progress": 1.5}, "progress must lie in [0, 1], not 1.5"),
        ({"progress": float("nan")}, "progress must lie in [0, 1]"),
        ({"step": -1}, "step must be at least 0"),
        ({"terms": ["targt"]}, 'did you mean "target"?'),
        ({"terms": "target"}, "terms must be a list of names"),
    ],
)
def test_wrong_arguments(more: dict[str, Any], said: str) -> None:
    nets = networks(objectives.meanflow())
    assert said in failing(lambda: value_of(MEANFLOW, nets, **more))


@pytest.mark.parametrize("data", [torch.zeros(4, 3, dtype=torch.uint8), torch.zeros(4), [1.0]])
def test_wrong_data(data: Any) -> None:
    assert failing(lambda: MEANFLOW.draw(data)).startswith("error[data]")


def test_jump_and_velocity() -> None:
    nets = networks(objectives.tvm())
    F = nets["F"]
    z, label = batch(6)
    t, s = torch.full((6,), 0.9, dtype=DTYPE), torch.linspace(0, 0.8, 6, dtype=DTYPE)
    w = torch.full_like(t, 3.0)
    found = TVM.jump(nets, z, t, s, label=label, w=3)
    expected = z + ((s - t) * 3)[:, None] * F(z, t, s, label=label, w=w)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(TVM.jump(F, z, t, t, label=label), z, rtol=0, atol=0)
    found = TVM.velocity(F, z, 0.9, label=label, w=3)
    torch.testing.assert_close(found, 3 * F(z, t, t, label=label, w=w), rtol=1e-14, atol=0)
    # d/ds of the jump at s = t is the velocity
    h = 1e-6
    slope = (TVM.jump(F, z, t, t + h, label=label) - TVM.jump(F, z, t, t - h, label=label)) / (
        2 * h
    )
    torch.testing.assert_close(slope, TVM.velocity(F, z, t, label=label), rtol=1e-6, atol=1e-8)
    assert 'has no condition "ww"' in failing(lambda: TVM.jump(F, z, t, s, ww=1))
    assert "one entry per sample" in failing(lambda: TVM.jump(F, z, t[:3], s))


def test_velocity_of_a_regression() -> None:
    loss = compile_objective(objectives.flow_matching())
    nets = networks(objectives.flow_matching())
    z, label = batch(4)
    time = torch.full((4,), 0.3, dtype=DTYPE)
    expected = nets["v"](z, time, label=label)
    torch.testing.assert_close(loss.velocity(nets["v"], z, 0.3, label=label), expected)
    assert loss.signature.sampler == "velocity"
    assert "learns no flow map to jump with" in failing(lambda: loss.jump(nets["v"], z, 1, 0))


@pytest.mark.parametrize("predicts", ["data", "noise"])
def test_velocity_is_solved_from_what_is_predicted(predicts: str) -> None:
    d = objectives.Draft("regression")
    d.draw("t", objectives.law("uniform", 0, 1))
    d.network("g", "z t")
    t = objectives.time("t")
    prediction = objectives.Evaluate("g", "g", (objectives.z(t), t))
    target = objectives.DATA if predicts == "data" else objectives.NOISE
    term = objectives.Term("t", "t", prediction, target, objectives.error(prediction, target))
    loss = compile_objective(d.objective(term))
    torch.manual_seed(0)
    data, noise = torch.randn(5, 3, dtype=DTYPE), torch.randn(5, 3, dtype=DTYPE)
    time = torch.linspace(0.1, 0.9, 5, dtype=DTYPE)
    z = (1 - time)[:, None] * data + time[:, None] * noise
    perfect = data if predicts == "data" else noise
    found = loss.velocity(lambda z, t: perfect, z, time)
    torch.testing.assert_close(found, noise - data, rtol=1e-12, atol=1e-12)


def test_frozen_parameters_receive_nothing_even_unbound() -> None:
    objective = objectives.distillation()
    loss = compile_objective(objective)
    nets, (data, label) = networks(objective), batch(8)
    nets["teacher"].requires_grad_(True)
    value, _ = loss(nets, data, label=label)
    value.backward()
    assert all(p.grad is None for p in nets["teacher"].parameters())
    assert all(p.requires_grad for p in nets["teacher"].parameters())
    assert any(p.grad is not None for p in nets["F"].parameters())


def test_averages() -> None:
    fast = networks(objectives.tvm())["F"]
    module = TVM.bind(fast)
    slow = module.networks["slow"]
    assert isinstance(slow, Net)
    assert slow is not fast
    assert not any(p.requires_grad for p in slow.parameters())
    start = [p.clone() for p in slow.parameters()]
    with torch.no_grad():
        for p in fast.parameters():
            p.add_(1)
    module.update_averages()
    for before, after, now in zip(start, slow.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(after, 0.99 * before + 0.01 * now)
    assert set(dict(module.named_parameters())) >= {
        "networks.F.inner.weight", "networks.slow.inner.weight",
    }  # fmt: skip
    own = copy.deepcopy(fast)
    assert TVM.bind({"F": fast, "slow": own}).networks["slow"] is own
    assert 'the network "F" of tvm is missing' in failing(lambda: TVM.bind({"G": fast}))


def test_bound_is_unbound() -> None:
    nets = networks(objectives.tvm())
    data, label = batch(8)
    draws = TVM.draw(data)
    module = TVM.bind(nets)
    one, metrics = module(data, label=label, draws=draws)
    two, _ = TVM(nets, data, label=label, draws=draws)
    assert one.item() == two.item()
    assert set(metrics) == {"target", "anchor"}
    assert repr(TVM) == "Loss(tvm: networks F, slow; terms target, anchor)"


def test_bound_losses_can_be_copied_and_pickled() -> None:
    module = TVM.bind(networks(objectives.tvm())["F"])
    data, label = batch(8)
    draws = TVM.draw(data)
    value, _ = module(data, label=label, draws=draws)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert again(data, label=label, draws=draws)[0].item() == value.item()
        assert again.loss.source == TVM.source


def test_plain_functions_can_be_bound() -> None:
    module = MEANFLOW.bind(lambda z, t, r, label: z * (t - r)[:, None])
    assert torch.isfinite(module(torch.randn(4, 2))[0])


@pytest.mark.parametrize("loss", [MEANFLOW, TVM], ids=["meanflow", "tvm"])
def test_autocast_keeps_times_in_full_precision(loss: Loss) -> None:
    torch.manual_seed(0)
    network = Plain(scalars=3 if loss is TVM else 2)
    module = loss.bind(network)
    data = torch.randn(64, 3)
    draws = loss.draw(data)
    exact, _ = module(data, draws=draws)
    exact.backward()
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = module(data, draws=draws)
    assert value.dtype == torch.float32
    value.backward()
    assert value.item() == pytest.approx(exact.item(), rel=0.03)
    found = [p.grad for p in network.parameters() if p.grad is not None]
    for a, b in zip(found, gradients, strict=True):
        assert float((a - b).norm()) < 0.1 * float(b.norm()) + 1e-4


@pytest.mark.parametrize("loss", [MEANFLOW, TVM], ids=["meanflow", "tvm"])
def test_compiled_by_torch(loss: Loss) -> None:
    """One graph without breaks; strided and offset times do no harm."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    module = loss.bind(Plain(scalars=3 if loss is TVM else 2))
    data = torch.randn(16, 3)
    draws = loss.draw(data)
    fullgraph = loss is MEANFLOW  # TVM's dropped rows are counted by the draw: one break
    compiled = torch.compile(module, backend="aot_eager", fullgraph=fullgraph)
    for each in range(2):
        if each:
            draws = {k: torch.stack([v, v], -1)[..., 1] for k, v in loss.draw(data).items()}
        found = []
        for call in (compiled, module):
            module.zero_grad(set_to_none=True)
            value, _ = call(data, draws=draws)
            value.backward()
            found.append((value.item(), [p.grad.clone() for p in module.parameters()
                                         if p.grad is not None]))  # fmt: skip
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
        for a, b in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def _shards(draws: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in draws.items()}


def _process(rank: int, folder: str) -> None:
    """One rank. They meet in a file: a port that was free may be taken before it is bound, and the
    rank that answers at a port may be gone while the other still asks."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    saved = torch.load(Path(folder) / "batch.pt", weights_only=True)
    for name in ("meanflow", "tvm", "distillation"):
        objective = objectives.ALL[name]()
        loss = compile_objective(objective)
        module = loss.bind(dict(networks(objective)))
        model = DistributedDataParallel(module, find_unused_parameters=False)
        part = saved[name]
        rows = part["rows"][rank]
        for _ in range(3):
            model.zero_grad()
            value, _ = model(
                part["data"][rows], label=part["label"][rows], draws=_shards(part["draws"], rows)
            )
            value.backward()
        gradients = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
        torch.save(gradients, Path(folder) / f"{name}_{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    saved: dict[str, Any] = {}
    expected: dict[str, dict[str, Tensor]] = {}
    for name in ("meanflow", "tvm", "distillation"):
        objective = objectives.ALL[name]()
        loss = compile_objective(objective)
        data, label = batch(80)
        halves = [loss.draw(data[:40], generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
        draws = {k: torch.cat([h[k] for h in halves]) for k in halves[0]}
        rows = torch.arange(80).reshape(2, 40)
        saved[name] = {"data": data, "label": label, "draws": draws, "rows": rows}
        module = loss.bind(dict(networks(objective)))
        value, _ = module(data, label=label, draws=draws)
        value.backward()
        expected[name] = {k: p.grad for k, p in module.named_parameters() if p.grad is not None}
    torch.save(saved, tmp_path / "batch.pt")
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    for name, gradients in expected.items():
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{name}_{rank}.pt", weights_only=True)
            assert found.keys() == gradients.keys()
            scale = max(float(g.norm()) for g in gradients.values())
            for key, gradient in gradients.items():
                assert float((found[key] - gradient).norm()) < 1e-12 * scale, (name, key)
