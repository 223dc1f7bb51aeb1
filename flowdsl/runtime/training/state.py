"""Everything that changes while training, and its way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flowdsl.diagnostics import fail
from flowdsl.runtime.compiling import CheckedCompiled
from flowdsl.runtime.contract import ObjectiveSignature
from flowdsl.runtime.nets.recompute import recompute_blocks
from flowdsl.runtime.protocols import BoundLoss, CompiledLoss, Networks
from flowdsl.runtime.training.averages import EvaluationAverage
from flowdsl.runtime.training.checkpoints import Checkpoint, save_tensors
from flowdsl.runtime.training.config import TrainConfig
from flowdsl.runtime.training.directory import RunDirectory
from flowdsl.runtime.training.guard import Guard
from flowdsl.runtime.training.log import Window
from flowdsl.runtime.training.parts import check_parts
from flowdsl.runtime.training.players import Learner, Player, check_players, players_of


class TrainState:
    """Networks, their averages, optimisers, the log's open window, and how far the run has come."""

    def __init__(
        self,
        loss: CompiledLoss,
        networks: Networks,
        config: TrainConfig,
        players: Sequence[Player] | None,
        device: torch.device,
    ) -> None:
        self.signature = loss.signature
        self.bound = loss.bind(networks)
        self.bound.to(device)
        self.bound.train()
        self.run = _compiled(self.bound, config)
        if config.recompute:
            recompute_blocks(self.bound.networks.values())
        self.networks: dict[str, nn.Module] = dict(self.bound.networks.items())
        players = players_of(loss.signature) if players is None else players
        check_players(players, loss.signature, config.optimizer)
        check_parts(loss.signature, config.batch, config.accumulate)
        self.learners = [Learner(player, self.networks, config) for player in players]
        learned = {n.name: self.networks[n.name] for n in loss.signature.learned}
        self.averages = [EvaluationAverage(learned, decay) for decay in config.ema]
        self.guard = Guard(config.patience)
        self.window = Window()
        self.last: dict[str, float] = {}
        self.step = 0
        self.seconds = 0.0

    def checkpoint(self) -> Checkpoint:
        """The state as plain data."""
        tensors = {"networks": learned_tensors(self.signature, self.bound.state_dict())}
        for average in self.averages:
            tensors[average.name] = average.networks.state_dict()
        plain = {
            "seconds": self.seconds,
            "skipped_in_a_row": self.guard.in_a_row,
            "window": self.window.state(),
            "last": self.last,
            "first_average": self.averages[0].name,
        }
        optimizers = {one.player.name: one.optimizer.state_dict() for one in self.learners}
        return Checkpoint(self.step, tensors, optimizers, plain)

    def restore(self, checkpoint: Checkpoint, frozen: Mapping[str, Tensor]) -> None:
        """Takes over a checkpoint, and the networks that do not learn, of the same run."""
        try:
            self.bound.load_state_dict({**checkpoint.tensors["networks"], **frozen})
            for average in self.averages:
                average.networks.load_state_dict(checkpoint.tensors[average.name])
            for learner in self.learners:
                learner.optimizer.load_state_dict(checkpoint.optimizers[learner.player.name])
        except (RuntimeError, KeyError, ValueError) as error:
            raise fail(
                "checkpoint",
                f"the checkpoint of step {checkpoint.step} does not fit these networks",
                facts=(("torch says", str(error).strip()),),
                hint="resume with the networks and players of the run",
            ) from error
        self.step = checkpoint.step
        self.seconds = checkpoint.state["seconds"]
        self.guard.in_a_row = checkpoint.state["skipped_in_a_row"]
        self.window = Window(checkpoint.state["window"])
        self.last = checkpoint.state["last"]


def _compiled(bound: BoundLoss, config: TrainConfig) -> Callable[..., Any]:
    """The bound loss as it is called."""
    if not config.compile:
        return bound
    if not isinstance(bound, nn.Module):
        raise fail("compile", "this loss is no module of torch, which alone can be compiled")
    return CheckedCompiled(bound, config.backend)


def learned_tensors(
    signature: ObjectiveSignature, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A bound loss's state without its frozen networks: those are saved once per run."""
    frozen = _frozen_prefixes(signature)
    return {key: value for key, value in state.items() if not key.startswith(frozen)}


def save_frozen(state: TrainState, directory: RunDirectory) -> None:
    """Writes the networks that do not learn beside the checkpoints; nothing when there are none."""
    frozen = _frozen_prefixes(state.signature)
    tensors = {k: v for k, v in state.bound.state_dict().items() if k.startswith(frozen)}
    if tensors:
        save_tensors(directory.frozen, tensors)


def load_frozen(directory: RunDirectory) -> dict[str, Tensor]:
    """What `save_frozen` wrote, keyed as in the bound loss's state."""
    return load_file(directory.frozen) if directory.frozen.exists() else {}


def _frozen_prefixes(signature: ObjectiveSignature) -> tuple[str, ...]:
    return tuple(f"networks.{network.name}." for network in signature.networks if network.frozen)
