"""Blocks computed again in the backward pass: the same gradients, for less memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowdsl
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.bench.counting import LiveBytes
from flowdsl.runtime.loss import LossModule
from flowdsl.runtime.nets import SIZES, configure, network_from_config
from flowdsl.runtime.nets.recompute import recompute_blocks, recomputing
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.state import TrainState
from flowdsl.runtime.weights import wake

SHAPE, BATCH = (1, 8, 8), 12
SIZE = replace(SIZES["nano"], depth=6, width=24, heads=2)


def bound(name: str, own_blocks: int = 0) -> LossModule:
    loss = flowdsl.load(name).compile()
    networks = {}
    for role in loss.signature.networks:
        config = configure(role, shape=SHAPE, classes=5, patch=2)
        made = network_from_config(replace(config, size=SIZE, own_blocks=own_blocks))
        wake(made, torch.Generator().manual_seed(0))
        networks[role.name] = made.double()
    return loss.bind(networks)


def step_of(module: LossModule) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(BATCH, *SHAPE, generator=generator, dtype=torch.float64)
    draws = module.loss.draw(data, generator=generator, progress=1.0)
    label = torch.randint(5, (BATCH,), generator=generator)
    return {"data": data, "label": label, "draws": draws, "progress": 1.0}


def taken(module: LossModule, given: dict[str, Any]) -> tuple[Tensor, list[Tensor], int]:
    """Value, gradients, and the most bytes that lived at once."""
    learned = [p for p in module.parameters() if p.requires_grad]
    known = [*module.parameters(), *module.buffers(), given["data"], *given["draws"].values()]
    with LiveBytes(known) as memory:
        value, _ = module(**given)
        grads = torch.autograd.grad(value, learned, allow_unused=True)
    return value, [g for g in grads if g is not None], memory.peak


@pytest.mark.parametrize(
    ("name", "share", "own_blocks"),
    [("flow_matching", 0.6, 0), ("meanflow", 0.6, 0), ("meanflow", 0.6, 3), ("tvm", 0.9, 0)],
)
def test_the_same_for_less_memory(name: str, share: float, own_blocks: int) -> None:
    """TVM keeps the pass of its derivative, which PyTorch cannot compute again."""
    module = bound(name, own_blocks)
    given = step_of(module)
    taken(module, given)  # the first derivative is looked at, which takes memory of its own
    value, gradients, peak = taken(module, given)
    with recomputing(module.networks.values()):
        again, others, lower = taken(module, given)
    assert torch.equal(value, again)
    for mine, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)
    assert lower < share * peak
    assert taken(module, given)[2] == peak  # as before


def test_training_can_ask_for_it() -> None:
    loss = flowdsl.load("flow_matching").compile()
    module = bound("flow_matching")
    network = next(iter(module.networks.values()))
    config = make_config(["recompute=true"])
    TrainState(loss, network, config, None, torch.device("cpu"))
    assert network.recompute is True
    with pytest.raises(DiagnosticError, match="no network here can compute its blocks again"):
        recompute_blocks([nn.Linear(2, 2)])
