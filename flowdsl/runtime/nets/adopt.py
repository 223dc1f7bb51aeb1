"""Weights of one bundled network for another that sees more than it: warm starts from a teacher.

Where the new network sees further times, scalars or states, these start without any effect, so
that it begins as the very function it took over: a velocity v(z, t) becomes a map's network
u(z, t, r) with u = v for every r.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flowdsl.diagnostics import fail
from flowdsl.runtime.nets.config import NetworkConfig

State = dict[str, Tensor]

_SHARED = (
    "size",
    "patch",
    "shape",
    "classes",
    "norm",
    "qk_norm",
    "positions",
    "own_blocks",
    "conditioning",
    "modulation",
    "condition_width",
)


def adopted(
    fresh: Mapping[str, Tensor],
    config: NetworkConfig,
    weights: Mapping[str, Tensor],
    source: NetworkConfig,
) -> State:
    """The state of a network of `config`, freshly initialised as `fresh`, that continues one of
    `source` with `weights`. Raises a diagnostic where the two have not the same size and data.
    """
    _check(config, source)
    moved = _renumbered(weights, config, source)
    states = len(config.states) - len(source.states)
    if states > 0 and "patches.weight" in moved:
        old = moved["patches.weight"]
        blank = old.new_zeros(len(old), states * old.shape[1] // len(source.states))
        moved["patches.weight"] = torch.cat([old, blank], dim=1)
    result: State = {}
    for name, own in fresh.items():
        if name in moved and moved[name].shape == own.shape:
            result[name] = moved[name]
        elif name in moved:
            raise fail(
                "network",
                f"{config.name} cannot take over the weights of {source.name}",
                facts=[("differs", f"{name}: {tuple(moved[name].shape)} for {tuple(own.shape)}")],
                hint="build both for the same data, with the same parts",
            )
        else:  # the last layer of a new input's embedding: nothing of it is seen at first
            silent = name.startswith("numbers.") and ".outer." in name
            result[name] = torch.zeros_like(own) if silent else own
    return result


def _check(config: NetworkConfig, source: NetworkConfig) -> None:
    for what in _SHARED:
        one, other = getattr(config, what), getattr(source, what)
        if one != other:
            raise fail(
                "network",
                f"{config.name} cannot take over the weights of {source.name}",
                facts=[(f"its {what}", str(one)), (f"{what} of {source.name}", str(other))],
                hint="train both with the same size, patch and data",
            )
    if config.prefix > source.prefix:
        raise fail(
            "network",
            f"{config.name} cannot take over the weights of {source.name}",
            facts=[
                ("it sees", ", ".join(config.embedded)),
                (f"{source.name} sees", ", ".join(source.embedded)),
            ],
            hint="further tokens in context would change what it does from the start: train both "
            "with network.conditioning=adaptive",
        )


def _renumbered(
    weights: Mapping[str, Tensor], config: NetworkConfig, source: NetworkConfig
) -> State:
    """The weights under our names: times by their order, scalars by name, state heads by order."""
    places = _pairs(source.embedded, config.embedded, source, config)
    shift = source.depth - config.depth if config.features else 0  # those go on at the end
    prefixes = places | {len(source.embedded): len(config.embedded)}
    heads = dict(enumerate(range(min(len(source.heads), len(config.heads)))))
    moved: State = {}
    for name, value in weights.items():
        group, _, rest = name.partition(".")
        number, _, part = rest.partition(".")
        table = {"numbers": places, "prefixes": prefixes, "heads": heads}.get(group)
        if group == "blocks" and int(number) >= shift:
            moved[f"blocks.{int(number) - shift}.{part}"] = value
        elif table is None:
            moved[name] = value
        elif int(number) in table:
            moved[f"{group}.{table[int(number)]}.{part}"] = value
    return moved


def _pairs(
    theirs: tuple[str, ...], ours: tuple[str, ...], source: NetworkConfig, config: NetworkConfig
) -> dict[int, int]:
    """For places among their numbers, the places among ours."""

    def times(c: NetworkConfig) -> list[str]:
        return [a.name for a in c.arguments if a.kind == "time" and a.name in c.embedded]

    pairs = {
        theirs.index(a): ours.index(b) for a, b in zip(times(source), times(config), strict=False)
    }
    taken = set(pairs.values())
    for place, name in enumerate(theirs):
        if place not in pairs and name in ours and ours.index(name) not in taken:
            pairs[place] = ours.index(name)
    return pairs
