"""Whole runs: their folder, sampling and evaluating them, resuming, and every shipped objective."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from training_support import (
    Game,
    MeanFlow,
    TinyNet,
    log_of,
    nets,
    start,
    tiny_dataset,
    tiny_net,
)

import flowdsl
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime import loading, runs
from flowdsl.runtime.data import load_dataset
from flowdsl.runtime.training.checkpoints import load_checkpoint
from flowdsl.runtime.training.directory import RunDirectory, SavedSpec
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.trainer import resume


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


def test_pictures_of_other_requests_have_other_names(digits_run):
    asked = [{"steps": (1,)}, {"steps": (1, 2)}, {"steps": (1,), "classes": ("7",)},
             {"steps": (1,), "seed": 1}]  # fmt: skip
    made = [
        runs.sample_run(digits_run, compiled, runs.SampleRequest(**words), build=build).path
        for words in asked
    ]
    assert len(set(made)) == len(made)
    assert all(path.stat().st_size for path in made)


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


#: One objective of each kind that a checkpoint has to hold something more for.
RESUMED = {
    "meanflow": "one network",
    "shortcut": "its average",
    "eulerian_self_distillation": "a second network, which learns the weight",
    "imf": "a second head, and drawn conditions",
    "alphaflow": "phases of a curriculum",
    "improved_consistency_training": "a grid that refines",
    "tmd_meanflow": "a network that hands on features",
}


def test_a_teacher_needs_weights_to_start_with(tmp_path):
    objective = flowdsl.load("align_your_flow")
    with pytest.raises(DiagnosticError, match="needs weights to start with"):
        runs.train_run(objective.compile(), make_config(SMALL), SavedSpec(objective.text(), {}),
                       run_dir=tmp_path / "run", progress=False)  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_shipped_objectives_train_resume_and_sample(tmp_path, name):
    """The compiled loss, the bundled transformer and the digits, as the command line does it.

    (`tests/test_systems.py` trains and samples every shipped objective.)
    """
    objective = flowdsl.load(name)
    loss, spec = objective.compile(), SavedSpec(objective.text(), {})
    config = make_config(SMALL)
    networks = loss.signature.networks
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
