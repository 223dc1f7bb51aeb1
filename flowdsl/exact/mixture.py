"""Gaussian mixtures with full covariances: the data of exact probability flows.

Covariances are kept as rotations and variances: noise is isotropic, so that along a path every
formula is elementwise in a component's own axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """`sum_k weight_k N(mean_k, Q_k diag(variance_k) Q_k^T)`, float64, components in classes.

    Shapes: `weights` (components,), `means` (components, dimension), `rotations` (components,
    dimension, dimension) with axes in the columns, `variances` (components, dimension), `classes`
    (components,) integers from 0.
    """

    weights: Tensor
    means: Tensor
    rotations: Tensor
    variances: Tensor
    classes: Tensor

    @classmethod
    def from_covariances(
        cls, weights: Tensor, means: Tensor, covariances: Tensor, classes: Tensor | None = None
    ) -> GaussianMixture:
        """A mixture from its positive definite covariances (components, dimension, dimension)."""
        variances, rotations = torch.linalg.eigh(covariances.double())
        if not bool((variances > 0).all()):
            raise ValueError("every covariance of a mixture must be positive definite")
        return cls(
            weights=weights.double() / weights.double().sum(),
            means=means.double(),
            rotations=rotations,
            variances=variances,
            classes=torch.zeros(len(weights), dtype=torch.long) if classes is None else classes,
        )

    @classmethod
    def random(
        cls,
        *,
        dimension: int = 2,
        components: int = 4,
        classes: int = 1,
        spread: float = 1.0,
        stds: tuple[float, float] = (0.25, 0.9),
        seed: int = 0,
    ) -> GaussianMixture:
        """A random mixture whose components are elongated along clearly different directions.

        `spread` is the standard deviation of the means; each component's standard deviations run
        from the first to the second of `stds`. Components go to classes in turn. With the defaults,
        Jacobians of two stretches of the flow, swapped, differ by more than 5 % of their size, and
        by 15 % with a spread of 1.5 and stds from 0.2 to 1: a wrong order of composition is seen.
        """
        generator = torch.Generator().manual_seed(seed)
        means = spread * torch.randn(components, dimension, generator=generator).double()
        weights = 0.5 + torch.rand(components, generator=generator).double()
        stretch = torch.linspace(math.log(stds[0]), math.log(stds[1]), dimension).double().exp()
        jitter = 0.8 + 0.4 * torch.rand(components, dimension, generator=generator).double()
        return cls(
            weights=weights / weights.sum(),
            means=means,
            rotations=_spread_rotations(components, dimension, generator),
            variances=(stretch * jitter) ** 2,
            classes=torch.arange(components) % classes,
        )

    @property
    def dimension(self) -> int:
        return self.means.shape[1]

    @property
    def components(self) -> int:
        return self.means.shape[0]

    @property
    def covariances(self) -> Tensor:
        """Covariance matrices, (components, dimension, dimension)."""
        return (self.rotations * self.variances[:, None, :]) @ self.rotations.mT

    @cached_property
    def log_weights(self) -> Tensor:
        """Log weights by class, (classes + 1, components): -inf outside it; the last row has all.

        The last row is the one that the null label, -1, picks.
        """
        count = int(self.classes.max()) + 1
        member = self.classes[None, :] == torch.arange(count)[:, None]
        everything = torch.ones(1, self.components, dtype=torch.bool)
        rows = torch.cat([member, everything])
        return torch.where(rows, self.weights.log(), torch.tensor(-math.inf).double())

    def given(self, state: Tensor, alpha: float, sigma: float) -> GaussianMixture:
        """The law of data x of this mixture given `alpha x + sigma noise = state` (dimension,).

        Each component stays Gaussian, its variances 1 / (1 / v + alpha^2 / sigma^2) along its own
        axes, and has a share by how likely it makes the state.
        """
        own = torch.einsum("kij,ki->kj", self.rotations, state - alpha * self.means)
        spread = alpha**2 * self.variances + sigma**2
        likely = -0.5 * (own**2 / spread + spread.log()).sum(1)
        moved = alpha * self.variances / spread * own
        return GaussianMixture(
            weights=(self.weights.log() + likely).softmax(0),
            means=self.means + torch.einsum("kij,kj->ki", self.rotations, moved),
            rotations=self.rotations,
            variances=self.variances * sigma**2 / spread,
            classes=self.classes,
        )

    def sample(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Independent samples (rows, dimension), and the class of each (rows,)."""
        chosen = torch.multinomial(self.weights, rows, replacement=True, generator=generator)
        unit = torch.randn(rows, self.dimension, generator=generator, dtype=torch.float64)
        scaled = unit * self.variances[chosen].sqrt()
        data = self.means[chosen] + torch.einsum("bij,bj->bi", self.rotations[chosen], scaled)
        return data, self.classes[chosen]


def _spread_rotations(components: int, dimension: int, generator: torch.Generator) -> Tensor:
    """Rotations (components, dimension, dimension): evenly turned in the plane, else random."""
    if dimension == 2:
        # a turn by 90 degrees only swaps the axes of an ellipse, so half turns are spread over [0,
        # pi)
        offset = torch.rand((), generator=generator).double()
        angles = math.pi * (torch.arange(components).double() + 0.5 * offset) / components
        cos, sin = angles.cos(), angles.sin()
        return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    square = torch.randn(components, dimension, dimension, generator=generator).double()
    rotations: Tensor = torch.linalg.qr(square).Q
    return rotations
