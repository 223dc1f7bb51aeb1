"""Building and initialising the bundled networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from flowdsl.runtime.contract import NetworkSignature
from flowdsl.runtime.nets.config import NetworkConfig, configure
from flowdsl.runtime.nets.dit import DiT, Head, Network, ScalarNetwork
from flowdsl.runtime.nets.layers import (
    LabelEmbedding,
    Linear,
    Modulation,
    Prefix,
    TimeEmbedding,
    Vectors,
)
from flowdsl.runtime.nets.vectors import VectorEmbedding


def build_network(
    signature: NetworkSignature,
    *,
    shape: tuple[int, int, int],
    classes: int | None = None,
    size: str = "nano",
    patch: int | None = None,
    parts: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> Network:
    """The bundled network for a network role of a spec.

    `shape` is (channels, height, width) of the data; `classes` the number of labels, None for
    data without; `size` a name in `SIZES`; `patch` the side of a patch, None to choose one;
    `parts` settings of `NetworkConfig` that differ from the usual (`norm`, `times`, …). The
    weights come from `generator`, or from torch's own. Raises a diagnostic for an unknown size, a
    patch that doesn't fit, or a role that no bundled network can play.
    """
    config = configure(signature, shape=shape, classes=classes, size=size, patch=patch, parts=parts)
    return network_from_config(config, generator=generator)


def network_from_config(
    config: NetworkConfig, *, generator: torch.Generator | None = None
) -> Network:
    """The network of a configuration, freshly initialised."""
    network: Network = DiT(config) if config.states or config.features else ScalarNetwork(config)
    initialise(network, generator)
    return network


def initialise(network: Network, generator: torch.Generator | None = None) -> None:
    """Sets all weights: Xavier's uniform law, and zero where a block has to be the identity and an
    output zero (DiT, arXiv:2212.09748, section 3.2).

    Other than in DiT, times and labels start as vectors of size one, not 0.02: on digits, four
    hundred steps of MeanFlow then bring the class means of one-step samples three times as close.
    """
    for module in network.modules():
        if isinstance(module, Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
            if network.config.start == "spectral":
                with torch.no_grad():
                    module.weight /= torch.linalg.matrix_norm(module.weight, 2)
    for module in network.modules():
        if isinstance(module, TimeEmbedding):
            count, width = module.inner.in_features, module.outer.in_features
            # Squares of a sine and a cosine are 1/2 on average, that of silu(normal) is 0.36.
            nn.init.normal_(module.inner.weight, std=(count / 2) ** -0.5, generator=generator)
            nn.init.normal_(module.outer.weight, std=(0.36 * width) ** -0.5, generator=generator)
        elif isinstance(module, LabelEmbedding):
            nn.init.normal_(module.table, generator=generator)
        elif isinstance(module, VectorEmbedding):
            inner = module.projection.in_features
            nn.init.normal_(module.projection.weight, std=inner**-0.5, generator=generator)
            nn.init.normal_(module.null, generator=generator)
        elif isinstance(module, Prefix):
            nn.init.normal_(module.tokens, generator=generator)
        elif isinstance(module, Modulation):
            nn.init.zeros_(module.weight)
        elif isinstance(module, Vectors):
            nn.init.zeros_(module.vectors)
        if isinstance(module, (Head, ScalarNetwork)):
            nn.init.zeros_(module.output.weight)
        if isinstance(module, DiT) and module.fusion is not None:
            nn.init.zeros_(module.fusion.weight)
