"""The guard against numbers that are not finite: skip the step, say which term, give up after
several.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flowdsl.diagnostics import fail


class Guard:
    """Counts skipped steps in a row; the count travels in the checkpoint."""

    def __init__(self, patience: int, in_a_row: int = 0) -> None:
        self.patience = patience
        self.in_a_row = in_a_row

    def passes(self, value: Tensor, norm: Tensor) -> bool:
        """Whether value and gradient are finite. The one place that waits for the device."""
        finite = bool(torch.isfinite(value.detach()) & torch.isfinite(norm))
        self.in_a_row = 0 if finite else self.in_a_row + 1
        return finite

    def report(self, step: int, value: Tensor, metrics: Mapping[str, Tensor], norm: Tensor) -> str:
        """What was not finite at this step, in words; a `DiagnosticError` when patience is at an
        end.
        """
        bad = [name for name, number in metrics.items() if not bool(torch.isfinite(number).all())]
        if bad:
            what = f"the term {', '.join(bad)}"
        elif not bool(torch.isfinite(value.detach())):
            what = "the loss, though each term is finite"
        else:
            loss = float(value.detach())
            what = f"the gradient (norm {float(norm):g}), though the loss is {loss:.4g}"
        if self.in_a_row >= self.patience:
            raise fail(
                "train",
                f"not finite for {self.in_a_row} steps in a row: {what}",
                facts=(("step", str(step)),),
                hint="a smaller optimizer.learning_rate or optimizer.clip, a longer "
                "optimizer.warmup,\nprecision=float32",
            )
        return f"step {step}: not finite: {what}; the step is skipped"
