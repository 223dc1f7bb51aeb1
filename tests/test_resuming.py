"""Training that is interrupted ends as if it had not been; disks may fill and files break."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from training_support import (
    QUICK,
    MeanFlow,
    TinyNet,
    at,
    go_on,
    log_of,
    start,
    tiny_dataset,
    tiny_net,
)

from flowdsl.diagnostics import DiagnosticError, fail
from flowdsl.runtime.training import checkpoints, trainer
from flowdsl.runtime.training.checkpoints import checkpoint_steps, load_checkpoint
from flowdsl.runtime.training.directory import fresh_directory
from flowdsl.runtime.training.log import MetricsFile
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.trainer import resume, train


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


def test_a_run_that_is_stopped_between_two_lines_writes_what_it_has(tmp_path, whole):
    result = start(tmp_path / "run", at(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert result.step == 3
    (line,) = log_of(tmp_path / "run")
    assert (line["step"], line["partial"]) == (3, True)
    three = log_of(start(tmp_path / "three", words=["steps=3"]).path)
    assert {k: v for k, v in line.items() if k != "partial"} == three[-1]
    assert go_on(tmp_path / "run").finished  # the partial line gives way
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
