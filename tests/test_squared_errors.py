"""The squared error beside a loss that makes another number of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import flowdsl
from flowdsl.cli import app
from flowdsl.runtime.training.log import read_metrics


class Net(nn.Module):
    """Any smooth network, of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, z: Tensor, *times: Tensor, **conditions: Tensor) -> Tensor:
        total = sum(t.view(-1, 1, 1, 1) for t in times)
        return torch.sin(self.weight * z + total)


PLAIN = {"meanflow": ("error", "error"), "tvm": ("mse", "mse"), "alphaflow": ("mse", "mse")}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_it_is_the_loss_of_the_same_spec_without_a_weight(name: str, progress: float) -> None:
    written, key = PLAIN[name]
    objective = flowdsl.load(name)
    text = objective.text()
    bare = re.sub(r"(?ms)^loss .*?(?=^\S|\Z)", f"loss {written}\n", text)
    data = torch.randn(16, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    label = torch.arange(16) % 3
    with_errors = objective.compile(errors=True, check=False)
    usual = objective.compile(check=False)
    plain = flowdsl.loads(bare).compile(check=False)
    draws = usual.draw(data, generator=torch.Generator().manual_seed(2), progress=progress)
    found = []
    for loss in (with_errors, usual, plain):
        net = Net()
        roles = {n.name: net for n in loss.signature.networks}
        value, metrics = loss(roles, data, draws=draws, label=label, progress=progress)
        value.backward()
        found.append((value.detach(), net.weight.grad, metrics))
    (value, slope, metrics), (same, as_steep, terms), (_, _, errors) = found
    assert torch.equal(value, same)  # nothing that is learnt changes
    assert torch.equal(slope, as_steep)
    for term in terms:
        assert torch.equal(metrics[term], terms[term])
        torch.testing.assert_close(metrics[f"{term}.{key}"], errors[term])
        assert not metrics[f"{term}.{key}"].requires_grad
    assert len(metrics) == 2 * len(terms)


def test_players_see_those_of_their_own_terms() -> None:
    loss = flowdsl.load("free_flow").compile(errors=True, check=False)
    data = torch.randn(8, 2, 3, 3, dtype=torch.float64)
    roles = {n.name: Net() for n in loss.signature.networks}
    _, metrics = loss(roles, data, terms=["correction"])
    assert set(metrics) == {"correction", "correction.mse"}
    _, metrics = loss(roles, data, terms=["critic"])
    assert set(metrics) == {"critic"}  # its loss is the squared error itself


def test_a_plain_loss_has_none_and_nothing_is_emitted_unasked() -> None:
    objective = flowdsl.load("flow_matching")
    assert objective.compile(errors=True, check=False).source == objective.emit()
    assert "errors" not in flowdsl.load("tvm").emit()


def test_a_run_logs_it_and_shows_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", "meanflow", "steps=2", "batch=8", "sample_steps=1",
                                    "tensorboard=no", "-o", str(tmp_path / "run")])  # fmt: skip
    assert done.exit_code == 0, done.output
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert line["terms.target.error"] > 5 * line["loss"]  # the weighted one is about 1
    assert f"error {line['terms.target.error']:.4g}" in done.output
    source = (tmp_path / "run" / "loss.py").read_text()
    assert '"target.error": error.detach().mean()' in source
