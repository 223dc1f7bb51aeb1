"""Terminal Velocity Matching (arXiv:2511.19797, eq. 15), scaled parameterisation F -> w F.

The map is z + (s - t) w F(z, t, s | label, w). Two terms, both means of squares times 1 / w^2:

    target, rows with t > s:  d/ds map  to  w slow(map, s, s | label, w);
    anchor:  w F(z(q), q, q | label, w)  to  w velocity + (1 - w) slow(z(q), q, q | null, 1).

d/ds map = w F + (s - t) w dF/ds with z and t fixed; gradient flows through F and dF/ds, and not
through the landing point, nor through `slow`, the averaged network (decay 0.99). The anchor has a
time q of its own on the same data and noise. Rows with a dropped label have w = 1.
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
    w: float = 2.0,
) -> Result:
    """Networks `F(z, t, s | label, w)` and its average `slow`; draws `noise gap s q dropped`."""
    del progress
    F, slow, noise = networks["F"], networks["slow"], draws["noise"]
    s, q, dropped = draws["s"], draws["q"], draws["dropped"]
    t = s + draws["gap"]
    label = given_label(label, data)
    shown = torch.where(dropped, null_of(label), label)
    ones = torch.ones_like(t)
    scale = torch.where(dropped, ones, w * ones)

    z = (1 - pad(t, data)) * data + pad(t, data) * noise
    value_F, slope_F = torch.func.jvp(
        lambda s: F(z, t, s, label=shown, w=scale), (s,), (torch.ones_like(s),)
    )
    rate = pad(scale, data) * value_F + pad((s - t) * scale, data) * slope_F

    with torch.no_grad():
        landed = z + pad((s - t) * scale, data) * F(z, t, s, label=shown, w=scale)
        terminal = pad(scale, data) * slow(landed, s, s, label=shown, w=scale)
    target_rows = torch.where(t > s, mean_squares(rate - terminal), torch.zeros_like(t))

    z_q = (1 - pad(q, data)) * data + pad(q, data) * noise
    velocity = noise - data
    with torch.no_grad():
        without = slow(z_q, q, q, label=null_of(label), w=ones)
    goal = pad(scale, data) * velocity + pad(1 - scale, data) * without
    anchor_rows = mean_squares(pad(scale, data) * F(z_q, q, q, label=shown, w=scale) - goal)

    target = (target_rows / scale**2).mean()
    anchor = (anchor_rows / scale**2).mean()
    return target + anchor, {"target": target.detach(), "anchor": anchor.detach()}
