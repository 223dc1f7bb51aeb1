"""The trainer: steps that are not finite, its parts, and whom it teaches when."""

from __future__ import annotations

import os
import signal
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_support import (
    QUICK,
    Game,
    MeanFlow,
    TinyNet,
    Watched,
    at,
    go_on,
    log_of,
    nets,
    start,
    tiny_dataset,
    tiny_net,
)

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.contract import ObjectiveSignature
from flowdsl.runtime.training.averages import EvaluationAverage, ramped_decay
from flowdsl.runtime.training.checkpoints import checkpoint_steps, load_checkpoint
from flowdsl.runtime.training.config import OptimizerConfig
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.players import Player, learning_rate
from flowdsl.runtime.training.trainer import resume, train

# -- numbers that are not finite ----------------------------------------------------------------


class Spoilt(MeanFlow):
    """The term `follow` is nan, or the gradient is, at some steps."""

    def __init__(self, bad, what="term") -> None:
        super().__init__(slow=True)
        self.bad, self.what = bad, what

    def bind(self, network):
        bound = super().bind(network)
        real = bound.forward

        def forward(data, *, step=0, **more):
            value, metrics = real(data, step=step, **more)
            if step in self.bad:
                if self.what == "term":
                    metrics["follow"] = torch.tensor(float("nan"))
                    value = value + float("nan")
                else:
                    zero = (value - value).square()  # its root has an infinite slope
                    value = value + zero.sqrt()
            return value, metrics

        bound.forward = forward
        return bound


def test_a_step_that_is_not_finite_is_skipped_and_named(tmp_path, capsys):
    skipped = {3, 4}
    train(Spoilt(skipped), {"u": tiny_net()}, tiny_dataset(), make_config(QUICK),
          run_dir=tmp_path / "run")  # fmt: skip
    said = capsys.readouterr().err
    assert "step 3: not finite: the term follow; the step is skipped" in said
    lines = log_of(tmp_path / "run")
    assert lines[0]["skipped"] == 2
    assert lines[1]["skipped"] == 0
    assert all(v == v for line in lines for v in line.values())
    weights = load_checkpoint(tmp_path / "run" / "checkpoints").tensors["networks"]
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_skipped_steps_move_nothing(tmp_path):
    nets = {"u": tiny_net()}
    before = {k: v.clone() for k, v in nets["u"].state_dict().items()}
    words = [*QUICK, "steps=4", "patience=9"]
    train(Spoilt({0, 1, 2, 3}), nets, tiny_dataset(), make_config(words),
          run_dir=tmp_path / "run", progress=False)  # fmt: skip
    tensors = load_checkpoint(tmp_path / "run" / "checkpoints").tensors
    for key, value in before.items():
        assert torch.equal(tensors["networks"][f"networks.u.{key}"], value)
        assert torch.equal(tensors["networks"][f"networks.slow.{key}"], value)
        assert torch.equal(tensors["ema-0.9"][f"u.{key}"], value)


@pytest.mark.parametrize(
    ("what", "words"), [("term", "the term follow"), ("gradient", "the gradient (norm nan)")]
)
def test_patience_ends_with_a_clear_message(tmp_path, what, words):
    loss = Spoilt(set(range(11, 24)), what)
    with pytest.raises(DiagnosticError) as caught:
        start(tmp_path / "run", loss=loss, words=["patience=3"])
    text = str(caught.value)
    assert "not finite for 3 steps in a row" in text
    assert words in text
    assert "learning_rate" in text
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == (10,)


def test_the_count_of_skipped_steps_survives_a_resume(tmp_path):
    loss = Spoilt(set(range(8, 24)))
    stopped = at(9, lambda: os.kill(os.getpid(), signal.SIGINT))
    start(tmp_path / "run", stopped, loss, words=["patience=4"])
    with pytest.raises(DiagnosticError, match="not finite for 4 steps in a row") as caught:
        go_on(tmp_path / "run", loss=loss)
    assert "step  11" in str(caught.value)


# -- the parts ----------------------------------------------------------------------------------


