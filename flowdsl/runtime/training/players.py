"""Who learns what: each player has its own networks, terms and optimiser.

Most objectives have one player that owns every learned network and adds up every term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.runtime.contract import ObjectiveSignature
from flowdsl.runtime.training.config import OptimizerConfig, TrainConfig


@dataclass(frozen=True)
class Player:
    """The networks in `roles` learn the terms in `terms` (None: all), at every `every`-th step.

    `rhythm` holds terms that this player learns more rarely, at every so-many-th of all steps; with
    a negative number it rests at these, and learns at all others.
    """

    name: str
    roles: tuple[str, ...]
    terms: tuple[str, ...] | None = None
    every: int = 1
    rhythm: Mapping[str, int] = field(default_factory=dict)

    def due(self, step: int) -> tuple[str, ...] | None:
        """The terms to learn from at a step (None: all); empty when it is not this player's turn.

        A player whose terms all rest does not step: its optimiser's moments do not move either.
        """
        if step % self.every:
            return ()
        if self.terms is None:
            return None
        return tuple(term for term in self.terms if _falls_on(self.rhythm.get(term, 1), step))


def _falls_on(every: int, step: int) -> bool:
    return (step % abs(every) == 0) == (every > 0)


def players_of(signature: ObjectiveSignature) -> tuple[Player, ...]:
    """The players that a spec names, or one for every learned network and every term."""
    if not signature.players:
        return (Player("all", tuple(network.name for network in signature.learned)),)
    return tuple(
        Player(
            player.name,
            player.networks,
            tuple(term for term, _ in player.terms),
            rhythm={term: every for term, every in player.terms if every != 1},
        )
        for player in signature.players
    )


class Learner:
    """A player with its parameters and its optimiser."""

    def __init__(
        self, player: Player, networks: Mapping[str, nn.Module], config: TrainConfig
    ) -> None:
        self.player = player
        self.config = config
        named = [(n, p) for role in player.roles for n, p in networks[role].named_parameters()]
        self.parameters = [p for _, p in named if p.requires_grad]
        matrices = [p for p in self.parameters if p.ndim >= 2]
        vectors = [p for p in self.parameters if p.ndim < 2]
        settings = config.optimizer
        self.factor = rates(settings).get(player.name, 1.0)
        self.optimizer = _optimizer(
            settings,
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
        )

    def clip(self) -> Tensor:
        """Scales the gradient down to the norm allowed; the norm before that, a scalar tensor."""
        return nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip)

    def step(self, step: int) -> float:
        """One optimiser step at the learning rate of this step, which is returned."""
        rate = self.factor * learning_rate(self.config.optimizer, step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return rate


def _optimizer(settings: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Weight decay is decoupled from the gradient in both (arXiv:1711.05101)."""
    rate, betas, epsilon = settings.learning_rate, settings.betas, settings.epsilon
    if settings.name == "radam":
        return torch.optim.RAdam(
            groups, lr=rate, betas=betas, eps=epsilon, decoupled_weight_decay=True
        )
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon)


def rates(settings: OptimizerConfig) -> dict[str, float]:
    """The factor of each player's learning rate, where it has one of its own."""
    pairs = (word.rpartition(":") for word in settings.rates)
    return {player: float(factor) for player, _, factor in pairs}


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear from 0 over `warmup` steps, then constant or a cosine down to a tenth at the end."""
    peak = config.learning_rate
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    if config.schedule == "constant":
        return peak
    done = (step - config.warmup) / max(1, steps - config.warmup)
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def check_players(
    players: Sequence[Player], signature: ObjectiveSignature, settings: OptimizerConfig
) -> None:
    """Every role learned by exactly one player, every term known, and every player whose learning
    rate is set; else a `DiagnosticError`.
    """
    names = [player.name for player in players]
    for name in rates(settings):
        if name not in names:
            raise fail(
                "players",
                f'optimizer.rates: no player is called "{name}"',
                facts=(("players", ", ".join(names)),),
                hint=did_you_mean(name, names),
            )
    learned = [network.name for network in signature.learned]
    owned = [role for player in players for role in player.roles]
    for role in owned:
        if role not in learned:
            raise fail(
                "players", f'"{role}" is not a learned network', hint=did_you_mean(role, learned)
            )
    for role in learned:
        if owned.count(role) != 1:
            raise fail(
                "players", f'"{role}" is learned by {owned.count(role)} players', hint="by one"
            )
    for player in players:
        for term in player.terms or ():
            if term not in signature.terms:
                hint = did_you_mean(term, signature.terms)
                raise fail("players", f'{player.name}: there is no term "{term}"', hint=hint)
        if player.every < 1:
            raise fail("players", f"{player.name} learns every {player.every} steps", hint=">= 1")
        for every in player.rhythm.values():
            if every in (0, -1):
                raise fail(
                    "players",
                    f"{player.name} learns every {every} steps",
                    hint="n, or -n for all steps but every n-th, of which two or more",
                )
