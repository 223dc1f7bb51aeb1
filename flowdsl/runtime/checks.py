"""Checks of what a caller hands to a loss: data, labels, draws, times. Each says what was found and
required.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.runtime.contract import ObjectiveSignature, Share


def check_data(data: Tensor, what: str = "the data") -> None:
    """States are floating-point tensors (batch, ...) with at least one axis beside the batch."""
    if not isinstance(data, Tensor) or not data.is_floating_point():
        found = str(data.dtype) if isinstance(data, Tensor) else type(data).__name__
        raise fail(
            "data", f"{what} must be a floating-point tensor, not {found}",
            hint="scale images to [-1, 1] as float32",
        )  # fmt: skip
    if data.ndim < 2 or len(data) == 0:
        raise fail(
            "data",
            f"{what} must have shape (batch, ...), with a batch that is not empty",
            facts=[("found", str(tuple(data.shape)))],
        )


def check_training(progress: float, step: int, steps: int) -> None:
    """Progress runs from 0 to 1."""
    value = float(progress)
    if not 0 <= value <= 1 or math.isnan(value):
        raise fail("progress", f"progress must lie in [0, 1], not {value:g}",
                   hint="progress is step / steps")  # fmt: skip
    if step < 0 or steps < 1:
        raise fail("progress", f"step must be at least 0 and steps at least 1, not {step}, {steps}")


def check_label(label: Tensor | None, data: Tensor) -> None:
    """Labels are integers, one per sample; -1 is no class."""
    if label is None:
        return
    integral = isinstance(label, Tensor) and label.dtype in (torch.int64, torch.int32)
    if not integral or label.shape != data.shape[:1]:
        found = (
            f"{label.dtype} of shape {tuple(label.shape)}"
            if isinstance(label, Tensor)
            else type(label).__name__
        )
        raise fail(
            "label",
            "labels must be integers, one per sample",
            facts=[("found", found), ("required", f"torch.int64 of shape ({len(data)},)")],
            hint="-1 is the label of no class",
        )


def check_terms(terms: Sequence[str] | None, signature: ObjectiveSignature) -> None:
    """Terms are named as in the spec, and there is at least one."""
    if terms is None:
        return
    named = [terms] if isinstance(terms, str) else list(terms)
    if isinstance(terms, str) or not named:
        raise fail("terms", "terms must be a list of names, or None for all",
                   facts=[("terms", ", ".join(signature.terms))])  # fmt: skip
    for term in named:
        if term not in signature.terms:
            raise fail(
                "terms",
                f'{signature.name} has no term "{term}"',
                facts=[("terms", ", ".join(signature.terms))],
                hint=did_you_mean(term, signature.terms),
            )


def check_vector(time: Tensor | float, z: Tensor, what: str) -> Tensor:
    """A time as a vector (batch,) in float32, or float64 for float64 states."""
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    vector = torch.as_tensor(time, dtype=dtype, device=z.device)
    if vector.ndim == 0:
        return vector.expand(len(z)).contiguous()
    if vector.shape != z.shape[:1]:
        raise fail(
            "sample",
            f"{what} must be a number or a vector with one entry per sample",
            facts=[("found", str(tuple(vector.shape))), ("required", f"({len(z)},)")],
        )
    return vector


def check_draws(draws: Mapping[str, Tensor], data: Tensor, signature: ObjectiveSignature) -> None:
    """Draws have the spec's names, one entry per sample, times in full precision, and shares of the
    right size.
    """
    for name in signature.draws:
        if name not in draws:
            raise fail(
                "draws",
                f'the draw "{name}" is missing',
                facts=[("draws", ", ".join(signature.draws))],
                hint="make them with loss.draw(data), and replace what you want to fix",
            )
    for name, value in draws.items():
        if name not in signature.draws:
            raise fail("draws", f'{signature.name} draws no "{name}"',
                       facts=[("draws", ", ".join(signature.draws))],
                       hint=did_you_mean(name, signature.draws))  # fmt: skip
        shapes = [torch.Size([]), data.shape[:1], data.shape]
        if not isinstance(value, Tensor) or value.shape not in shapes:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise fail(
                "draws",
                f'the draw "{name}" has the wrong shape',
                facts=[
                    ("found", str(found)),
                    ("required", f"{tuple(data.shape[:1])}, or {tuple(data.shape)} for noise"),
                ],
            )
        if value.shape == data.shape[:1] and value.dtype in (torch.float16, torch.bfloat16):
            raise fail(
                "draws", f'the draw "{name}" is {value.dtype}, too coarse for a time',
                hint="keep times in float32: in bfloat16 their derivatives are wrong by 100 %",
            )  # fmt: skip
        if value.device != data.device:
            raise fail(
                "draws", f'the draw "{name}" is on {value.device}, the data on {data.device}'
            )
    for share in signature.shares:
        _check_share(share, draws, signature)


def _check_share(share: Share, draws: Mapping[str, Tensor], signature: ObjectiveSignature) -> None:
    found = int(draws[share.name].sum())
    required = share_size(share, len(draws[share.name]), signature)
    if found != required:
        raise fail(
            "draws",
            f'the draw "{share.name}" holds on {found} rows; its share is exactly {required}',
            hint="the compiled loss relies on the exact count of a share",
        )


def share_size(share: Share, batch: int, signature: ObjectiveSignature) -> int:
    """How many rows a share has in a batch."""
    whole = batch
    if share.on is not None:
        outer = next(s for s in signature.shares if s.name == share.on)
        whole = share_size(outer, batch, signature)
        whole = batch - whole if share.on_others else whole
    return share.numerator * whole // share.denominator
