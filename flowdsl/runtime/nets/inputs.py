"""From the arguments of a call to what the layers see, with every mistake named.

The checks look at types and shapes, which costs nothing and never waits for a device. Only the
range of labels needs their values; see `check_labels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowdsl.diagnostics import DiagnosticError, did_you_mean, fail
from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.runtime.nets.config import NetworkConfig

Value = Tensor | float | None


class Inputs(NamedTuple):
    """Rows; states `(batch, channels, height, width)`; numbers `(batch,)`, and the one that
    conditions the decoder; labels `(batch,)`; features `(batch, tokens, width)` of another network.
    """

    batch: int
    states: tuple[Tensor, ...]
    numbers: tuple[Tensor, ...]
    label: Tensor | None
    second: Tensor | None = None
    features: Tensor | None = None


def bind(
    config: NetworkConfig, arguments: Sequence[Tensor], conditions: Mapping[str, Value]
) -> Inputs:
    """Sorts the arguments of a call by what they are; times after the first become gaps to it.

    Raises a diagnostic for a wrong number of arguments, an unknown or missing condition, a wrong
    shape or type.
    """
    given = _named(config, arguments, conditions)
    states = tuple(_state(config, name, given[name]) for name in config.states)
    batch, device = _rows(config, (*states, *given.values()))
    features = next((_features(config, n, given[n]) for n in config.features), None)
    numbers = {n: _number(config, n, given[n], batch, device) for n in config.numbers}
    second = None if config.second_time is None else numbers.pop(config.second_time)
    if config.first_time is not None:
        first = numbers[config.first_time]
        # (t, t - r), as in MeanFlow, AlphaFlow, TVM and shortcut models
        for name in (gap for gap in config.gaps if gap in numbers):
            numbers[name] = first - numbers[name]
    label = None if config.label is None else _label(config, given[config.label], batch)
    return Inputs(batch, states, tuple(numbers.values()), label, second, features)


def check_labels(config: NetworkConfig, label: Tensor) -> None:
    """Raises a diagnostic for a label that is neither a class nor null. Waits for the device."""
    low, high, top = int(label.min()), int(label.max()), (config.classes or 0) - 1
    if low >= NULL_LABEL and high <= top:
        return
    raise fail(
        "network",
        f"{config.name} was given the label {low if low < NULL_LABEL else high}",
        facts=[
            ("classes", f"0 to {top}" if config.classes else "none"),
            ("no class", str(NULL_LABEL)),
        ],
        hint="" if config.classes else "build the network with the number of classes of the data",
    )


def _named(
    config: NetworkConfig, arguments: Sequence[Tensor], conditions: Mapping[str, Value]
) -> dict[str, Value]:
    if len(arguments) != len(config.arguments):
        wanted = len(config.arguments)
        raise _wrong(config, f"was given {len(arguments)} positional arguments, not {wanted}")
    known = [c.name for c in config.conditions]
    for name in conditions:
        if name not in known:
            raise _wrong(config, f'has no condition "{name}"', did_you_mean(name, known))
    names = [a.name for a in config.arguments]
    given: dict[str, Value] = dict(zip(names, arguments, strict=True))
    for condition in config.conditions:
        if condition.name not in conditions and condition.kind != "label":
            name = condition.name
            raise _wrong(config, f'misses the condition "{name}"', f"pass it by name, {name}=…")
        given[condition.name] = conditions.get(condition.name)
    return given


def _state(config: NetworkConfig, name: str, value: Value) -> Tensor:
    if isinstance(value, Tensor) and value.ndim == 4 and tuple(value.shape[1:]) == config.shape:
        return value
    channels, height, width = config.shape
    wanted = f"(batch, {channels}, {height}, {width})"
    raise _wrong(config, f'needs "{name}" in the shape {wanted}, not {_found(value)}')


def _features(config: NetworkConfig, name: str, value: Value) -> Tensor:
    count, width = config.tokens, config.size.width
    if isinstance(value, Tensor) and value.ndim == 3 and tuple(value.shape[1:]) == (count, width):
        return value
    wanted = f"tokens (batch, {count}, {width})"
    raise _wrong(config, f'needs "{name}" as {wanted}, not {_found(value)}')


def _rows(config: NetworkConfig, values: Sequence[Value]) -> tuple[int, torch.device]:
    """How many rows, and where, as the first vector among the inputs has it."""
    for value in values:
        if isinstance(value, Tensor) and value.ndim > 0:
            return value.shape[0], value.device
    raise _wrong(config, "cannot tell the batch size", "pass times as vectors, one entry per row")


def _number(
    config: NetworkConfig, name: str, value: Value, batch: int, device: torch.device
) -> Tensor:
    if isinstance(value, (int, float)):
        return torch.full((batch,), float(value), device=device)
    if isinstance(value, Tensor) and value.is_floating_point():
        if value.ndim == 0:
            return value.expand(batch)
        if value.shape == (batch,):
            return value
    raise _wrong(
        config,
        f'needs "{name}" as floating-point numbers of shape ({batch},), not {_found(value)}',
        "one number per row, also where all are equal",
    )


def _label(config: NetworkConfig, value: Value, batch: int) -> Tensor | None:
    if value is None:
        return None
    integers = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    if isinstance(value, Tensor) and integers and value.shape == (batch,):
        return value
    raise _wrong(config, f"needs labels as integers of shape ({batch},), not {_found(value)}")


def _found(value: Value) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def _wrong(config: NetworkConfig, what: str, hint: str = "") -> DiagnosticError:
    bar = f" | {', '.join(c.name for c in config.conditions)}" if config.conditions else ""
    call = f"{config.name}({', '.join(a.name for a in config.arguments)}{bar})"
    return fail("network", f"{config.name} {what}", facts=[("its call", call)], hint=hint)
