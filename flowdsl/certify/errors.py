"""What the certificate says of an objective that it cannot measure."""

from __future__ import annotations

from flowdsl.diagnostics import Span


class Uncertified(Exception):
    """There is no exact answer to measure against; the reason is one clause that a user can
    read."""

    def __init__(self, reason: str, span: Span | None = None) -> None:
        self.reason = reason
        self.span = span
        super().__init__(reason)
