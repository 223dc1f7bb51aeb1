"""Networks with weights that hide nothing.

A network fresh from its constructor often returns zero (DiT's outputs and gates start at zero), and
hardly sees its labels: its derivative is zero, its gradients vanish, and any two ways to compute
them agree. Before something is measured or compared, such weights are made random.
"""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def wake(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Gives random values to every vector that is zero throughout, and to every matrix or kernel
    that is zero or too small to matter, in place.

    Vectors get entries of deviation 0.1, matrices of 0.5 / √inputs where their root mean square is
    below that. The values come from `generator`, on the CPU, whatever the device of the network.
    """
    for parameter in network.parameters():
        if not parameter.numel() or not parameter.is_floating_point():
            continue
        if parameter.ndim > 1:
            deviation = 0.5 / math.sqrt(parameter.numel() / parameter.shape[0])
            asleep = float(parameter.float().square().mean()) < deviation**2
        else:
            deviation, asleep = 0.1, not bool(parameter.any())
        if asleep:
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))
