"""Flow maps by self-distillation (Boffi, Albergo, Vanden-Eijnden, arXiv:2505.18825): LSD, ESD, PSD.

With X = z + (s - t) v(z, t, s), data at time 0. Rows on the diagonal learn the velocity; the others

    LSD   d/ds X, live,                      to  sg v(X, s, s);
    ESD   ∂_t X, live,                       to  -sg (grad X v(z, t, t));
    PSD   v(z, t, s), live,                  to  sg(part v(z, t, m) + (1 - part) v(X, m, s)),
          m = t - part (t - s), X from t to m.

The loss of a row is exp(-w) |residual|^2 + w with a learned w = tanh(network(t, s)), of size one as
the authors' (EDM2's layer of normalised weights over normalised features) is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, pad, sum_squares


def lagrangian(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
) -> Result:
    """Networks `v(z, t, s)`, `w(t, s)`; draws `noise t s diagonal`."""
    del label, progress
    v, z, t, s = networks["v"], *_points(data, draws)
    _, slope = torch.func.jvp(lambda s: _jump(v, z, t, s), (s,), (torch.ones_like(s),))
    with torch.no_grad():
        there = v(_jump(v, z, t, s), s, s)
    return _together(networks, data, draws, slope - there)


def eulerian(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
) -> Result:
    """The start of the map moves: live in the time, still along the state."""
    del label, progress
    v, z, t, s = networks["v"], *_points(data, draws)
    _, still = torch.func.jvp(lambda t: _jump(v, z, t, s), (t,), (torch.ones_like(t),))
    _, along = torch.func.jvp(lambda z: _jump(v, z, t, s), (z,), (v(z, t, t),))
    return _together(networks, data, draws, still + along.detach())


def progressive(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
) -> Result:
    """Two steps for one; without a draw `part` the point between is the middle."""
    del label, progress
    v, z, t, s = networks["v"], *_points(data, draws)
    part = draws.get("part", 0.5 * torch.ones_like(t))
    m = t - part * (t - s)
    with torch.no_grad():
        goal = pad(part, z) * v(z, t, m) + pad(1 - part, z) * v(_jump(v, z, t, m), m, s)
    return _together(networks, data, draws, v(z, t, s) - goal)


def _points(data: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    t = draws["t"]
    s = torch.where(draws["diagonal"], t, draws["s"])
    return (1 - pad(t, data)) * data + pad(t, data) * draws["noise"], t, s


def _jump(v: nn.Module, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return z + pad(s - t, z) * v(z, t, s)


def _together(
    networks: dict[str, nn.Module], data: Tensor, draws: dict[str, Tensor], apart: Tensor
) -> Result:
    """The rows off the diagonal with their residual, the others with the velocity's."""
    z, t, s = _points(data, draws)
    scale, none = torch.tanh(networks["w"](t, s)), torch.zeros_like(t)
    border = networks["v"](z, t, t) - (draws["noise"] - data)
    target = torch.exp(-scale) * sum_squares(apart) + scale
    anchor = torch.exp(-scale) * sum_squares(border) + scale
    target = torch.where(draws["diagonal"], none, target).mean()
    anchor = torch.where(draws["diagonal"], anchor, none).mean()
    return target + anchor, {"target": target.detach(), "anchor": anchor.detach()}
