"""Stages: how a spec is cut into them, what is carried over, and that resuming changes nothing."""

from __future__ import annotations

import os
import signal
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn
from training_support import Watched, log_of

import flowdsl
from flowdsl import pipeline
from flowdsl.cli.runs import compile_saved
from flowdsl.cli.staging import stage_plans
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime import runs
from flowdsl.runtime.contract import Argument, NetworkSignature
from flowdsl.runtime.nets import build_network
from flowdsl.runtime.runs import SampleRequest, sample_run, train_run
from flowdsl.runtime.stages import read_stages, resume_stages, train_stages, whole_run
from flowdsl.runtime.training.checkpoints import load_checkpoint
from flowdsl.runtime.training.directory import SavedSpec, last_run
from flowdsl.runtime.training.overrides import make_config

HEAD = "path z(t) = (1 - t) * data + t * noise\ntimes t ~ uniform(0, 1)\n"
VELOCITY = f"objective vel\n{HEAD}network v(z, t | label)\ntarget match v(z, t) to velocity\n"
STRAIGHT = f"""objective straight
{HEAD}network v(z, t | label); old(z, t | label) frozen
let x = z(t | data = stop(flow(old, noise, 1, 0, steps = 2)))
target match v(x, t) to velocity(x)
stages first: vel for 0.5; again: this for 0.5, v from first, old from first
"""
DISTILLED = f"""objective distilled
{HEAD}network F(z, t, r | label); phi(t) -> scalar; teacher(z, t | label) frozen
map z(t) -> z(r) = z - (t - r) * F(z, t, r)
target match F(z, t, t) to stop(teacher(z, t))
loss exp(-phi(t)) * mse + phi(t)
stages teach: straight for 0.75; learn: this for 0.25, F from teach, teacher from teach
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("vel", VELOCITY), ("straight", STRAIGHT), ("distilled", DISTILLED)):
        (tmp_path / f"{name}.flow").write_text(text)
    return tmp_path


QUICK = ("steps=16", "batch=8", "log_every=3", "sample_every=0", "checkpoint_every=0", "ema=0.5",
         "tensorboard=no", "optimizer.warmup=0", "sample_steps=1")  # fmt: skip


def plans(folder: Path, name: str, *words: str):
    objective = flowdsl.load(folder / f"{name}.flow")
    return stage_plans(objective, objective.stages(), [*QUICK, *words], {})


@pytest.fixture
def tiny(monkeypatch):
    """Runs on the tiny images of the other tests; `then(step)` is called before each batch."""

    def use(then=lambda step: None):
        monkeypatch.setattr(runs, "load_dataset", lambda *_: Watched(then))

    use()
    return use


# -- cutting a spec ------------------------------------------------------------------------------


def test_stages_of_stages_are_written_out(folder: Path) -> None:
    parts = flowdsl.load(folder / "distilled.flow").stages()
    assert [(p.name, p.objective.name, p.share) for p in parts] == [
        ("teach.first", "vel", Fraction(3, 8)),
        ("teach.again", "straight", Fraction(3, 8)),
        ("learn", "distilled", Fraction(1, 4)),
    ]
    assert parts[1].carried == (("v", "teach.first"), ("old", "teach.first"))
    assert parts[2].carried == (("F", "teach.again"), ("teacher", "teach.again"))
    assert all(not part.objective.stages() or part.name == "teach.again" for part in parts)


def test_stages_that_a_carried_network_makes_needless_are_left_out(folder: Path) -> None:
    (folder / "more.flow").write_text(
        f"objective more\n{HEAD}network v(z, t | label)\ntarget match v(z, t) to velocity\n"
        "stages a: vel for 0.5; b: straight for 0.5, v from a, old from a\n"
    )
    parts = flowdsl.load(folder / "more.flow").stages()
    assert [(p.name, p.share) for p in parts] == [
        ("a", Fraction(1, 2)),
        ("b.again", Fraction(1, 2)),
    ]
    assert parts[1].carried == (("v", "a"), ("old", "a"))


def test_stages_in_a_circle_are_refused(folder: Path) -> None:
    (folder / "vel.flow").write_text(VELOCITY + "stages a: straight for 1\n")
    with pytest.raises(DiagnosticError, match="round in a circle: straight -> vel -> straight"):
        flowdsl.load(folder / "straight.flow").stages()


def test_steps_are_shared_out_and_tables_of_the_recipe_are_heard(folder: Path) -> None:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "distilled.toml").write_text(
        "steps = 90\nsize = 'micro'\nbatch = 4\n[optimizer]\nclip = 3.0\n"
        "[stages.learn.optimizer]\nlearning_rate = 1e-5\n"
    )
    (folder / "recipes" / "vel.toml").write_text("size = 'nano'\nbatch = 32\nsteps = 7\n")
    objective = flowdsl.load(folder / "distilled.flow")
    made = stage_plans(objective, objective.stages(), ["seed=3"], {})
    assert [plan.config.steps for plan in made] == [34, 34, 22]
    assert [plan.config.size for plan in made] == ["micro"] * 3
    assert [plan.config.batch for plan in made] == [32, 128, 4]
    assert [plan.config.seed for plan in made] == [3] * 3
    assert made[2].config.optimizer.learning_rate == 1e-5
    assert made[2].config.optimizer.clip == 3.0
    with pytest.raises(DiagnosticError, match="no constant `omega`"):
        stage_plans(objective, objective.stages(), [], {"omega": 2.0})


# -- what a network takes over -------------------------------------------------------------------


def role(name: str, states: str, times: str, heads: tuple[Argument, ...] = ()) -> NetworkSignature:
    arguments = [Argument(a, "state") for a in states] + [Argument(a, "time") for a in times]
    head = heads or (Argument(name, "state"),)
    return NetworkSignature(name, tuple(arguments), (Argument("label", "label"),), head)


def build(signature: NetworkSignature, seed: int, **more):
    generator = torch.Generator().manual_seed(seed)
    net = build_network(signature, shape=(1, 4, 4), classes=3, generator=generator, **more)
    if seed == 1:  # as if trained: outputs are zero otherwise
        for p in net.parameters():
            nn.init.normal_(p, std=0.2, generator=generator)
    return net.double()


@pytest.mark.parametrize(("states", "times"), [("z", "tr"), ("zy", "tr"), ("z", "trq")])
def test_a_network_that_sees_more_begins_as_the_one_it_took_over(states: str, times: str) -> None:
    old = build(role("v", "z", "t"), 1)
    new = build(role("u", states, times), 2)
    new.adopt(old.state_dict(), old.config.as_dict())
    random = torch.Generator().manual_seed(3)
    z, y = torch.randn(2, 5, 1, 4, 4, generator=random, dtype=torch.float64)
    t, r, q = torch.rand(3, 5, generator=random, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, -1, 0])
    seen = [*(z, y)[: len(states)], *(t, r, q)[: len(times)]]
    expected = old(z, t, label=label)
    assert expected.abs().max() > 0.1
    assert torch.allclose(new(*seen, label=label), expected, atol=1e-12)
    new(*seen, label=label).square().sum().backward()
    assert float(new.numbers[1].outer.weight.grad.abs().max()) > 0  # and yet it can learn of r


def test_a_second_head_stays_fresh() -> None:
    old = build(role("v", "z", "t"), 1)
    heads = (Argument("u", "state"), Argument("w", "scalar"))
    new = build(role("net", "z", "tr", heads), 2)
    new.adopt(old.state_dict(), old.config.as_dict())
    z, t = torch.randn(4, 1, 4, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    state, scalar = new(z, t, t, label=None)
    assert torch.allclose(state, old(z, t, label=None), atol=1e-12)
    assert torch.equal(scalar, torch.zeros(4, dtype=torch.float64))


def test_networks_of_another_size_are_refused() -> None:
    old = build(role("v", "z", "t"), 1, size="micro")
    with pytest.raises(DiagnosticError, match="cannot take over the weights of v"):
        build(role("u", "z", "tr"), 2).adopt(old.state_dict(), old.config.as_dict())


# -- whole runs ----------------------------------------------------------------------------------


def test_each_stage_starts_with_what_the_one_before_has_learnt(folder: Path, tiny) -> None:
    still = "optimizer.learning_rate=1e-12"
    path = folder / "run"
    made = plans(folder, "distilled")
    made[2] = type(made[2])(made[2].name, made[2].spec, make_config([*QUICK, still, "steps=1"]),
                            made[2].carried)  # fmt: skip
    result = train_stages(made, compile_saved, "distilled", run_dir=path, progress=False)
    assert (result.step, result.steps, result.finished) == (13, 13, True)
    assert sorted(p.name for p in path.iterdir()) == [
        "1-teach.first", "2-teach.again", "3-learn", "stages.json",
    ]  # fmt: skip
    teacher = load_checkpoint(path / "2-teach.again" / "checkpoints").tensors["ema-0.5"]
    frozen = runs.load_run(path, compile_saved, weights="raw").networks["teacher"].state_dict()
    for key, value in frozen.items():
        if f"v.{key}" in teacher:
            assert torch.equal(value, teacher[f"v.{key}"])
    student = load_checkpoint(path / "3-learn" / "checkpoints").tensors["networks"]
    moved = student["networks.F.patches.weight"] - teacher["v.patches.weight"]
    assert float(moved.abs().max()) < 1e-9
    assert last_run(path) == path / "3-learn"
    assert whole_run(path / "2-teach.again") == path.absolute()
    sampled = sample_run(path, compile_saved, SampleRequest(steps=(2,)))
    assert sampled.path.parent.parent == path / "3-learn"


@pytest.mark.parametrize("when", [3, 9, 14])
def test_a_staged_run_that_was_stopped_ends_like_one_that_was_not(
    folder: Path, tiny, when: int
) -> None:
    whole, parts = folder / "whole", folder / "parts"
    train_stages(plans(folder, "distilled"), compile_saved, "d", run_dir=whole, progress=False)
    calls = []

    def stop(step: int) -> None:
        calls.append(step)
        if len(calls) == when:
            os.kill(os.getpid(), signal.SIGINT)

    tiny(stop)
    stopped = train_stages(
        plans(folder, "distilled"), compile_saved, "d", run_dir=parts, progress=False
    )
    assert (stopped.step, stopped.exit_code, stopped.steps) == (when, 130, 16)
    tiny()
    resumed = resume_stages(parts, compile_saved, progress=False)
    assert resumed.finished
    for stage in ("1-teach.first", "2-teach.again", "3-learn"):
        a, b = (load_checkpoint(path / stage / "checkpoints") for path in (whole, parts))
        for name, tensors in a.tensors.items():
            assert all(torch.equal(v, b.tensors[name][k]) for k, v in tensors.items()), name
        assert log_of(whole / stage) == log_of(parts / stage)


def test_a_teacher_that_is_given_spares_its_stages(folder: Path, tiny) -> None:
    given = folder / "given"
    spec = SavedSpec(VELOCITY)
    train_run(compile_saved(spec), make_config([*QUICK, "steps=2"]), spec, run_dir=given,
              progress=False)  # fmt: skip
    path = folder / "run"
    train_stages(
        plans(folder, "distilled"), compile_saved, "distilled", run_dir=path, progress=False,
        sources={"teacher": given, "F": given},
    )  # fmt: skip
    assert [plan.name for plan in read_stages(path)] == ["learn"]
    assert sorted(p.name for p in path.iterdir()) == ["1-learn", "stages.json"]


def test_what_cannot_start_is_refused_before_the_first_step(folder: Path, tiny) -> None:
    text = DISTILLED.replace(", teacher from teach", "").replace("F from teach", "G from teach")
    (folder / "distilled.flow").write_text(text)
    made = plans(folder, "distilled")
    with pytest.raises(DiagnosticError, match='has no network "G"'):
        train_stages(made, compile_saved, "d", run_dir=folder / "run", progress=False)
    (folder / "distilled.flow").write_text(DISTILLED.replace(", teacher from teach", ""))
    with pytest.raises(DiagnosticError, match="teacher does not learn, so it needs weights"):
        train_stages(
            plans(folder, "distilled"), compile_saved, "d", run_dir=folder / "run", progress=False
        )
    with pytest.raises(DiagnosticError, match='no stage has a network "teachr"'):
        train_stages(made, compile_saved, "d", run_dir=folder / "run", progress=False,
                     sources={"teachr": folder})  # fmt: skip
    assert not (folder / "run").exists()


def test_a_stage_folder_that_was_left_without_a_checkpoint_is_begun_again(
    folder: Path, tiny
) -> None:
    path = folder / "run"
    train_stages(plans(folder, "straight"), compile_saved, "s", run_dir=path, progress=False)
    for file in (path / "2-again" / "checkpoints").iterdir():
        file.rename(path / "moved")
    assert last_run(path) == path / "1-first"
    assert resume_stages(path, compile_saved, progress=False).finished
    a, b = load_checkpoint(path / "2-again" / "checkpoints"), torch.load(
        path / "moved" / "optimizers.pt", weights_only=True)  # fmt: skip
    assert a.optimizers["all"]["state"].keys() == b["all"]["state"].keys()


# -- integrating inside an objective -------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_flow_integrates_with_steps_of_its_order(order: int) -> None:
    text = f"""objective x
{HEAD}network v(z, t); teacher(z, t) frozen
target match v(z, t) to stop(flow(teacher, z, t, 0, steps = 3, order = {order}))
"""
    loss = pipeline.compiled(pipeline.load_text(text))

    def teacher(z, t):
        return torch.sin(z) * (1 + t)[:, None]

    data = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = loss.draw(data, generator=torch.Generator().manual_seed(1))
    t, noise = draws["t"], draws["noise"]
    z = (1 - t)[:, None] * data + t[:, None] * noise
    predicted = torch.zeros_like(z, requires_grad=True)
    value, _ = loss({"v": lambda z, t: predicted, "teacher": teacher}, data, draws=draws)
    for k in range(3):
        here, there = t * (1 - k / 3), t * (1 - (k + 1) / 3)
        rate = teacher(z, here)
        if order == 2:
            rate = (rate + teacher(z + (there - here)[:, None] * rate, there)) / 2
        z = z + (there - here)[:, None] * rate
    assert value.item() == pytest.approx(float(z.square().sum(1).mean()), rel=1e-12)
    value.backward()
    assert torch.allclose(predicted.grad, -2 * z / 6, atol=1e-12)


def test_an_order_that_is_none_is_refused() -> None:
    text = f"objective x\n{HEAD}network v(z, t)\ntarget match v(z, t) to velocity\n"
    text += "let y = flow(v, z, t, 0, steps = 1, order = 3)\n"
    with pytest.raises(DiagnosticError, match=r"1 \(Euler\) or 2 \(Heun\)"):
        pipeline.load_text(text)
