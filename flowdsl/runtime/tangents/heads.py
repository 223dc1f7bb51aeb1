"""Networks with several heads, asked for some of them.

Any network may take part: `takes_only_heads = True` on it says that its `forward` has an argument
`only_heads`, the names of the heads to compute, None for all; it then returns None for the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flowdsl.diagnostics import fail
from flowdsl.runtime.nets.duals import moving_heads

#: The argument by which a network is told the heads to compute.
ASKING = "only_heads"


@dataclass(frozen=True)
class Asked:
    """Of the heads `names`, in the order of a network's results, those whose value and those whose
    derivative a caller reads.
    """

    names: tuple[str, ...]
    value: tuple[str, ...]
    derivative: tuple[str, ...]

    @property
    def both(self) -> tuple[str, ...]:
        """The heads to compute, where value and derivative come from one pass."""
        return tuple(n for n in self.names if n in self.value or n in self.derivative)

    def moving(self) -> AbstractContextManager[None]:
        """While entered, the pass needs no derivative but the wanted ones."""
        if self.derivative == self.both:
            return nullcontext()
        return moving_heads(self.derivative)

    def picked(self, results: Sequence[Any]) -> tuple[Any, ...]:
        """Of the results of `both`, those whose derivative is read."""
        return tuple(x for n, x in zip(self.both, results, strict=True) if n in self.derivative)

    def spread(self, heads: tuple[str, ...], results: Sequence[Any]) -> tuple[Any, ...]:
        """One entry per head of the network, None for those that were not computed."""
        found = iter(results)
        return tuple(next(found) if name in heads else None for name in self.names)


def takes_heads(network: Callable[..., Any]) -> bool:
    """Whether a network says that it can leave out heads (`takes_only_heads`).

    Raises DiagnosticError where it says so and cannot be asked for some.
    """
    if not getattr(network, "takes_only_heads", False):
        return False
    if not torch.compiler.is_compiling():
        called = network.forward if isinstance(network, nn.Module) else network
        known = inspect.signature(called).parameters.values()
        if all(p.name != ASKING and p.kind != p.VAR_KEYWORD for p in known):
            raise fail(
                "networks",
                "a network says that it takes only_heads, and has no such argument",
                facts=[("accepts", f"{called.__name__}{inspect.signature(called)}")],
                hint="add `only_heads=None` to it, the names of the heads to compute, or leave "
                "`takes_only_heads` away",
            )
    return True


def only(
    network: Callable[..., Any], names: tuple[str, ...], heads: tuple[str, ...]
) -> Callable[..., tuple[Any, ...]]:
    """A network of the heads `names`, with the results of `heads` alone; it must take
    `only_heads`, and is asked for nothing else. Raises DiagnosticError for results without them.
    """

    def call(*arguments: Any, **conditions: Any) -> tuple[Any, ...]:
        results = network(*arguments, only_heads=heads, **conditions)
        if not isinstance(results, tuple | list) or len(results) != len(names):
            count = len(results) if isinstance(results, tuple | list) else 1
            raise _misunderstood(heads, f"it returns {count} of {len(names)} values", names)
        chosen = tuple(x for n, x in zip(names, results, strict=True) if n in heads)
        for name, x in zip(heads, chosen, strict=True):
            if x is None:
                raise _misunderstood(heads, f"it returns None for {name}", names)
        return chosen

    return call


def _misunderstood(heads: tuple[str, ...], what: str, names: tuple[str, ...]) -> Exception:
    return fail(
        "networks",
        f"asked for {', '.join(heads)} alone by only_heads, {what}",
        facts=[("required", f"({', '.join(n if n in heads else 'None' for n in names)})")],
        hint="return one entry per head, None for those that were not asked for",
    )
