"""Rules for the operations that networks are made of, one file for each group of them."""

from flowdsl.runtime.tangents.rules import attention, norms, pointwise, products, shapes
from flowdsl.runtime.tangents.rules.registry import RULES

__all__ = ["RULES", "attention", "norms", "pointwise", "products", "shapes"]
