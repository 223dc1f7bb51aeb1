"""Improved MeanFlow (arXiv:2512.02012): the compound velocity, a second head for the velocity, and
the guidance scale and its interval as inputs.

The network net(z, h | label, omega, lo, hi) -> u, v sees h = t - r only. With k = omega inside the
interval, else 1:

    own    = v(z, 0 | label, k, 0, 1), the tangent of the state;
    guided = velocity + (1 - 1 / k) (own - v(z, 0 | null, 1, 0, 1)), the velocity where labels drop;
    V      = u(z, h) + h sg(du/dt) to sg(guided),   v(z, h) to sg(guided).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, adaptive, given_label, null_of, pad, sum_squares


def loss(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    second: bool = True,
) -> Result:
    """Network `net`; draws `noise t r diagonal dropped omega lo hi`.

    Without a second head the velocity is u at length 0, and there is one term.
    """
    del progress
    net, t, diagonal = networks["net"], draws["t"], draws["diagonal"]
    dropped, omega, noise = draws["dropped"], draws["omega"], draws["noise"]
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    r = torch.where(diagonal, t, draws["r"])
    lo, hi = torch.where(diagonal, zero, draws["lo"]), torch.where(diagonal, one, draws["hi"])
    label = given_label(label, data)
    shown = torch.where(dropped, null_of(label), label)
    z = (1 - pad(t, data)) * data + pad(t, data) * noise

    k = torch.where((t < lo) | (t > hi), one, omega)

    def instantaneous(label: Tensor, omega: Tensor) -> Tensor:
        found = net(z, zero, label=label, omega=omega, lo=zero, hi=one)
        return found[1] if second else found

    own, null = instantaneous(label, k), instantaneous(null_of(label), one)
    guided = noise - data + pad(1 - 1 / k, data) * (own - null)
    guided = torch.where(pad(dropped, data), noise - data, guided).detach()

    def heads(z: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        found = net(z, t - r, label=shown, omega=omega, lo=lo, hi=hi)
        return found if second else (found,)

    _, slopes = torch.func.jvp(heads, (z, t), (own, one))
    u, *v = heads(z, t)
    compound = u + pad(t - r, z) * slopes[0].detach()
    average = adaptive(sum_squares(compound - guided), 1, 1e-2).mean()
    if not second:
        return average, {"target": average.detach()}
    instant = adaptive(sum_squares(v[0] - guided), 1, 1e-2).mean()
    return average + instant, {"average": average.detach(), "instant": instant.detach()}
