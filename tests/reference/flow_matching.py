"""Conditional flow matching (arXiv:2210.02747) on the straight path (arXiv:2209.03003).

Data are at t = 0 and noise at t = 1: z = (1 - t) data + t noise, velocity = noise - data. The loss
is the mean over rows and entries of |v(z, t | label) - velocity|^2, as in the image example of
facebookresearch/flow_matching; labels are dropped as in classifier-free guidance
(arXiv:2207.12598).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.reference.plain import Result, given_label, mean_squares, nowhere, null_of, pad


def loss(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
) -> Result:
    """Networks `v(z, t | label)`; draws `noise`, `t`, and `dropped` if labels are dropped."""
    del progress
    v, noise, t = networks["v"], draws["noise"], draws["t"]
    label = given_label(label, data)
    label = torch.where(draws.get("dropped", nowhere(data)), null_of(label), label)

    z = (1 - pad(t, data)) * data + pad(t, data) * noise
    velocity = noise - data

    rows = mean_squares(v(z, t, label=label) - velocity)
    value = rows.mean()
    return value, {"target": value.detach()}


def without_labels(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
) -> Result:
    """Rectified flow: `v(z, t)`."""
    del label, progress
    noise, t = draws["noise"], draws["t"]
    z = pad(t, data) * noise + (1 - pad(t, data)) * data
    value = mean_squares(networks["v"](z, t) - noise + data).mean()
    return value, {"target": value.detach()}


def straightened(
    networks: dict[str, nn.Module],
    data: Tensor,
    draws: dict[str, Tensor],
    label: Tensor | None,
    progress: float = 0.0,
    *,
    steps: int = 8,
) -> Result:
    """Reflow (arXiv:2209.03003): `v(z, t)` on noise and what the frozen `old` makes of it."""
    del label, progress
    noise, t = draws["noise"], draws["t"]
    made = noise
    with torch.no_grad():
        for k in range(steps):
            time = torch.full_like(t, 1 - k / steps)
            made = made - networks["old"](made, time) / steps
    z = (1 - pad(t, data)) * made + pad(t, data) * noise
    value = mean_squares(networks["v"](z, t) - (noise - made)).mean()
    return value, {"target": value.detach()}
