"""Shortcut models (Frans et al., arXiv:2410.12557), in continuous time.

Rows off the diagonal learn from two half steps of the averaged network `slow` (decay 0.999),
without gradient, clipped elementwise as in the authors' code; the other rows, the anchor, learn the
velocity:

    middle = clip(z - (t - m) slow(z, t, m), -4, 4),   m = (t + r) / 2,
    target = clip((slow(z, t, m) + slow(middle, m, r)) / 2, -4, 4).

The loss is the mean of squares over all rows and entries. What differs from the authors: they have
noise at t = 0, so that their network is the negative of u here (symmetric clipping does not see
it); steps of dyadic sizes on a grid of 128, the smallest of which stands for the velocity, where
here sizes are continuous and the velocity is the diagonal r = t; and a factor 1 - 1e-5 on the
noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, given_label, mean_squares, null_of, pad


def loss(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    bound: float = 4.0,
) -> Result:
    """Networks `u(z, t, r | label)`, its average `slow`; draws `noise t r diagonal dropped`."""
    del progress
    u, slow, noise = networks["u"], networks["slow"], draws["noise"]
    t, diagonal, dropped = draws["t"], draws["diagonal"], draws["dropped"]
    r = torch.where(diagonal, t, draws["r"])
    m = (t + r) / 2
    label = given_label(label, data)
    shown = torch.where(dropped, null_of(label), label)

    z = (1 - pad(t, data)) * data + pad(t, data) * noise
    velocity = noise - data

    with torch.no_grad():
        first = slow(z, t, m, label=shown)
        middle = (z - pad(t - m, data) * first).clamp(-bound, bound)
        second = slow(middle, m, r, label=shown)
        two_steps = (0.5 * (first + second)).clamp(-bound, bound)

    prediction = u(z, t, r, label=shown)
    none = torch.zeros_like(t)
    target = torch.where(diagonal, none, mean_squares(prediction - two_steps)).mean()
    anchor = torch.where(diagonal, mean_squares(prediction - velocity), none).mean()
    return target + anchor, {"target": target.detach(), "anchor": anchor.detach()}
