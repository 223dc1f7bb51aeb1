"""The trainer: exact resume above all, then what it refuses, writes, and teaches whom."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from training_support import BoundMeanFlow, MeanFlow, TinyNet, network_signature, tiny_dataset

import flowdsl
from flowdsl.diagnostics import DiagnosticError, fail
from flowdsl.runtime import loading, runs
from flowdsl.runtime.contract import ObjectiveSignature
from flowdsl.runtime.data import load_dataset
from flowdsl.runtime.dataset import Dataset
from flowdsl.runtime.training import checkpoints, trainer
from flowdsl.runtime.training.averages import EvaluationAverage, ramped_decay
from flowdsl.runtime.training.checkpoints import checkpoint_steps, load_checkpoint
from flowdsl.runtime.training.config import OptimizerConfig, TrainConfig
from flowdsl.runtime.training.directory import RunDirectory, SavedSpec, fresh_directory
from flowdsl.runtime.training.log import MetricsFile, Window, read_metrics
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.overrides import settings as config_settings
from flowdsl.runtime.training.players import Player, learning_rate
from flowdsl.runtime.training.progress import Bar, Lines, duration
from flowdsl.runtime.training.trainer import resume, train

QUICK = ("steps=24", "batch=16", "log_every=5", "sample_every=0", "checkpoint_every=10",
         "tensorboard=no", "ema=0.9,0.99", "optimizer.warmup=5")  # fmt: skip


def tiny_net(seed: int = 0) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet(dropout=0.2)


def start(path: Path, dataset: Dataset | None = None, loss=None, *, words=(), **more):
    return train(
        loss or MeanFlow(slow=True),
        {"u": tiny_net()},
        dataset or tiny_dataset(),
        make_config([*QUICK, *words]),
        run_dir=path,
        progress=False,
        **more,
    )


def go_on(path: Path, dataset: Dataset | None = None, loss=None):
    """Resumes with networks of other random weights."""
    networks = {"u": tiny_net(seed=99)}
    return resume(
        path, loss or MeanFlow(slow=True), networks, dataset or tiny_dataset(), progress=False
    )


def log_of(path: Path) -> list[dict]:
    """The lines of metrics.jsonl without the one field that is a measured time."""
    return [
        {k: v for k, v in line.items() if k != "steps_per_second"}
        for line in read_metrics(path / "metrics.jsonl")
    ]


def assert_same_end(one: Path, two: Path) -> None:
    """Weights, averages of both sorts, optimiser and log agree bit for bit."""
    a, b = (load_checkpoint(p / "checkpoints") for p in (one, two))
    assert a.step == b.step
    assert a.tensors.keys() == b.tensors.keys() == {"networks", "ema-0.9", "ema-0.99"}
    for name, tensors in a.tensors.items():
        assert tensors.keys() == b.tensors[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, b.tensors[name][key]), (name, key)
    assert any(key.startswith("networks.slow.") for key in a.tensors["networks"])
    state_a, state_b = a.optimizers["all"]["state"], b.optimizers["all"]["state"]
    assert state_a.keys() == state_b.keys()
    for k, moments in state_a.items():
        assert all(torch.equal(v, state_b[k][name]) for name, v in moments.items())
    assert log_of(one) == log_of(two)


class Watched(Dataset):
    """Calls `then(step)` before each batch."""

    def __init__(self, then) -> None:
        whole = tiny_dataset()
        super().__init__(whole.card, whole.train, whole.held_out)
        object.__setattr__(self, "then", then)

    def batch(self, step, seed, size):
        self.then(step)
        return super().batch(step, seed, size)


def at(step: int, action):
    return Watched(lambda now: action() if now == step else None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 24 steps that nothing interrupted."""
    path = tmp_path_factory.mktemp("whole") / "run"
    result = start(path)
    assert (result.step, result.finished, result.exit_code) == (24, True, 0)
    return path


# -- resume -------------------------------------------------------------------------------------


