"""Players as a spec names them: who learns which terms, in which rhythm, and resumed exactly."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from training_support import QUICK, TinyNet, Watched, at, log_of, tiny_dataset

import flowdsl
from flowdsl import pipeline
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.training.checkpoints import load_checkpoint
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.players import players_of
from flowdsl.runtime.training.trainer import resume, train

GAME = """objective game
path z(t) = (1 - t) * data + t * noise
times t ~ uniform(0, 1); r ~ uniform(0, 1); noise' ~ normal(0, 1)
network F(z, t | label); teacher(z, t | label) frozen; fake(z, t | label)
let generated = noise - F(noise, 1)
    x = z(r | data = generated, noise = noise')
target pull: match F(z, t) to stop(teacher(z, t))
       push: match generated to stop(generated - 0.1 * (fake(x, r) - teacher(x, r)))
critic match fake(x, r) to velocity(x)
loss mse
"""
PLAYERS = "players student: F on target, push every 3; critic: fake on critic every 2\n"
NETWORKS = ("F", "teacher", "fake")


def loss_of(players: str = PLAYERS):
    return pipeline.compiled(pipeline.load_text(GAME + players))


def nets(seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {name: TinyNet(width=8, times=1) for name in NETWORKS}


def test_a_group_is_all_of_its_terms_and_a_named_term_keeps_its_own_rhythm() -> None:
    signature = loss_of().signature
    assert [(p.name, p.networks, p.terms) for p in signature.players] == [
        ("student", ("F",), (("pull", 1), ("push", 3))),
        ("critic", ("fake",), (("critic", 2),)),
    ]
    student, critic = players_of(signature)
    assert [student.due(step) for step in range(4)] == [
        ("pull", "push"), ("pull",), ("pull",), ("pull", "push"),
    ]  # fmt: skip
    assert [critic.due(step) for step in range(3)] == [("critic",), (), ("critic",)]


def test_players_may_stand_anywhere_in_a_spec() -> None:
    head, rest = GAME.split("\n", 1)
    first = pipeline.load_text(f"{head}\n{PLAYERS}{rest}")
    assert first.players == pipeline.load_text(GAME + PLAYERS).players


@pytest.mark.parametrize(
    ("players", "words"),
    [
        ("players a: F on target; b: F, fake on critic", "`F` learns with `a` and with `b`"),
        ("players a: F on target", "`fake` learns with no player"),
        ("players a: F, teacher on target; b: fake on critic", "`teacher` is frozen"),
        ("players a: F on target; a: fake on critic", "two players are called `a`"),
        ("players a: F on targt; b: fake on critic", "no term `targt`"),
        ("players a: G on target; b: fake on critic", "no network `G`"),
    ],
)
def test_players_that_cannot_be_are_refused(players: str, words: str) -> None:
    with pytest.raises(DiagnosticError) as caught:
        pipeline.load_text(f"{GAME}{players}\n")
    assert words in caught.value.diagnostics[0].message


def test_each_player_moves_in_its_rhythm(tmp_path: Path) -> None:
    modules, states = nets(), []
    watched = Watched(
        lambda step: states.append({k: m.first.weight.detach().clone() for k, m in modules.items()})
    )
    train(loss_of("players student: F on pull every 2, push every 3; critic: fake on critic every 4"
                  "\n"),
          modules, watched, make_config([*QUICK, "steps=8", "log_every=8"]),
          run_dir=tmp_path / "run", progress=False)  # fmt: skip
    moved = {n: [not torch.equal(x[n], y[n]) for x, y in pairwise(states)] for n in modules}
    assert moved["F"] == [step % 2 == 0 or step % 3 == 0 for step in range(7)]
    assert moved["fake"] == [step % 4 == 0 for step in range(7)]
    assert moved["teacher"] == [False] * 7
    line = log_of(tmp_path / "run")[0]
    assert {"student.loss", "critic.loss", "terms.pull", "terms.push", "terms.critic"} <= set(line)


def test_a_step_is_that_of_each_player_s_own_optimiser_and_terms(tmp_path: Path) -> None:
    """One step by hand: the student first, then the critic, who sees the new student."""
    loss, modules, mine = loss_of(), nets(), nets()
    words = [*QUICK, "steps=1", "optimizer.warmup=0", "optimizer.clip=1e9", "log_every=1"]
    config = make_config(words)
    seen = {}

    class Drawing(type(loss)):
        def draw(self, data, **more):
            drawn = super().draw(data, **more)
            seen.update(draws=drawn, data=data)
            return drawn

    loss.__class__ = Drawing
    dataset = tiny_dataset()
    train(loss, modules, dataset, config, run_dir=tmp_path / "run", progress=False)
    batch = dataset.batch(0, config.seed, config.batch)
    settings = config.optimizer
    for name, terms in (("F", ("pull", "push")), ("fake", ("critic",))):
        optimizer = torch.optim.AdamW(
            mine[name].parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=0
        )
        for net in mine.values():
            net.zero_grad()
        value, parts = loss(mine, batch.data, draws=seen["draws"], label=batch.label, terms=terms)
        assert set(parts) == set(terms)
        value.backward()
        optimizer.step()
    for name in NETWORKS:
        for a, b in zip(modules[name].parameters(), mine[name].parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6), name
    assert not torch.equal(modules["fake"].first.weight, nets()["fake"].first.weight)


def test_a_game_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(loss_of(), nets(), tiny_dataset(), make_config(QUICK), run_dir=whole, progress=False)
    stopping = at(13, lambda: os.kill(os.getpid(), signal.SIGINT))
    stopped = train(loss_of(), nets(), stopping, make_config(QUICK), run_dir=parts, progress=False)
    assert (stopped.step, stopped.exit_code) == (14, 130)
    resume(parts, loss_of(), nets(seed=5), tiny_dataset(), progress=False)
    a, b = (load_checkpoint(path / "checkpoints") for path in (whole, parts))
    assert set(a.optimizers) == {"student", "critic"}
    for name, tensors in a.tensors.items():
        assert all(torch.equal(v, b.tensors[name][k]) for k, v in tensors.items()), name
    for player, optimizer in a.optimizers.items():
        for k, moments in optimizer["state"].items():
            other = b.optimizers[player]["state"][k]
            assert all(torch.equal(v, other[name]) for name, v in moments.items())
    assert log_of(whole) == log_of(parts)


ALTERNATING = """objective alternating
path     z(t) = (1 - t) * data + t * noise
times    t ~ uniform(0, 1)
network  u(z, t); v(z, t)
target   match u(z, t) to velocity
critic   match v(z, t) to velocity
players  student: u on target every 5; critic: v on critic except every 5
"""


def test_a_player_may_rest_exactly_when_another_steps() -> None:
    objective = flowdsl.loads(ALTERNATING)
    assert flowdsl.loads(objective.text()).typed.players == objective.typed.players
    student, critic = players_of(objective.compile().signature)
    turns = [(bool(student.due(k)), bool(critic.due(k))) for k in range(11)]
    assert turns == [(k % 5 == 0, k % 5 != 0) for k in range(11)]


@pytest.mark.parametrize("number", ["0", "1", "2.5", "20000"])
def test_every_step_but_all_of_them_is_no_rhythm(number: str) -> None:
    with pytest.raises(DiagnosticError, match=f"`except every {number}` is no number of steps"):
        flowdsl.loads(ALTERNATING.replace("except every 5", f"except every {number}"))
