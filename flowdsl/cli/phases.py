"""Where in training each phase of a compiled loss is, asked of the text that runs.

An optimised loss is one straight function per phase and a choice between them. The choice is made
here at a thousand points of training, with names in the place of the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowdsl.runtime.loss import Loss

POINTS = 1000
_PREFIX = "loss_"


def phase_points(loss: Loss) -> dict[str, float]:
    """The phases of an optimised loss in the order of training, each with the progress in the
    middle of its longest stretch. A loss without phases has one, without a name, at 0.5.
    """
    space: dict[str, Any] = {}
    exec(compile(loss.source, f"<phases of {loss.signature.name}>", "exec"), space)
    found = {name: function for name, function in space.items() if name.startswith(_PREFIX)}
    if not found:
        return {"": 0.5}
    choose = space["loss"]
    space |= {name: _named(_words(function, name)) for name, function in found.items()}
    asked = [choose(None, None, None, None, i / POINTS, i, POINTS, None) for i in range(POINTS + 1)]
    longest: dict[str, tuple[int, int]] = {}
    start = 0
    for i in range(1, len(asked) + 1):
        if i == len(asked) or asked[i] != asked[start]:
            before = longest.setdefault(asked[start], (start, start))
            if i - start > before[1] - before[0]:
                longest[asked[start]] = (start, i)
            start = i
    return {name: (first + last) // 2 / POINTS for name, (first, last) in longest.items()}


def _named(name: str) -> Callable[..., str]:
    def phase(*_: Any) -> str:
        return name

    return phase


def _words(function: Callable[..., Any], name: str) -> str:
    """How the text itself tells the phase: its function's docstring is `The loss when …`."""
    said = (function.__doc__ or "").strip().rstrip(".").removeprefix("The loss ")
    if said == "at all other times":
        return "otherwise"
    return said.removeprefix("when ") or name.removeprefix(_PREFIX).replace("_", " ")