def test_interrupted_by_ctrl_c_and_resumed_is_the_same_run(tmp_path, whole, capsys):
    before = signal.getsignal(signal.SIGINT)
    result = start(tmp_path / "run", at(12, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is before
    assert (result.step, result.finished, result.exit_code) == (13, False, 130)
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == (10, 13)
    assert go_on(tmp_path / "run").exit_code == 0
    assert_same_end(tmp_path / "run", whole)


def test_killed_between_checkpoints_and_resumed_is_the_same_run(tmp_path, whole):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    with pytest.raises(Killed):
        start(tmp_path / "run", at(18, kill))
    # lines up to step 15 were written, the checkpoint is of step 10
    assert [line["step"] for line in log_of(tmp_path / "run")] == [5, 10, 15]
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')  # and half a line
    (tmp_path / "run" / "checkpoints" / ".step-00000020.partial").mkdir()
    assert go_on(tmp_path / "run").step == 24
    assert_same_end(tmp_path / "run", whole)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_interrupted_many_times_is_the_same_run(tmp_path, whole):
    stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    assert start(tmp_path / "run", at(2, stop)).exit_code == 143
    for step in (3, 11, 19):
        assert go_on(tmp_path / "run", at(step, stop)).step == step + 1
    assert go_on(tmp_path / "run").finished
    assert_same_end(tmp_path / "run", whole)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    start(tmp_path / "run", words=["steps=6"])
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert go_on(tmp_path / "run").finished
    after = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert {p.name for p in after} - {p.name for p in before} == set()
    assert all(after[p] == before[p] for p in before if p.suffix != ".png")


def test_the_seed_decides_the_run(tmp_path, whole):
    start(tmp_path / "same")
    assert_same_end(tmp_path / "same", whole)
    start(tmp_path / "other", words=["seed=1"])
    assert log_of(tmp_path / "other") != log_of(whole)


def test_the_log_depends_on_dropout_and_draws(tmp_path, whole):
    """The comparison above would notice: a run whose generator is not seeded per step differs."""

    class Unseeded(MeanFlow):
        def draw(self, data, *, generator=None, progress=0.0, step=0, steps=1):
            return super().draw(data)

    torch.manual_seed(123)
    start(tmp_path / "run", loss=Unseeded(slow=True))
    assert log_of(tmp_path / "run") != log_of(whole)


def test_training_leaves_torchs_generator_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    networks = {"u": TinyNet()}
    torch.manual_seed(5)
    train(MeanFlow(slow=True), networks, tiny_dataset(), make_config(QUICK),
          run_dir=tmp_path / "run", progress=False)  # fmt: skip
    assert torch.equal(torch.rand(3), expected)


def test_a_picture_that_fails_does_not_end_the_run(tmp_path, whole, monkeypatch, capsys):
    class Blind(MeanFlow):
        def jump(self, *arguments, **conditions):
            raise fail("sample", "this map cannot be used")

    for name, loss in (("blind", Blind(slow=True)), ("disk", MeanFlow(slow=True))):
        if name == "disk":
            monkeypatch.setattr(trainer, "save_picture", full_disk)
        train(loss, {"u": tiny_net()}, tiny_dataset(), make_config([*QUICK, "sample_every=10"]),
              run_dir=tmp_path / name)  # fmt: skip
        assert_same_end(tmp_path / name, whole)
    said = capsys.readouterr().err
    assert said.count("no pictures: this map cannot be used") == 1
    assert said.count("the picture was not written: [Errno 28] No space left on device") == 3


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_pictures_do_not_disturb_the_run(tmp_path, whole):
    start(tmp_path / "run", words=["sample_every=4", "sample_steps=1,2"])
    assert_same_end(tmp_path / "run", whole)
    names = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    assert names == [f"step-{k:08d}.png" for k in (4, 8, 12, 16, 20, 24)]


# -- disks and broken files ---------------------------------------------------------------------


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(tmp_path, whole, monkeypatch):
    real, full = checkpoints._write, [True]

    def write(path, content):
        if full[0] and "step-00000020" in str(path) and path.name == "state.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(checkpoints, "_write", write)
    with pytest.raises(DiagnosticError) as caught:
        start(tmp_path / "run")
    text = str(caught.value)
    assert "step 20 could not be written" in text
    assert "No space left" in text
    assert "last usable one is step 10" in text
    folder = tmp_path / "run" / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["step-00000010"]
    full[0] = False
    assert go_on(tmp_path / "run").finished
    assert_same_end(tmp_path / "run", whole)


def test_a_log_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def write(self, record):
        if record["step"] == 15:
            self.path = tmp_path / "no" / "such" / "folder"
        return original(self, record)

    original = MetricsFile.write
    monkeypatch.setattr(MetricsFile, "write", write)
    with pytest.raises(DiagnosticError, match="resume the run from its last checkpoint"):
        start(tmp_path / "run")


def test_a_damaged_checkpoint_names_the_one_before(tmp_path):
    start(tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "step-00000024"
    whole_file = (last / "networks.safetensors").read_bytes()
    (last / "networks.safetensors").write_bytes(whole_file[:-7])
    with pytest.raises(DiagnosticError) as caught:
        go_on(tmp_path / "run")
    assert "the one before it is step 20" in str(caught.value)
    assert load_checkpoint(tmp_path / "run" / "checkpoints", 20).step == 20
    with pytest.raises(DiagnosticError, match="no checkpoint of step 7"):
        load_checkpoint(tmp_path / "run" / "checkpoints", 7)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoints_run_no_code(tmp_path):
    start(tmp_path / "run", words=["steps=3"])
    trace = tmp_path / "ran"
    torch.save(
        {"all": Bomb(trace)}, tmp_path / "run" / "checkpoints" / "step-00000003" / "optimizers.pt"
    )
    with pytest.raises(DiagnosticError, match="cannot be read"):
        go_on(tmp_path / "run")
    assert not trace.exists()


def test_only_the_last_checkpoints_are_kept(tmp_path):
    start(tmp_path / "run", words=["checkpoint_every=4", "keep=3"])
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == (16, 20, 24)


def test_networks_of_another_shape_are_refused(tmp_path):
    start(tmp_path / "run", words=["steps=3"])
    with pytest.raises(DiagnosticError) as caught:
        resume(tmp_path / "run", MeanFlow(slow=True), {"u": TinyNet(width=8)}, tiny_dataset(),
               progress=False)  # fmt: skip
    assert "does not fit these networks" in str(caught.value)


def test_tied_weights_survive_a_checkpoint(tmp_path):
    class Tied(TinyNet):
        def __init__(self) -> None:
            super().__init__(width=16)
            self.second.weight = nn.Parameter(self.first.weight.detach().clone())
            self.again = self.first  # the same parameters under two names

    for path in (tmp_path / "a", tmp_path / "b"):
        torch.manual_seed(0)
        data = at(12, lambda: os.kill(os.getpid(), signal.SIGINT)) if path.name == "b" else None
        train(MeanFlow(), Tied(), data or tiny_dataset(), make_config(QUICK), run_dir=path,
              progress=False)  # fmt: skip
    resume(tmp_path / "b", MeanFlow(), Tied(), tiny_dataset(), progress=False)
    a, b = (load_checkpoint(tmp_path / n / "checkpoints").tensors["networks"] for n in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    start(tmp_path / "run", words=["steps=2"])
    with pytest.raises(DiagnosticError, match="already holds a run"):
        start(tmp_path / "run")
    with pytest.raises(DiagnosticError, match="is not a run"):
        go_on(tmp_path / "nothing")
    (tmp_path / "run" / "run.json").write_text('{"format": 99}')
    with pytest.raises(DiagnosticError, match="format 99"):
        go_on(tmp_path / "run")
    taken = tmp_path / "meanflow-digits"
    taken.mkdir()
    assert fresh_directory(tmp_path, "meanflow", "digits").name == "meanflow-digits-2"


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


class Game:
    """Two learned networks and a frozen one: `follow` teaches a, `lead` teaches b; lead also sees
    a.
    """

    source = ""
    signature = ObjectiveSignature(
        "game",
        "",
        (network_signature("a"), network_signature("b"), network_signature("teacher", frozen=True)),
        ("follow", "lead"),
        ("t",),
    )

    def draw(self, data, *, generator=None, progress=0.0, step=0, steps=1):
        return {"t": torch.rand(len(data), generator=generator)}

    def bind(self, network):
        bound = BoundMeanFlow(MeanFlow(), dict(network))

        def forward(data, *, label=None, draws=None, terms=None, **when):
            t = draws["t"]
            a, b, teacher = (bound.networks[k](data, t, t, label=label) for k in network)
            parts = {"follow": (a - teacher.detach()).square().mean(), "lead": (b - a).abs().mean()}
            chosen = {k: v for k, v in parts.items() if terms is None or k in terms}
            return sum(chosen.values()), {k: v.detach() for k, v in chosen.items()}

        bound.forward = forward
        return bound

    def jump(self, network, z, start, end, *, label=None, **conditions):
        return network["a"](z, start, end, label=label)

    velocity = jump


def nets(seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {name: TinyNet(width=8) for name in ("a", "b", "teacher")}


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


# -- config -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 10**6),
    rate=st.floats(1e-9, 1),
    decays=st.lists(st.floats(0, 0.9999), min_size=1, max_size=3),
    name=st.sampled_from(["cosine", "constant"]),
    flag=st.booleans(),
)
def test_settings_survive_the_way_through_text_and_json(steps, rate, decays, name, flag):
    config = make_config(
        [
            f"steps={steps}",
            f"optimizer.learning_rate={rate!r}",
            "ema=" + ",".join(map(repr, decays)),
            f"optimizer.schedule={name}",
            f"tensorboard={flag}",
            "patch=2",
            "patch=none",
        ]
    )
    assert (config.steps, config.optimizer.learning_rate) == (steps, rate)
    assert config.ema == tuple(decays)
    assert (config.optimizer.schedule, config.tensorboard, config.patch) == (name, flag, None)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_overrides_stand_above_the_recipe_and_the_recipe_above_defaults():
    recipe = {"steps": 7, "optimizer": {"clip": 3.0}, "optimizer.warmup": 2}
    config = make_config(["steps=9"], recipe)
    assert (config.steps, config.optimizer.clip, config.optimizer.warmup) == (9, 3.0, 2)
    assert config.batch == TrainConfig().batch


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("stpes=3", ['"stpes"', 'did you mean "steps"?', "optimizer.learning_rate"]),
        ("lr=3", ['did you mean "optimizer.learning_rate"?']),
        ("batch_size=3", ['did you mean "batch"?']),
        ("optimizer.clp=3", ['did you mean "optimizer.clip"?']),
        ("optimizer=3", ["group of keys"]),
        ("steps", ["key=value"]),
        ("steps=0", ['steps cannot be "0"', "greater than or equal to 1", "optimiser steps"]),
        ("steps=many", ['steps cannot be "many"', "integer"]),
        ("precision=fp16", ['"fp16"', "'float32' or 'bfloat16'", "default"]),
        ("ema=0.9,1.5", ['ema cannot be "1.5"', "less than 1"]),
        ("ema=", ["at least 1 item"]),
        ("accumulate=3", ['accumulate cannot be "3"', "divides the batch of 128"]),
        ("accumulate=0", ['accumulate cannot be "0"', "greater than or equal to 1"]),
        ("optimizer.name=sgd", ["'adamw' or 'radam'"]),
        ("optimizer.rates=critic", ['optimizer.rates cannot be "critic"', "critic:0.5"]),
        ("optimizer.rates=critic:0", ['optimizer.rates cannot be "critic:0"']),
        ("optimizer.rates=al:0.5", ['no player is called "al"', 'did you mean "all"']),
        ("optimizer.betas=0.9", ["optimizer.betas"]),
        ("optimizer.clip=nan", ["optimizer.clip"]),
        ("device=gpu", ['device "gpu" cannot be used', "auto"]),
    ],
)
def test_wrong_settings_are_said_by_key_value_and_remedy(tmp_path, word, parts):
    with pytest.raises(DiagnosticError) as caught:
        train(MeanFlow(), tiny_net(), tiny_dataset(), make_config([word]),
              run_dir=tmp_path / "run", progress=False)  # fmt: skip
    for part in parts:
        assert part in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_setting_has_a_meaning_and_wrong_recipes_are_said():
    assert all(setting.meaning for setting in config_settings())
    assert {"steps", "optimizer.clip"} <= {setting.key for setting in config_settings()}
    with pytest.raises(DiagnosticError, match='did you mean "steps"'):
        make_config([], {"stps": 3})


# -- log and screen -----------------------------------------------------------------------------


def test_a_window_means_over_its_steps_and_survives_json():
    window = Window()
    for value in (0.1, 0.2, 0.4):
        window.add({"x": torch.tensor(value), "y": value})
    window.add({"y": 0.1})
    again = Window(json.loads(json.dumps(window.state())))
    again.add({"x": torch.tensor(0.3)})
    window.add({"x": torch.tensor(0.3)})
    assert again.means() == window.means()
    assert window.means()["x"] == pytest.approx(0.25)
    assert window.means()["y"] == pytest.approx(0.2)


def test_tensorboard_shows_what_the_log_shows(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stop = at(12, lambda: os.kill(os.getpid(), signal.SIGINT))
    start(tmp_path / "run", stop, words=["tensorboard=yes"])
    go_on(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    seen = {event.step: event.value for event in events.Scalars("loss")}
    lines = log_of(tmp_path / "run")
    assert list(seen) == [5, 10, 15, 20, 24]
    assert list(seen.values()) == pytest.approx([line["loss"] for line in lines])
    assert "terms/target" in events.Tags()["scalars"]


def test_output_that_is_no_terminal_gets_plain_lines(tmp_path, capsys):
    train(MeanFlow(), tiny_net(), tiny_dataset(), make_config(QUICK), run_dir=tmp_path / "run")
    said = capsys.readouterr().err
    assert "meanflow on tiny: 24 steps of 16" in said
    assert "step  5/24  loss " in said
    assert "steps/s" in said
    assert " left" in said
    assert f" of training: {tmp_path / 'run'}" in said.replace("\n", "")
    assert "\x1b" not in said


def test_a_terminal_gets_a_bar():
    console = Console(force_terminal=True, width=100, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    bar = Bar(console)
    bar.start("a run", 0, 10)
    bar.step(5)
    bar.line(5, {"loss": 0.25}, 2.0)
    bar.message("a message [not markup]")
    bar.stop()
    text = console.export_text()
    assert "a message [not markup]" in text
    assert "5/10" in text
    assert "loss 0.25  2.0 steps/s" in text
    lines = Lines(Console(file=open(os.devnull, "w"), record=True))  # noqa: SIM115
    lines.start("a run", 0, 100)
    lines.line(50, {"loss": 0.5}, 0.5)
    assert "1 min 40 s left" in lines._console.export_text()
    assert [duration(s) for s in (3, 75, 3725)] == ["3 s", "1 min 15 s", "1 h 02 min"]


# -- whole runs ---------------------------------------------------------------------------------


def compiled(spec: SavedSpec) -> MeanFlow:
    assert spec.text == "objective meanflow\n"
    return MeanFlow(kappa=spec.constants["kappa"])


SPEC = SavedSpec("objective meanflow\n", {"kappa": 0.5}, {"optimize": True})
DIGITS = ("steps=12", "batch=8", "log_every=4", "sample_every=0", "checkpoint_every=5",
          "tensorboard=no", "sample_steps=1", "ema=0.1,0.99")  # fmt: skip


def build(loss, card, config):
    torch.manual_seed(config.seed)
    return TinyNet(card.shape, card.classes)


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "run"
    runs.train_run(MeanFlow(kappa=0.5), make_config(DIGITS), SPEC, run_dir=path, build=build,
                   progress=False)  # fmt: skip
    return path


def test_a_run_directory_holds_everything(digits_run):
    names = {p.name for p in digits_run.iterdir()}
    assert names == {"run.json", "spec.flow", "loss.py", "metrics.jsonl", "samples", "checkpoints"}
    record = RunDirectory(digits_run).record()
    assert record.spec == SPEC
    assert record.config == make_config(DIGITS)
    assert record.data == load_dataset("digits").card
    assert record.networks["u"]["width"] == 32
    assert record.versions["torch"] == torch.__version__
    assert RunDirectory(digits_run).source() == MeanFlow.source


def test_a_loaded_run_has_the_weights_asked_for(digits_run):
    saved = load_checkpoint(digits_run / "checkpoints").tensors
    for name, tensors, prefix in (
        ("ema", saved["ema-0.1"], "u."),
        ("ema-0.99", saved["ema-0.99"], "u."),
        ("raw", saved["networks"], "networks.u."),
    ):
        run = loading.load_run(digits_run, compiled, weights=name, build=build)
        assert run.loss.kappa == 0.5
        for key, value in run.networks.state_dict().items():
            assert torch.equal(value, tensors[prefix + key])
        assert not run.networks.training
    assert not torch.equal(saved["ema-0.1"]["u.first.weight"], saved["ema-0.99"]["u.first.weight"])
    assert loading.load_run(digits_run, compiled, step=10, build=build).step == 10
    with pytest.raises(DiagnosticError, match=r"ema-0\.99"):
        loading.load_run(digits_run, compiled, weights="ema-0.8", build=build)
    with pytest.raises(DiagnosticError, match="function that builds them"):
        loading.load_run(digits_run, compiled, build=lambda *a: TinyNet((1, 8, 8), 10, width=4))


def test_sampling_a_run(digits_run, tmp_path):
    request = runs.SampleRequest(steps=(1, 3), classes=("7", "2"), seed=3)
    result = runs.sample_run(digits_run, compiled, request, out=tmp_path / "x.png", build=build)
    assert result.path == tmp_path / "x.png"
    assert result.path.stat().st_size > 1000
    assert result.states[3].shape == (2, 8, 1, 8, 8)
    again = runs.sample_run(digits_run, compiled, request, build=build)
    assert torch.equal(again.states[3], result.states[3])
    assert again.path.parent == digits_run / "samples"
    with pytest.raises(DiagnosticError, match='no class "11"'):
        runs.sample_run(digits_run, compiled, runs.SampleRequest(classes=("11",)), build=build)


def test_evaluating_a_run(digits_run, monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWDSL_CACHE", str(tmp_path))
    monkeypatch.setattr("flowdsl.runtime.features.STEPS", 3)
    options = runs.EvaluationOptions(steps=(1, 2), count=30)
    found = runs.evaluate_run(digits_run, compiled, options, weights="raw", build=build)
    assert {"accuracy", "FD-digits-cnn", "sliced-W2", "precision", "recall"} == set(found.better)
    assert json.loads((digits_run / "evaluation.json").read_text())["weights"] == "raw"
    assert found.step == 12


def test_resuming_a_run_needs_only_its_folder(digits_run, tmp_path):
    def stop(*_):
        os.kill(os.getpid(), signal.SIGINT)

    class Stops(MeanFlow):
        def draw(self, data, *, step=0, **more):
            if step == 6:
                stop()
            return super().draw(data, step=step, **more)

    config = make_config(DIGITS)
    first = runs.train_run(Stops(kappa=0.5), config, SPEC, root=tmp_path, build=build,
                           progress=False)  # fmt: skip
    assert first.path == tmp_path / "meanflow-digits"
    assert first.exit_code == 130
    last = runs.resume_run(first.path, compiled, build=build, progress=False)
    assert last.finished
    assert log_of(first.path) == log_of(digits_run)


def test_a_loss_that_compiles_differently_is_told_when_resuming(tmp_path, capsys):
    start(tmp_path / "run", words=["steps=2"])
    newer = MeanFlow(slow=True)
    resume(tmp_path / "run", newer, {"u": tiny_net()}, tiny_dataset())
    assert "warning" not in capsys.readouterr().err
    newer.source = "# newer\n"
    resume(tmp_path / "run", newer, {"u": tiny_net()}, tiny_dataset())
    assert "compiles to other code" in capsys.readouterr().err.replace("\n", " ")


def test_starting_from_another_run(digits_run, tmp_path):
    config = make_config([*DIGITS, "steps=1", "optimizer.learning_rate=1e-9"])
    result = runs.train_run(MeanFlow(), config, SPEC, run_dir=tmp_path / "run", build=build,
                            sources={"u": digits_run}, progress=False)  # fmt: skip
    found = load_checkpoint(result.path / "checkpoints").tensors["networks"]
    wanted = load_checkpoint(digits_run / "checkpoints").tensors["ema-0.1"]
    assert torch.allclose(found["networks.u.first.weight"], wanted["u.first.weight"], atol=1e-6)
    with pytest.raises(DiagnosticError, match='has no network "v"'):
        loading.start_from(TinyNet(), MeanFlow(), {"v": digits_run})
    with pytest.raises(DiagnosticError, match="do not fit"):
        loading.start_from(TinyNet(), MeanFlow(), {"u": digits_run})
    with pytest.raises(DiagnosticError, match="teacher does not learn"):
        loading.start_from(nets(), Game(), {})


def compile_text(spec: SavedSpec):
    return flowdsl.loads(spec.text).compile(constants=spec.constants)


SMALL = ("steps=3", "batch=8", "patch=8", "log_every=1", "checkpoint_every=2", "sample_steps=1,2",
         "optimizer.warmup=2", "tensorboard=no", "patience=1")  # fmt: skip


@pytest.mark.parametrize("name", flowdsl.shipped())
def test_every_shipped_objective_trains_resumes_and_samples(tmp_path, name):
    """The compiled loss, the bundled transformer and the digits, as the command line does it."""
    objective = flowdsl.load(name)
    loss, spec = objective.compile(), SavedSpec(objective.text(), {})
    config = make_config(SMALL)
    networks = loss.signature.networks
    if any(network.frozen for network in networks):
        with pytest.raises(DiagnosticError, match="needs weights to start with"):
            runs.train_run(loss, config, spec, run_dir=tmp_path / "run", progress=False)
        return
    whole = runs.train_run(loss, config, spec, run_dir=tmp_path / "whole", progress=False)
    assert whole.finished
    assert all(v == v for line in log_of(whole.path) for v in line.values())
    shutil.copytree(whole.path, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step-00000003")
    runs.resume_run(tmp_path / "part", compile_text, progress=False)
    assert log_of(tmp_path / "part") == log_of(whole.path)
    a, b = (load_checkpoint(tmp_path / n / "checkpoints") for n in ("whole", "part"))
    for file, tensors in a.tensors.items():
        assert all(torch.equal(v, b.tensors[file][k]) for k, v in tensors.items())
    states = runs.sample_run(whole.path, compile_text).states
    assert states[2].shape[1:] == (8, 1, 8, 8)
    labelled = any(c.name == "label" for network in networks for c in network.conditions)
    assert len(states[2]) == (10 if labelled else 8)
    assert bool(states[2].isfinite().all())


def test_meanflow_learns_the_brightness_of_digits_in_seconds(tmp_path):
    objective = flowdsl.load("meanflow")
    config = make_config(["steps=40", "batch=32", "patch=4", "log_every=10", "sample_every=0",
                          "sample_steps=1", "optimizer.warmup=5"])  # fmt: skip
    spec = SavedSpec(objective.text(), {})
    path = runs.train_run(objective.compile(), config, spec, run_dir=tmp_path / "run",
                          progress=False).path  # fmt: skip
    assert RunDirectory(path).record().networks["u"]["patch"] == 4
    assert (path / "samples" / "step-00000040.png").stat().st_size > 1000
    found = runs.sample_run(path, compile_text).states[1].flatten(0, 1)
    data = load_dataset("digits").train.first(500).data
    # no digits yet, but the borders are black and the middle is not, as in the data
    truth, learned = data.mean(0).flatten(), found.mean(0).flatten()
    likeness = torch.corrcoef(torch.stack([truth, learned]))[0, 1]
    assert float(likeness) > 0.6
