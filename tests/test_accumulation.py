"""A batch in parts, the choice of optimiser, learning rates by player, and shipped recipes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_players import GAME, PLAYERS, loss_of, nets
from torch import Tensor, nn
from training_support import QUICK, TinyNet, log_of, tiny_dataset

import flowdsl
from flowdsl import pipeline, plan
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.runtime.dataset import Batch
from flowdsl.runtime.nets import build_network
from flowdsl.runtime.training.config import TrainConfig
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.parts import Moment, Part, backward, check_parts, in_parts
from flowdsl.runtime.training.players import Learner, Player, learning_rate
from flowdsl.runtime.training.trainer import train

RECIPES = Path(pipeline.__file__).parent.parent / "specs" / "recipes"
STEP = Moment(3, 10)


def gradients(loss: Any, modules: dict[str, nn.Module], parts: list[Part]) -> tuple[Any, Any, Any]:
    bound = loss.bind(modules).double()
    bound.zero_grad()
    value, terms = backward(
        bound, parts, STEP, terms=None, labelled=True, context=nullcontext
    )  # fmt: skip
    return value, terms, [p.grad.clone() for p in bound.parameters() if p.grad is not None]


def shipped(name: str) -> tuple[Any, dict[str, nn.Module]]:
    loss = pipeline.compiled(pipeline.load(name))
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {}
    for role in loss.signature.networks:
        if role.average_of is None:
            network = build_network(role, shape=(1, 4, 4), classes=3, size="nano", patch=2)
            for p in network.parameters():
                p.data += 0.05 * torch.randn_like(p)
            modules[role.name] = network
    return loss, modules


def cases() -> Iterator[tuple[str, Any, dict[str, nn.Module]]]:
    yield "a game", loss_of(), nets()
    for name in ("flow_matching", "meanflow", "tvm"):
        yield name, *shipped(name)


@pytest.mark.parametrize("count", [2, 4])
def test_parts_add_up_to_one_large_batch(count: int) -> None:
    """The same rows with the same draws, at once and in parts: value, terms and gradients."""
    for name, loss, modules in cases():
        data = tiny_dataset(200).batch(0, 0, 80)
        label = data.label
        assert label is not None
        wide = Batch(data.data.double(), label)
        parts = in_parts(loss, wide, count, STEP, torch.Generator().manual_seed(1))
        assert [len(part.batch.data) for part in parts] == [80 // count] * count
        assert torch.equal(torch.cat([part.batch.data for part in parts]), wide.data)
        draws = {k: torch.cat([part.draws[k] for part in parts]) for k in parts[0].draws}
        found = gradients(loss, modules, parts)
        wanted = gradients(loss, modules, [Part(wide, draws)])
        assert abs(found[0] - wanted[0]) < 1e-12 * abs(wanted[0]), name
        assert found[1].keys() == wanted[1].keys()
        for term, value in wanted[1].items():
            assert abs(found[1][term] - value) <= 1e-12 * abs(value), (name, term)
        assert len(found[2]) == len(wanted[2]) > 0
        for mine, theirs in zip(found[2], wanted[2], strict=True):
            assert float((mine - theirs).norm()) <= 1e-12 * float(theirs.norm() + 1e-6), name


@pytest.mark.parametrize(("batch", "count"), [(16, 4), (128, 8), (40, 4)])
def test_parts_that_would_have_other_shares_are_refused(batch: int, count: int) -> None:
    loss, _ = shipped("meanflow")
    with pytest.raises(DiagnosticError, match="rows instead of"):
        check_parts(loss.signature, batch, count)
    check_parts(loss.signature, batch, 1)
    check_parts(loss.signature, 128, 4)


def test_parts_are_drawn_differently() -> None:
    data = tiny_dataset().batch(0, 0, 16)
    parts = in_parts(loss_of(), data, 2, STEP, torch.Generator().manual_seed(1))
    for name in parts[0].draws:
        assert not torch.equal(parts[0].draws[name], parts[1].draws[name])
    whole = in_parts(loss_of(), data, 1, STEP, torch.Generator().manual_seed(1))
    assert len(whole) == 1
    assert torch.equal(whole[0].batch.data, data.data)


def test_a_run_in_parts_learns_with_every_player(tmp_path: Path) -> None:
    modules = nets()
    config = make_config([*QUICK, "accumulate=4", "steps=6", "log_every=6"])
    train(loss_of(), modules, tiny_dataset(), config, run_dir=tmp_path / "run", progress=False)
    for name in ("F", "fake"):
        assert not torch.equal(modules[name].first.weight, nets()[name].first.weight)
    assert {"student.loss", "critic.loss", "terms.push"} <= set(log_of(tmp_path / "run")[0])


# -- optimisers -------------------------------------------------------------------------------


def learner(*words: str, name: str = "all") -> tuple[Learner, nn.Module]:
    torch.manual_seed(0)
    network = TinyNet(width=8, times=1)
    config = make_config([*QUICK, *words])
    return Learner(Player(name, ("F",)), {"F": network}, config), network


def walk(one: Learner, network: nn.Module, steps: int = 8) -> list[Tensor]:
    for step in range(steps):
        for i, p in enumerate(network.parameters()):
            p.grad = torch.full_like(p, (-1.0) ** step * (i + 1) + step)
        one.step(step)
    return [p.detach() for p in network.parameters()]


def test_radam_is_that_of_torch_with_decoupled_decay() -> None:
    words = ("optimizer.name=radam", "optimizer.betas=0.8,0.9", "optimizer.epsilon=1e-5",
             "optimizer.weight_decay=0.1")  # fmt: skip
    one, network = learner(*words)
    _, other = learner()
    settings = one.config.optimizer
    groups = [[p for p in other.parameters() if (p.ndim >= 2) == wide] for wide in (True, False)]
    reference = torch.optim.RAdam(
        [{"params": g, "weight_decay": d} for g, d in zip(groups, (0.1, 0.0), strict=True)],
        lr=1.0, betas=(0.8, 0.9), eps=1e-5, decoupled_weight_decay=True,
    )  # fmt: skip
    for step in range(8):
        for i, p in enumerate(other.parameters()):
            p.grad = torch.full_like(p, (-1.0) ** step * (i + 1) + step)
        for group in reference.param_groups:
            group["lr"] = learning_rate(settings, step, one.config.steps)
        reference.step()
    found = walk(one, network)
    for mine, theirs in zip(found, other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    plain = walk(*learner("optimizer.betas=0.8,0.9", "optimizer.epsilon=1e-5"))
    assert not torch.equal(found[0], plain[0])


def test_a_player_has_its_own_learning_rate(tmp_path: Path) -> None:
    words = [*QUICK, "steps=5", "log_every=1", "optimizer.rates=critic:0.25"]
    loss = pipeline.compiled(pipeline.load_text(GAME + PLAYERS))
    config = make_config(words)
    train(loss, nets(), tiny_dataset(), config, run_dir=tmp_path / "run", progress=False)
    line = log_of(tmp_path / "run")[0]
    whole = learning_rate(config.optimizer, 0, 5)
    assert line["student.learning_rate"] == pytest.approx(whole)
    assert line["critic.learning_rate"] == pytest.approx(0.25 * whole)


# -- recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_belongs_to_a_spec_and_builds_its_networks(path: Path) -> None:
    objective = flowdsl.load(path.stem)
    recipe = dict(plan.recipe(objective.tree))
    stages = recipe.pop("stages", {})
    assert set(stages) <= {stage.name for stage in objective.stages()}
    configs = [make_config([], settings) for settings in (recipe, *stages.values()) if settings]
    assert configs
    assert TrainConfig() not in configs
    config = configs[0]
    loss = objective.compile()
    z, time, label = torch.randn(2, 1, 4, 4), torch.rand(2), torch.tensor([1, NULL_LABEL])
    for role in loss.signature.learned:
        network = build_network(
            role, shape=(1, 4, 4), classes=3, patch=2, parts=config.network.model_dump()
        )
        given = {"state": z, "time": time, "scalar": time, "label": label}
        call = [given[a.kind] for a in role.arguments]
        outputs = network(*call, **{c.name: given[c.kind] for c in role.conditions})
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        assert first.shape == z.shape


def test_recipes_say_what_the_papers_say() -> None:
    def config(name: str) -> TrainConfig:
        return make_config([], plan.recipe(flowdsl.load(name).tree))

    assert config("tvm").optimizer.betas == (0.9, 0.95)
    assert config("tvm").network.modulation == "normalised"
    assert config("imf").network.conditioning == "in_context"
    assert config("continuous_consistency_training").optimizer.name == "radam"
    assert config("meanflow") == TrainConfig()
