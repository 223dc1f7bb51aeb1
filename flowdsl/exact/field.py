"""Everything known in closed form about a path from a Gaussian mixture to noise.

Inside one component, data and noise are jointly Gaussian given the state `z(t)`, and the posterior
probabilities of the components are a softmax. So the marginal velocity, its covariance, and exact
samples of (data, noise) given a state need no integral.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from flowdsl.exact.mixture import GaussianMixture
from flowdsl.exact.paths import AffinePath, Clock, Schedule
from flowdsl.exact.stages import Axes, Parts, Stages, with_rate
from flowdsl.exact.variation import Prepared


@dataclass(frozen=True)
class Guidance:
    """Guidance: the field `v_null + scale (v_label - v_null)` at times in [lo, hi], else `v_label`.

    Its flow is what a guided objective learns. When the target is
    `omega velocity + kappa u(label) + (1 - omega - kappa) u(null)` with the network's own `u`, the
    fixed point has `scale = omega / (1 - kappa)` (MeanFlow, arXiv:2505.13447, section 4.2).
    """

    scale: float = 1.0
    lo: float = -math.inf
    hi: float = math.inf

    @property
    def cuts(self) -> tuple[float, ...]:
        """The times at which the guided field jumps."""
        return tuple(time for time in (self.lo, self.hi) if math.isfinite(time))


def _clocked(
    parts: Parts, moving: Parts | None, rate: Tensor, faster: Tensor | None
) -> tuple[Parts, Parts | None]:
    """Parts of a velocity per unit of a clock, and their derivatives by it.

    `rate` is that of time by the clock, `faster` its derivative by time.
    """
    rate = rate[:, None]
    if moving is not None and faster is not None:
        faster = faster[:, None]
        moving = Parts(
            precision=rate * moving.precision,
            centre=rate * moving.centre,
            growth=rate * (rate * moving.growth + faster * parts.growth),
            drift=rate * (rate * moving.drift + faster * parts.drift),
            normal=rate * moving.normal,
        )
    return replace(parts, growth=rate * parts.growth, drift=rate * parts.drift), moving


def label_column(rows: Tensor, label: Tensor | None) -> Tensor:
    """Labels as a column beside rows (rows,); no label is -1."""
    column = torch.full_like(rows, -1.0) if label is None else label.to(rows)
    return column[:, None]


@dataclass(frozen=True, eq=False)
class MixtureField:
    """The marginal velocity of a path from a mixture to noise, and posteriors of what made a state.

    States have shape (rows, dimension), times and labels (rows,). Labels may be None (no row is
    labelled). All methods but the samplers are smooth in states and times, and differentiate in
    forward and reverse mode to any order.
    """

    mixture: GaussianMixture
    path: AffinePath
    guidance: Guidance = Guidance()

    @property
    def clock(self) -> Clock | None:
        return self.path.clock

    @property
    def cuts(self) -> tuple[float, ...]:
        return self.guidance.cuts

    def sample(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Independent data (rows, d) and their labels (rows,)."""
        return self.mixture.sample(rows, generator)

    @staticmethod
    def settled(draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The draws of a loss as rows of this field have them: as they are."""
        return draws

    # Constants enter by matrix products wherever they can: under forward-mode differentiation, an
    # elementwise operation of a differentiated tensor with a constant costs several times as much
    # as a product of matrices.

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """Axes of all components, (d, components * d), and the means along them, one row."""
        rotations = self.mixture.rotations
        axes = rotations.permute(1, 0, 2).reshape(self.mixture.dimension, -1)
        return axes, torch.einsum("kij,ki->kj", rotations, self.mixture.means).reshape(1, -1)

    @cached_property
    def _spectrum(self) -> Tensor:
        """Variances of the data and of the noise along all axes, (2, components * d)."""
        variances = self.mixture.variances.reshape(-1)
        return torch.stack([variances, torch.ones_like(variances)])

    @cached_property
    def _members(self) -> Tensor:
        """Which component an axis belongs to, (components, components * d)."""
        identity = torch.eye(self.mixture.components, dtype=torch.float64)
        return identity.repeat_interleave(self.mixture.dimension, dim=1)

    def _offsets(self, state: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Offset from the means, and variance, along all axes: (rows, components * d)."""
        axes, means = self._axes
        alpha, sigma = self.path.alpha(time), self.path.sigma(time)
        variance = torch.stack([alpha * alpha, sigma * sigma], dim=-1) @ self._spectrum
        return state @ axes - alpha[:, None] @ means, variance

    def _logits(self, offset: Tensor, ratio: Tensor, variance: Tensor) -> Tensor:
        return (offset * ratio + variance.log()) @ (-0.5 * self._members.T)

    def _labelled(self, logits: Tensor, label: Tensor | None) -> Tensor:
        return torch.softmax(logits + self._prior(label), dim=-1)

    def _prior(self, label: Tensor | None) -> Tensor:
        table = self.mixture.log_weights
        return table[-1][None] if label is None else table[label.long()]

    def responsibilities(self, state: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Posterior probability of each component given the state, (rows, components)."""
        offset, variance = self._offsets(state, time)
        return self._labelled(self._logits(offset, offset / variance, variance), label)

    def log_density(self, state: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Log density of `z(t)` at the state given the label, (rows,)."""
        offset, variance = self._offsets(state, time)
        prior = self._prior(label)
        logits = self._logits(offset, offset / variance, variance)
        joint = logits + (prior - prior.logsumexp(-1, keepdim=True))
        return torch.logsumexp(joint, -1) - 0.5 * self.mixture.dimension * math.log(2 * math.pi)

    def velocity(
        self,
        state: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """`E[dz/dt | z(t) = state, label]`, guided; `scale` (rows,) overrides the strength."""
        offset, variance = self._offsets(state, time)
        ratio = offset / variance
        weights = self._guided(self._logits(offset, ratio, variance), time, label, scale)
        along = (weights @ self._members) * (self._growth(time) * ratio)
        drift = self.path.alpha_dot(time)[:, None] * (weights @ self.mixture.means)
        return drift + along @ self._axes[0].T

    def prepared(
        self, rows: Tensor, label: Tensor | None = None, scale: Tensor | None = None
    ) -> Prepared:
        """The velocity of rows like these, prepared for many times: see `variation`.

        What tells rows apart is their label and the strength of their guidance.
        """
        if label is None or (scale is None and self.guidance.scale == 1.0):
            return Prepared(label_column(rows, label), partial(self.stages, strength=None))
        strong = torch.full_like(rows, self.guidance.scale) if scale is None else scale

        def inside(times: Tensor, columns: Tensor) -> Tensor:
            within = (times >= self.guidance.lo) & (times <= self.guidance.hi)
            return torch.where(within, columns[:, 1], torch.ones_like(times))

        columns = torch.cat([label_column(rows, label), strong[:, None]], 1)
        return Prepared(columns, partial(self.stages, strength=inside))

    def stages(
        self,
        times: Tensor,
        rates: bool,
        columns: Tensor,
        *,
        strength: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> Stages:
        """The velocity at times (times, rows), which the clock measures if there is one.

        The first of the `columns` is the label; `strength` is that of guidance, by times and
        columns.
        """
        label = columns[:, 0]
        priors = [self._prior(label).T]
        if strength is not None:
            priors.append(self._prior(None).T.expand_as(priors[0]))

        clock = self.clock
        real = times if clock is None else clock.backward(times)
        parts, moving = self._parts(real), self._moving(real) if rates else None
        if clock is not None:
            rate, faster = with_rate(clock.rate, real) if rates else (clock.rate(real), None)
            parts, moving = _clocked(parts, moving, rate, faster)
        if strength is not None:
            if moving is not None:
                strong, slope = with_rate(lambda t: strength(t, columns), real)
                slope = slope if clock is None else slope * clock.rate(real)
                moving = replace(moving, strength=slope)
            else:
                strong = strength(real, columns)
            parts = replace(parts, strength=strong)
        return Stages(self._constants, parts, moving, torch.stack(priors))

    @cached_property
    def _constants(self) -> Axes:
        return Axes.of(self._axes[0], self._members)

    def _parts(self, times: Tensor) -> Parts:
        """What of the velocity depends on time, at times (times, rows)."""
        alpha, sigma, alpha_dot, sigma_dot = (f(times)[:, None] for f in self._schedule)
        variances, means = self._spectrum[0][:, None], self._axes[1].T
        variance = alpha * alpha * variances + sigma * sigma
        return Parts(
            precision=1 / variance,
            centre=alpha * means,
            growth=(alpha_dot * alpha * variances + sigma_dot * sigma) / variance,
            drift=alpha_dot * means,
            normal=-0.5 * (self._members @ variance.log()),
        )

    def _moving(self, times: Tensor) -> Parts:
        """The derivatives of `_parts` by the time."""
        alpha, sigma = self.path.alpha(times)[:, None], self.path.sigma(times)[:, None]
        alpha_dot, alpha_bend = (x[:, None] for x in with_rate(self.path.alpha_dot, times))
        sigma_dot, sigma_bend = (x[:, None] for x in with_rate(self.path.sigma_dot, times))
        variances, means = self._spectrum[0][:, None], self._axes[1].T
        variance = alpha * alpha * variances + sigma * sigma
        growth = (alpha_dot * alpha * variances + sigma_dot * sigma) / variance
        bend = (alpha_dot * alpha_dot + alpha * alpha_bend) * variances
        bend = bend + sigma_dot * sigma_dot + sigma * sigma_bend
        return Parts(
            precision=-2 * growth / variance,
            centre=alpha_dot * means,
            growth=bend / variance - 2 * growth * growth,
            drift=alpha_bend * means,
            normal=-self._members @ growth,
        )

    @property
    def _schedule(self) -> Sequence[Schedule]:
        path = self.path
        return path.alpha, path.sigma, path.alpha_dot, path.sigma_dot

    def _growth(self, time: Tensor) -> Tensor:
        """Half the rate of change of the variances along all axes, flat: `S'/2`."""
        path = self.path
        rates = [
            path.alpha_dot(time) * path.alpha(time),
            path.sigma_dot(time) * path.sigma(time),
        ]
        return torch.stack(rates, dim=-1) @ self._spectrum

    def _guided(
        self, logits: Tensor, time: Tensor, label: Tensor | None, scale: Tensor | None
    ) -> Tensor:
        """Guidance is linear in the responsibilities, as the velocity is: extrapolate these."""
        labelled = self._labelled(logits, label)
        if label is None or (scale is None and self.guidance.scale == 1.0):
            return labelled
        strength = torch.full_like(time, self.guidance.scale) if scale is None else scale
        inside = (time >= self.guidance.lo) & (time <= self.guidance.hi)
        strength = torch.where(inside, strength, torch.ones_like(time))
        free = self._labelled(logits, None)
        return free + strength[:, None] * (labelled - free)

    def posterior_velocity(
        self, state: Tensor, time: Tensor, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean (rows, d) and covariance (rows, d, d) of the velocity given the state, unguided."""
        offset, variance = self._offsets(state, time)
        ratio, shape = offset / variance, (-1, *self.mixture.variances.shape)
        weights = self._labelled(self._logits(offset, ratio, variance), label)
        alpha, sigma, alpha_dot, sigma_dot = self._schedules(time)
        prior, rotations = self.mixture.variances, self.mixture.rotations
        slope = (self._growth(time) * ratio).reshape(shape)
        means = torch.einsum("kij,bkj->bki", rotations, slope) + alpha_dot * self.mixture.means
        spread = (alpha * sigma_dot - alpha_dot * sigma) ** 2 * prior / variance.reshape(shape)
        within = torch.einsum("kij,bkj,klj->bkil", rotations, spread, rotations)
        mean = (weights[..., None] * means).sum(1)
        second = within + means[..., :, None] * means[..., None, :]
        covariance = torch.einsum("bk,bkij->bij", weights, second)
        return mean, covariance - mean[:, :, None] * mean[:, None, :]

    def _schedules(self, time: Tensor) -> Sequence[Tensor]:
        return [f(time)[:, None, None] for f in self._schedule]

    def posterior_sample(
        self,
        state: Tensor,
        time: Tensor,
        label: Tensor | None,
        generator: torch.Generator,
        *,
        copies: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Exact samples of (data, noise) given the state, each (rows * copies, d), copies adjacent.

        Every pair satisfies `alpha data + sigma noise = state`. With `copies` even they are
        variance reduced, their mean over the copies still unbiased: components by systematic
        sampling, offsets in antithetic pairs.
        """
        offset, variance = self._offsets(state, time)
        ratio = offset / variance
        weights = self._labelled(self._logits(offset, ratio, variance), label)
        paired = copies % 2 == 0
        strata = copies // 2 if paired else copies
        start = torch.rand(len(state), 1, generator=generator, dtype=torch.float64)
        levels = (torch.arange(strata, dtype=torch.float64) + start) / strata
        reached = weights.cumsum(-1)
        chosen = torch.searchsorted(reached / reached[:, -1:], levels.contiguous())
        unit = torch.randn(*chosen.shape, self.mixture.dimension, generator=generator).double()
        if paired:
            chosen = chosen.repeat(1, 2)
            unit = torch.cat([unit, -unit], 1)
        data, noise = self._assemble(chosen, unit, ratio, variance, time)
        return data.flatten(0, 1), noise.flatten(0, 1)

    def posterior_points(
        self, state: Tensor, time: Tensor, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Data and noise given the state, (rows * 2 d, d) each: points, not samples.

        Their mean and covariance are those of the posterior. Points of a row are adjacent, and
        every pair satisfies `alpha data + sigma noise = state`.
        """
        mean, covariance = self.posterior_velocity(state, time, label)
        size = state.shape[1]
        values, axes = torch.linalg.eigh(covariance)
        away = (axes * (size * values.clamp(min=0)).sqrt()[:, None]).mT  # one axis per row
        velocity = mean[:, None] + torch.cat([away, -away], 1)
        alpha, sigma, alpha_dot, sigma_dot = self._schedules(time)
        turn = alpha * sigma_dot - alpha_dot * sigma
        data = (sigma_dot * state[:, None] - sigma * velocity) / turn
        noise = (alpha * velocity - alpha_dot * state[:, None]) / turn
        return data.flatten(0, 1), noise.flatten(0, 1)

    def _assemble(
        self, chosen: Tensor, unit: Tensor, ratio: Tensor, variance: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Data and noise of the chosen components (rows, copies), from one normal draw for both."""
        alpha, sigma, _, _ = self._schedules(time)
        mixture = self.mixture
        index = chosen[..., None].expand(-1, -1, mixture.dimension)
        shape = (len(chosen), *mixture.variances.shape)
        ratio, variance = (a.reshape(shape).gather(1, index) for a in (ratio, variance))
        prior, rotations = mixture.variances[chosen], mixture.rotations[chosen]
        # both offsets share one draw with opposite signs: alpha data + sigma noise stays the state
        jitter = torch.sqrt(prior / variance) * unit
        data = alpha * prior * ratio + sigma * jitter
        noise = sigma * ratio - alpha * jitter
        data = torch.einsum("bcij,bcj->bci", rotations, data) + mixture.means[chosen]
        return data, torch.einsum("bcij,bcj->bci", rotations, noise)
