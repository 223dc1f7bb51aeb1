"""Forward derivatives of any network, at the least price."""

from flowdsl.runtime.tangents.differentiable import Differentiable, Finding, SomeHeads
from flowdsl.runtime.tangents.ledger import NotShared
from flowdsl.runtime.tangents.live import Live
from flowdsl.runtime.tangents.shared import Direction, value_and_derivative

__all__ = [
    "Differentiable",
    "Direction",
    "Finding",
    "Live",
    "NotShared",
    "SomeHeads",
    "value_and_derivative",
]
