"""One Gaussian: a flow map in closed form, the independent check of the integrated ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowdsl.exact.paths import AffinePath, Clock, linear_path


@dataclass(frozen=True, eq=False)
class GaussianField:
    """One Gaussian, `data ~ N(mean, covariance)` with `noise ~ N(0, noise_covariance)`: flow map in
    closed form.

    The two covariances need not commute: in coordinates where the noise's is the identity and the
    data's is diagonal (a generalised eigenproblem) the axes move independently, each by the ratio
    of its standard deviations. An independent check of the integrated flow maps.
    """

    mean: Tensor
    covariance: Tensor
    noise_covariance: Tensor
    path: AffinePath = field(default_factory=linear_path)
    cuts: tuple[float, ...] = ()

    @property
    def clock(self) -> Clock | None:
        return self.path.clock

    def velocity(
        self,
        state: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """The marginal velocity at a state (rows, d) and time (rows,); `label` and `scale` unused.

        `alpha' m + (alpha alpha' C + sigma sigma' N) S^{-1} (x - alpha m)` with
        `S = alpha^2 C + sigma^2 N`.
        """
        del label, scale
        path = self.path
        alpha, alpha_dot = path.alpha(time)[:, None, None], path.alpha_dot(time)[:, None, None]
        sigma, sigma_dot = path.sigma(time)[:, None, None], path.sigma_dot(time)[:, None, None]
        spread = alpha**2 * self.covariance + sigma**2 * self.noise_covariance
        growth = alpha * alpha_dot * self.covariance + sigma * sigma_dot * self.noise_covariance
        offset = (state - alpha[..., 0] * self.mean)[..., None]
        scaled: Tensor = growth @ torch.linalg.solve(spread, offset)
        return alpha_dot[..., 0] * self.mean + scaled[..., 0]

    def flow(self, state: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """`phi(state, start, end)` in closed form."""
        root = torch.linalg.cholesky(self.noise_covariance)
        whitened = torch.linalg.solve(root, torch.linalg.solve(root, self.covariance).mT)
        variances, axes = torch.linalg.eigh(whitened)
        basis = root @ axes
        path = self.path

        def std(time: Tensor) -> Tensor:
            alpha, sigma = path.alpha(time)[:, None], path.sigma(time)[:, None]
            return torch.sqrt(alpha**2 * variances + sigma**2)

        centred = state - path.alpha(start)[:, None] * self.mean
        inner = torch.linalg.solve(basis, centred.mT).mT
        moved: Tensor = (inner * std(end) / std(start)) @ basis.mT
        return moved + path.alpha(end)[:, None] * self.mean
