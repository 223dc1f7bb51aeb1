"""The gradient of a loss in the directions of exact networks, batch by batch.

A batch is drawn from the mixture by its number alone, so that two estimations see the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from flowdsl.exact.mixture import GaussianMixture
from flowdsl.exact.networks import ExactNetwork
from flowdsl.exact.paths import AffinePath
from flowdsl.runtime.checks import share_size
from flowdsl.runtime.contract import ObjectiveSignature

MOST_SOUGHT = 256  #: numbers of states that are tried for one whose exact shares fit


class LossLike(Protocol):
    """What a certificate needs of a compiled loss."""

    @property
    def signature(self) -> ObjectiveSignature: ...

    def draw(
        self,
        data: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: float = 0.0,
        step: int = 0,
        steps: int = 1,
    ) -> dict[str, Tensor]: ...

    def __call__(
        self,
        network: nn.Module | Mapping[str, nn.Module],
        data: Tensor,
        *,
        draws: dict[str, Tensor] | None = None,
        label: Tensor | None = None,
        progress: float = 0.0,
        step: int = 0,
        steps: int = 1,
        terms: tuple[str, ...] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


class RowField(Protocol):
    """Rows of data on a path, and what may have made a state of it."""

    @property
    def mixture(self) -> GaussianMixture: ...

    @property
    def path(self) -> AffinePath: ...

    def sample(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...

    def settled(self, draws: dict[str, Tensor]) -> dict[str, Tensor]: ...

    def posterior_points(
        self, state: Tensor, time: Tensor, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def posterior_sample(
        self,
        state: Tensor,
        time: Tensor,
        label: Tensor | None,
        generator: torch.Generator,
        *,
        copies: int = 1,
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Posterior:
    """States are kept, and what made them is replaced by `copies` of their posterior.

    The expectation is the same, and most of the noise of the conditional velocity is gone. Without
    `copies`, 2 d of them carry the posterior's mean and covariance: with a gradient that is at most
    quadratic in the velocity the conditional expectation is then exact. `state_time` gives, from
    the draws, the time at which each of so many rows' states is kept (NaN: nothing is), `shown` the
    labels under which it is looked at, `noise` the draw that made it together with the data.
    """

    state_time: Callable[[dict[str, Tensor], int], Tensor]
    copies: int | None = None
    shown: Callable[[dict[str, Tensor], Tensor], Tensor] | None = None
    noise: str = "noise"

    def of_size(self, dimension: int) -> int:
        """How many copies stand for a state."""
        return 2 * dimension if self.copies is None else self.copies

    def again(
        self,
        field: RowField,
        data: Tensor,
        label: Tensor,
        draws: dict[str, Tensor],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Data, labels and draws (rows * copies, …) for those of (rows, …), copies adjacent."""
        rows, copies = len(data), self.of_size(field.mixture.dimension)
        times = self.state_time(draws, rows).to(data)
        kept = times.isfinite()
        some = torch.where(kept, times, times[kept].mean() if bool(kept.any()) else 0.5)
        state = field.path.state(data, draws[self.noise], some)
        shown = label if self.shown is None else self.shown(draws, label)
        if self.copies is None:
            ends = field.posterior_points(state, some, shown)
        else:
            ends = field.posterior_sample(state, some, shown, generator, copies=copies)
        repeated = {name: _repeat(value, rows, copies) for name, value in draws.items()}
        chosen = kept.repeat_interleave(copies)[:, None]
        new = torch.where(chosen, ends[0], data.repeat_interleave(copies, dim=0))
        noise = torch.where(chosen, ends[1], repeated[self.noise])
        return new, label.repeat_interleave(copies), {**repeated, self.noise: noise}


@dataclass(frozen=True)
class Sampling:
    """How much is sampled, and how.

    The loss is called on `batches` batches of `rows` rows; the spread of the batches gives the
    standard error. With a `posterior` the rows are copies of fewer states.
    """

    rows: int = 1024
    batches: int = 32
    posterior: Posterior | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batches < 4:
            raise ValueError("a standard error needs at least 4 batches")


