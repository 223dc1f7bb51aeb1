"""Networks with several heads, asked for some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from flowdsl.runtime.nets.duals import moving_heads


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


def only(
    network: Callable[..., Any], names: tuple[str, ...], heads: tuple[str, ...]
) -> Callable[..., tuple[Any, ...]]:
    """A network of the heads `names`, with the results of `heads` alone; it must take
    `only_heads`, and is asked for nothing else.
    """

    def call(*arguments: Any, **conditions: Any) -> tuple[Any, ...]:
        results = network(*arguments, only_heads=heads, **conditions)
        return tuple(x for n, x in zip(names, results, strict=True) if n in heads)

    return call
