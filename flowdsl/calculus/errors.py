"""What the calculus says when it cannot go on."""

from __future__ import annotations

import time
from dataclasses import dataclass

from flowdsl.diagnostics import Span


class Undecided(Exception):
    """The calculus has no rule for something; the reason is one clause that a user can read."""

    def __init__(self, reason: str, span: Span | None = None) -> None:
        self.reason = reason
        self.span = span
        super().__init__(reason)


class Undefined(Undecided):
    """A number that is none: 1 / 0, the root or the logarithm of a negative number."""


class Pole(Exception):
    """A quantity was evaluated where its denominator vanishes."""


@dataclass
class Clock:
    """A deadline that long computations look at; past it they end in `Undecided`.

    It counts the seconds that this thread computes, so that a busy machine changes no verdict.
    """

    limit: float
    deadline: float = float("inf")

    def start(self) -> None:
        self.deadline = time.thread_time() + self.limit

    def look(self) -> None:
        if time.thread_time() > self.deadline:
            raise Undecided(f"no answer within {self.limit:g} s")
