"""States that tell their time: one more entry, which holds no data and moves alike on all rows.

A network that is not shown the time of its state is taken to tell it from the state, as it can
where states have many entries. With this entry it can in two dimensions, too, and has an exact
truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowdsl.exact.field import MixtureField
from flowdsl.exact.mixture import GaussianMixture
from flowdsl.exact.paths import AffinePath, Schedule


@dataclass(frozen=True, eq=False)
class Telling:
    """The entry: `sigma(t)`, as if the data were 0 there and the noise 1.

    `time` is the inverse of `sigma`, and `mean_rate(t, s)` is `(sigma(s) - sigma(t)) / (s - t)`,
    smooth through equal times.
    """

    path: AffinePath
    time: Schedule
    mean_rate: Callable[[Tensor, Tensor], Tensor]

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """A state (rows, d + 1) without the entry, (rows, d), and the time that it tells."""
        return state[:, :-1], self.time(state[:, -1])

    @staticmethod
    def joined(state: Tensor, entry: Tensor) -> Tensor:
        """States or velocities (rows, d) with one entry more."""
        return torch.cat([state, entry[:, None]], 1)


@dataclass(frozen=True, eq=False)
class ToldField:
    """Rows of a mixture on its path, whose states (rows, d + 1) tell their time."""

    field: MixtureField
    telling: Telling

    @property
    def path(self) -> AffinePath:
        return self.field.path

    @property
    def mixture(self) -> GaussianMixture:
        """The law of the entries that hold data."""
        return self.field.mixture

    def sample(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Data (rows, d + 1) and labels."""
        data, label = self.field.sample(rows, generator)
        return self._with(data, 0.0), label

    def settled(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws whose noises are 1 where the data are 0."""
        return {
            name: self._with(value[:, :-1], 1.0) if value.dim() > 1 else value
            for name, value in draws.items()
        }

    def posterior_points(
        self, state: Tensor, time: Tensor, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `MixtureField.posterior_points`."""
        return self._ends(self.field.posterior_points(state[:, :-1], time, label))

    def posterior_sample(
        self,
        state: Tensor,
        time: Tensor,
        label: Tensor | None,
        generator: torch.Generator,
        *,
        copies: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """See `MixtureField.posterior_sample`."""
        own = self.field.posterior_sample(state[:, :-1], time, label, generator, copies=copies)
        return self._ends(own)

    def _ends(self, ends: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self._with(ends[0], 0.0), self._with(ends[1], 1.0)

    @staticmethod
    def _with(state: Tensor, entry: float) -> Tensor:
        return Telling.joined(state, torch.full_like(state[:, 0], entry))
