"""Who learns through what, as the check `gradient` says it, and as training does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_players import GAME as AGAINST
from test_players import PLAYERS, nets
from test_training import QUICK
from training_support import tiny_dataset

from flowdsl import pipeline
from flowdsl.checks import Verdict, check
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.trainer import train

# a step towards where the teacher's velocity says the data are denser
GAME = AGAINST.replace("generated - 0.1 *", "generated + 0.1 *")
STOPPED = GAME.replace("data = generated", "data = stop(generated)")
LIVE_PUSH = STOPPED.replace(
    "to stop(generated + 0.1 * (fake(x, r) - teacher(x, r)))",
    "to stop(generated) + 0.1 * (fake(x, r) - stop(teacher(x, r)))",
)
ADVERSARIAL = """objective adversarial
path z(t) = (1 - t) * data + t * noise
times t, r ~ sorted(uniform(0, 1))
network u(z, t, r); judge(z, t) -> scalar
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
let made = map(noise, 1, 0)
target match u(z, t, t) to velocity
correction minimise -judge(made, 0)
critic minimise softplus(-judge(data, 0)) + softplus(judge(stop(made), 0))
loss mse
"""
SIDES = "players student: u on target, correction; critic: judge on critic\n"


def gradient(text: str) -> tuple[Verdict, ...]:
    return check(pipeline.load_text(text), only=["gradient"]).verdicts


def said(text: str, status: str) -> list[str]:
    """What is said of learners; where a step leads is said of its term."""
    found = [v.message for v in gradient(text) if v.status == status]
    return [m for m in found if not m.startswith("descends the KL divergence")]


def test_every_player_is_told_with_the_terms_that_reach_its_networks() -> None:
    assert said(STOPPED + PLAYERS, "proved") == ["student: F by pull, push; critic: fake by critic"]
    assert said(ADVERSARIAL + SIDES, "proved") == [
        "student: u by target, correction; critic: judge by critic"
    ]
    free = check(pipeline.load("free_flow"), only=["gradient"]).verdicts
    assert [v.message for v in free if not v.term] == [
        "student: F by target, correction; critic: fake by critic"
    ]
    assert said(STOPPED, "proved") == ["gradient reaches F by pull, push; fake by critic"]


def test_a_player_must_be_reached_by_its_own_terms() -> None:
    wrong = STOPPED + "players student: F on critic; critic: fake on target\n"
    assert "student: F receives no gradient from critic" in said(wrong, "refuted")
    assert "critic: fake receives no gradient from pull, push" in said(wrong, "refuted")
    assert "critic learns nothing from pull: none of its networks is live" in said(wrong, "refuted")
    hints = [v.diagnostic.hint for v in gradient(wrong) if v.diagnostic is not None]
    assert any("gradient reaches it in critic" in hint for hint in hints)
    unplayed = STOPPED + "players student: F on pull; critic: fake on critic\n"
    assert said(unplayed, "refuted") == ["no player learns from push"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LIVE_PUSH, "push moves fake too, which learns by critic"),
        (ADVERSARIAL, "correction moves judge too, which learns by critic"),
    ],
)
def test_a_judge_that_is_moved_by_whom_it_judges_needs_players(text: str, message: str) -> None:
    """One optimiser for both: the judge would learn to please."""
    assert message in said(text, "refuted")
    players = SIDES if text == ADVERSARIAL else PLAYERS
    assert not said(text + players, "refuted")


def test_samples_without_a_stop_are_noted() -> None:
    assert any("moves F too, through the samples that fake sees" in m for m in said(GAME, "note"))
    thrown = [m for m in said(GAME + PLAYERS, "note") if "thrown away" in m]
    assert thrown == [
        "gradient of critic also reaches F, which learns with student: it is thrown away, since a "
        "player's step moves its own networks alone"
    ]
    # the generator learns through the judge: that gradient has to pass, and nothing is said
    assert not said(ADVERSARIAL + SIDES, "note")


def trained(text: str, where: Path) -> list[torch.Tensor]:
    modules = nets()
    words = [*QUICK, "steps=3", "log_every=3"]
    train(pipeline.compiled(pipeline.load_text(text)), modules, tiny_dataset(), make_config(words),
          run_dir=where, progress=False)  # fmt: skip
    return [p.detach() for net in modules.values() for p in net.parameters()]


@pytest.mark.parametrize("wrong", [GAME, LIVE_PUSH])
def test_what_is_thrown_away_changes_no_step_and_without_players_it_does(
    wrong: str, tmp_path: Path
) -> None:
    right, slip = (trained(text + PLAYERS, tmp_path / str(k))
                   for k, text in enumerate((STOPPED, wrong)))  # fmt: skip
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(right, slip, strict=True))
    right, slip = (trained(text, tmp_path / f"alone {k}")
                   for k, text in enumerate((STOPPED, wrong)))  # fmt: skip
    assert not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(right, slip, strict=True))


@pytest.mark.parametrize("spec", ["lagrangian_self_distillation", "scm", "tmd_meanflow", "imf"])
def test_learned_weights_features_and_heads_are_no_judges(spec: str) -> None:
    verdicts = check(pipeline.load(spec), only=["gradient"]).verdicts
    assert not any("moves" in v.message or not v.ok for v in verdicts)