@dataclass(frozen=True)
class Moment:
    """Where training stands, and which terms are added up (None is all of them)."""

    progress: float = 0.0
    step: int = 0
    steps: int = 1
    terms: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Estimation:
    """One estimation: batches by number, reproducible, at the truth or at displaced networks."""

    loss: LossLike
    field: RowField
    networks: dict[str, ExactNetwork]
    sampling: Sampling
    moment: Moment

    @property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        moved = [(name, net) for name, net in self.networks.items() if net.moved]
        return [(name, net.eps) for name, net in moved]

    @property
    def names(self) -> list[str]:
        return [f"{name}[{i}]" for name, eps in self.parameters for i in range(len(eps))]

    @property
    def _passed(self) -> nn.Module | Mapping[str, nn.Module]:
        """One network goes alone, several by their roles."""
        return next(iter(self.networks.values())) if len(self.networks) == 1 else self.networks

    def batch(self, number: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Data, labels and draws of one batch."""
        generator = torch.Generator().manual_seed(1_000_003 * self.sampling.seed + number)
        posterior = self.sampling.posterior
        data, label = self.field.sample(self.states, generator)
        draws = self._drawn(data, generator)
        if posterior is None:
            return data, label, draws
        return posterior.again(self.field, data, label, draws, generator)

    def _drawn(self, data: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        when = self.moment
        draws = self.loss.draw(
            data, generator=generator, progress=when.progress, step=when.step, steps=when.steps
        )
        return self.field.settled(draws)

    @property
    def rows(self) -> int:
        """How many rows a batch holds."""
        posterior = self.sampling.posterior
        copies = 1 if posterior is None else posterior.of_size(self.field.mixture.dimension)
        return self.states * copies

    @cached_property
    def states(self) -> int:
        """How many states a batch holds: shares of them must be the same shares of their copies."""
        posterior, rows = self.sampling.posterior, self.sampling.rows
        if posterior is None:
            return rows
        copies = posterior.of_size(self.field.mixture.dimension)
        least = max(1, rows // copies)
        for count in range(least, least + MOST_SOUGHT):
            shares = self.loss.signature.shares
            sizes = [share_size(s, count, self.loss.signature) for s in shares]
            whole = [share_size(s, count * copies, self.loss.signature) for s in shares]
            if all(copies * size == all_ for size, all_ in zip(sizes, whole, strict=True)):
                return count
        raise ValueError("its exact shares of rows are those of no number of states")

    def value(self, number: int) -> tuple[Tensor, dict[str, float]]:
        """The loss on one batch, and its metrics."""
        data, label, draws = self.batch(number)
        moment = self.moment
        value, metrics = self.loss(
            self._passed,
            data,
            draws=draws,
            label=label if self._labelled else None,
            progress=moment.progress,
            step=moment.step,
            steps=moment.steps,
            terms=moment.terms,
        )
        return value, {name: float(metric) for name, metric in metrics.items()}

    def gradient(self, value: Tensor, *, again: bool = False) -> Tensor:
        """Gradient by all directions, zero where a network has no part; `again` keeps its graph."""
        parameters = [eps for _, eps in self.parameters]
        if not value.requires_grad:
            return torch.cat([torch.zeros_like(eps) for eps in parameters])
        gradients = torch.autograd.grad(value, parameters, allow_unused=True, create_graph=again)
        pairs = zip(parameters, gradients, strict=True)
        return torch.cat([torch.zeros_like(eps) if g is None else g for eps, g in pairs])

    def curvature(self, value: Tensor) -> Tensor:
        """Second derivative by each direction: how steep the loss is for a displaced network."""
        gradient = self.gradient(value, again=True)
        rows = [self.gradient(entry, again=True)[i] for i, entry in enumerate(gradient)]
        return torch.stack(rows).detach().abs()

    @property
    def _labelled(self) -> bool:
        """Whether any network is shown a label; else the mixture is taken as a whole."""
        signature = self.loss.signature
        return any(c.kind == "label" for net in signature.networks for c in net.conditions)


def _repeat(value: Tensor, rows: int, copies: int) -> Tensor:
    """A draw repeated with its row; draws of the whole batch stay as they are."""
    per_row = value.dim() > 0 and value.shape[0] == rows
    return value.repeat_interleave(copies, dim=0) if per_row else value
