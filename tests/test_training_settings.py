"""Settings of training by recipe and by word, and what a run writes on the way."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from training_support import (
    QUICK,
    MeanFlow,
    at,
    go_on,
    log_of,
    start,
    tiny_dataset,
    tiny_net,
)

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.training.config import TrainConfig
from flowdsl.runtime.training.log import Window
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.overrides import settings as config_settings
from flowdsl.runtime.training.progress import Bar, Lines, duration
from flowdsl.runtime.training.trainer import train

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
