"""Paths, times and states for the tests of exact flows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowdsl.exact import (
    AffinePath,
    MixtureField,
    cosine_path,
    linear_path,
    trigonometric_path,
    variance_exploding_path,
    variance_preserving_path,
)

PATHS = {
    "linear": linear_path(),
    "cosine": cosine_path(),
    "trigonometric": trigonometric_path().scaled(0.5),
    "vp": variance_preserving_path(),
    "ve": variance_exploding_path(noise_time=3.0),
    "reversed": linear_path().reversed(),
    "cosine reversed": cosine_path().reversed(),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def times_of(path: AffinePath, rows: int, generator: torch.Generator) -> Tensor:
    """Times uniform over the middle nine tenths of the path."""
    low, high = sorted((path.data_time, path.noise_time))
    share = 0.05 + 0.9 * torch.rand(rows, generator=generator, dtype=torch.float64)
    return low + (high - low) * share


def states_of(field: MixtureField, time: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """States of the path at these times, with their data, noise and labels."""
    data, label = field.mixture.sample(len(time), generator)
    noise = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    return field.path.state(data, noise, time), data, noise, label


def along(function, primals, tangents):
    """A directional derivative: the value and the derivative."""
    return torch.func.jvp(function, primals, tangents)