def test_averages_follow_their_formula():
    torch.manual_seed(0)
    net = nn.ModuleDict({"u": TinyNet(width=4).double()})
    average = EvaluationAverage(net, 0.5)
    expected = {k: v.clone() for k, v in net.state_dict().items()}
    for step in range(6):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(net, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for key, value in net.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value
    for key, value in average.networks.state_dict().items():
        assert torch.allclose(value, expected[key], atol=1e-12)
        assert not torch.equal(value, net.state_dict()[key])
    assert ramped_decay(0.999, 0) == 0.1
    assert ramped_decay(0.999, 10**6) == 0.999
    assert all(not p.requires_grad for p in average.networks.parameters())


def test_averages_copy_buffers():
    net = nn.ModuleDict({"u": nn.BatchNorm1d(3)})
    average = EvaluationAverage(net, 0.9)
    net["u"](torch.randn(10, 3))
    average.update(net, 0)
    assert torch.equal(average.networks["u"].running_mean, net["u"].running_mean)
    assert int(average.networks["u"].num_batches_tracked) == 1


def test_learning_rates():
    constant = OptimizerConfig(learning_rate=2.0, warmup=4, schedule="constant")
    assert [learning_rate(constant, k, 100) for k in (0, 1, 3, 4, 99)] == [0.5, 1, 2, 2, 2]
    cosine = OptimizerConfig(learning_rate=2.0, warmup=0, schedule="cosine")
    assert learning_rate(cosine, 0, 100) == 2.0
    assert learning_rate(cosine, 50, 100) == pytest.approx(1.1)
    assert learning_rate(cosine, 100, 100) == pytest.approx(0.2)


def test_the_objectives_own_averages_move_once_per_step(tmp_path):
    counts = {"updates": 0}

    class Counted(MeanFlow):
        def bind(self, network):
            bound = super().bind(network)
            real = bound.update_averages

            def update(**when):
                counts["updates"] += 1
                real(**when)

            bound.update_averages = update
            return bound

    start(tmp_path / "run", loss=Counted(slow=True), words=["steps=7"])
    assert counts["updates"] == 7


def test_gradients_are_clipped_and_their_norm_is_logged(tmp_path):
    """One step from zero Adam moments is lr * sign; with plain clipping the logged norm is the true
    one.
    """
    net, loss, dataset = tiny_net(), MeanFlow(), tiny_dataset()
    config = make_config([*QUICK, "steps=1", "log_every=1", "optimizer.warmup=0"])
    torch.manual_seed(0)
    from flowdsl.runtime.randomness import derive_seed, generator

    reference = tiny_net()
    batch = dataset.batch(0, 0, 16)
    draws = loss.draw(batch.data, generator=generator(0, "draws", 0))
    torch.manual_seed(derive_seed(0, "network", 0))
    value, _ = loss.bind(reference)(batch.data, label=batch.label, draws=draws)
    value.backward()
    norm = torch.stack([p.grad.norm() for p in reference.parameters()]).norm()
    train(loss, net, dataset, config, run_dir=tmp_path / "run", progress=False)
    (line,) = log_of(tmp_path / "run")
    assert line["loss"] == pytest.approx(float(value.detach()), rel=1e-6)
    assert line["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert line["terms.target"] == pytest.approx(float(value.detach()), rel=1e-6)
    rate = line["learning_rate"]
    for (name, before), after, reference_one in zip(
        tiny_net().named_parameters(), net.parameters(), reference.parameters(), strict=True
    ):
        gradient = reference_one.grad
        moved = gradient.abs() > 1e-5  # far above Adam's epsilon
        expected = before.detach() - rate * gradient.sign()
        assert torch.allclose(after.detach()[moved], expected[moved], atol=2e-5), name


def test_training_learns(tmp_path):
    """On the diagonal the loss is a regression: the error of the trained mean must fall."""
    dataset, net = tiny_dataset(), tiny_net()
    words = ["steps=300", "batch=64", "sample_every=0", "tensorboard=no", "log_every=50",
             "optimizer.learning_rate=5e-3", "optimizer.warmup=10"]  # fmt: skip
    train(MeanFlow(), net, dataset, make_config(words), run_dir=tmp_path / "run", progress=False)
    from flowdsl.runtime.randomness import generator
    from flowdsl.runtime.sampling import sample

    label = torch.arange(300) % 3
    found = sample(MeanFlow(), net, (1, 4, 4), 300, 4, label=label, generator=generator(0, "x"))
    means = [float(found[label == k].mean()) for k in range(3)]
    assert means == pytest.approx([-1, 0, 1], abs=0.25)  # the data's means by class


class Precise(TinyNet):
    """Records the types that it is given and computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def forward(self, z, *times, label=None):
        inner = torch.nn.functional.linear(z.flatten(1), self.first.weight)
        self.seen |= {(time.dtype, inner.dtype) for time in times}
        return super().forward(z, *times, label=label)


def test_bfloat16_is_for_the_network_and_not_for_times(tmp_path):
    net = Precise()
    words = [*QUICK, "precision=bfloat16", "steps=4"]
    train(MeanFlow(), net, tiny_dataset(), make_config(words), run_dir=tmp_path / "run",
          progress=False)  # fmt: skip
    assert (torch.float32, torch.bfloat16) in net.seen
    assert all(time == torch.float32 for time, _ in net.seen)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    plain = Precise()
    train(MeanFlow(), plain, tiny_dataset(), make_config([*QUICK, "steps=4"]),
          run_dir=tmp_path / "plain", progress=False)  # fmt: skip
    assert {inner for _, inner in plain.seen} == {torch.float32}


# -- several networks ---------------------------------------------------------------------------

PLAYERS = (Player("student", ("a",), ("follow",), every=3), Player("critic", ("b",), ("lead",)))


def test_players_learn_their_own_networks_and_terms_in_their_turns(tmp_path):
    modules = nets()
    states: list[dict[str, torch.Tensor]] = []

    def look(step):
        states.append({k: m.first.weight.detach().clone() for k, m in modules.items()})

    train(Game(), modules, Watched(look), make_config([*QUICK, "steps=7"]),
          run_dir=tmp_path / "run", players=PLAYERS, progress=False)  # fmt: skip
    moved = {
        name: [not torch.equal(x[name], y[name]) for x, y in pairwise(states)] for name in modules
    }
    assert moved == {
        "a": [True, False, False, True, False, False],
        "b": [True] * 6,
        "teacher": [False] * 6,
    }
    line = log_of(tmp_path / "run")[0]
    assert {"student.loss", "critic.loss", "terms.follow", "terms.lead"} <= line.keys()


def test_a_player_is_not_moved_by_anothers_terms(tmp_path):
    """`lead` also depends on a; the student must move as if `lead` were not there."""

    class Alone(Game):
        signature = ObjectiveSignature(
            "game", "", Game.signature.networks, ("follow", "lead"), ("t",)
        )

    late = (PLAYERS[0], Player("critic", ("b",), ("lead",), every=50))
    ends = []
    for name, players in (("both", PLAYERS), ("late", late)):
        modules = nets()
        train(Alone(), modules, tiny_dataset(), make_config([*QUICK, "optimizer.clip=1e9"]),
              run_dir=tmp_path / name, players=players, progress=False)  # fmt: skip
        ends.append(modules["a"].state_dict())
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


def test_two_players_and_a_teacher_resume_exactly(tmp_path):
    for name in ("whole", "parts"):
        data = (
            tiny_dataset()
            if name == "whole"
            else at(13, lambda: os.kill(os.getpid(), signal.SIGINT))
        )
        train(Game(), nets(), data, make_config(QUICK), run_dir=tmp_path / name,
              players=PLAYERS, progress=False)  # fmt: skip
    resume(tmp_path / "parts", Game(), nets(seed=7), tiny_dataset(), players=PLAYERS,
           progress=False)  # fmt: skip
    a, b = (load_checkpoint(tmp_path / n / "checkpoints") for n in ("whole", "parts"))
    assert not any("teacher" in key for key in a.tensors["networks"])
    for name, tensors in a.tensors.items():
        assert all(torch.equal(v, b.tensors[name][k]) for k, v in tensors.items())
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")
    frozen = load_file(tmp_path / "parts" / "frozen.safetensors")
    assert torch.equal(frozen["networks.teacher.first.weight"], nets()["teacher"].first.weight)


@pytest.mark.parametrize(
    ("players", "words"),
    [
        ([Player("x", ("a",))], ['"b" is learned by 0 players']),
        ([Player("x", ("a", "b")), Player("y", ("b",))], ['"b" is learned by 2 players']),
        ([Player("x", ("a", "teachr"))], ["not a learned network"]),
        ([Player("x", ("a", "b"), ("folow",))], ['did you mean "follow"?']),
        ([Player("x", ("a", "b"), every=0)], ["every 0 steps"]),
    ],
)
def test_players_must_share_out_the_networks(tmp_path, players, words):
    with pytest.raises(DiagnosticError) as caught:
        train(Game(), nets(), tiny_dataset(), make_config(QUICK), run_dir=tmp_path / "run",
              players=players, progress=False)  # fmt: skip
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "run").exists()
