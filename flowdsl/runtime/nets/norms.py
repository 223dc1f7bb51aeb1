"""Normalisation of the last dimension, with a forward derivative that can itself be derived.

PyTorch's `layer_norm` has a forward derivative whose gradient is wrong, without a warning: it takes
mean and deviation for constants (2.13; by several hundred per cent on random data). An objective
that differentiates through a derivative, such as Terminal Velocity Matching, would train on it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from flowdsl.runtime.nets.config import Norm
from flowdsl.runtime.nets.duals import innermost_transform, is_dual, join, split, tangent_mode

EPSILON = 1e-6


def normalised(x: Tensor, norm: Norm) -> Tensor:
    """`x / √(mean x² + ε)` over the last dimension, for "layer" after the mean is taken off."""
    transform = innermost_transform()
    if transform == "none" and not is_dual(x):
        mode = tangent_mode()
        if mode is None:
            return _kernel(x, norm)
        return mode.paired(
            lambda: (_kernel(x, norm),), lambda y, dx: tangent_of_norm(x, y[0], dx, norm), x
        )
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return _under_jvp(x) if transform == "jvp" else _unit(x)[0]


def tangent_of_norm(x: Tensor, normal: Tensor, dx: Tensor, norm: Norm) -> Tensor:
    """The tangent of `normal = normalised(x, norm)`, a new tensor: as below, for "layer" with the
    mean taken off.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if norm == "layer":
        scale = torch.rsqrt(torch.var(x.to(wide), -1, correction=0, keepdim=True) + EPSILON)
        dx = dx - dx.mean(-1, keepdim=True)
    else:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(EPSILON))
    along = torch.mul(normal, dx).mean(-1, keepdim=True, dtype=wide)
    if normal.dtype == dx.dtype == wide:
        return torch.addcmul(dx, normal, along, value=-1).mul_(scale)
    return (dx - normal * along).mul_(scale)


def _kernel(x: Tensor, norm: Norm) -> Tensor:
    kernel = functional.rms_norm if norm == "rms" else functional.layer_norm
    return kernel(x, x.shape[-1:], eps=EPSILON)


def _under_jvp(x: Tensor) -> Tensor:
    """n = s x and ṅ = s (ẋ − n mean(n ẋ)), where s = 1 / √(mean x² + ε)."""
    (value,), (tangent,) = split(x)
    normal, scale = _unit(value)
    if tangent is None:
        return normal
    along = (normal * tangent).mean(-1, keepdim=True, dtype=scale.dtype)
    return join(normal, (scale * (tangent - normal * along)).to(x.dtype))


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """The normalised `x`, and the factor that made it so, at least in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    return (wide * scale).to(x.dtype), scale
