"""Scalar trees in torch, per row, in double precision: what a factor or a time is worth."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.spec.core import Apply, Constant, Draw, Expr, Formal, Level, Number, Stop, Training
from flowdsl.spec.kinds import level_of

Bound = Mapping[Expr, Tensor]
#: Numbers of the whole step are plain, which is fast under forward-mode differentiation.
Value = Tensor | float | bool


def _snap(x: Tensor, tolerance: Tensor) -> Tensor:
    inside = torch.where(x > 1 - tolerance, torch.ones_like(x), x)
    return torch.where(x < tolerance, torch.zeros_like(x), inside)


#: Operations that take tensors and plain numbers alike.
_ARITHMETIC: dict[str, Callable[..., Value]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "div": torch.div,
    "pow": torch.pow,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "atan": torch.atan,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "min": torch.minimum,
    "max": torch.maximum,
    "clip": torch.clamp,
    "snap": _snap,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "true": lambda: torch.tensor(True),
    "false": lambda: torch.tensor(False),
    "select": torch.where,
}


class Numbers:
    """Evaluates scalar trees; constants of the spec and the moment of training are known.

    What does not depend on the row is computed once.
    """

    def __init__(self, constants: Mapping[str, float], training: Mapping[str, float]) -> None:
        self._named = {**constants, **training}
        self._fixed: dict[Expr, Value] = {}

    def __call__(self, expr: Expr, bound: Bound | None = None) -> Tensor:
        """The value, of the shape of what is bound (rows,), or without dimensions.

        `bound` gives the values of leaves or of whole subtrees. Raises `Uncertified` for what has
        no value: a draw that is not bound, a network.
        """
        return _tensor(self._value(expr, bound or {}, {}))

    def rows(self, expr: Expr, bound: Bound, like: Tensor) -> Tensor:
        """The value with one entry per entry of `like`."""
        return self(expr, bound).to(torch.float64).expand_as(like)

    def _value(self, expr: Expr, bound: Bound, done: dict[Expr, Value]) -> Value:
        for known in (bound, done, self._fixed):
            if expr in known:
                return known[expr]
        value = done[expr] = self._compute(expr, bound, done)
        if level_of(expr) is not Level.ROW:
            if isinstance(value, Tensor) and value.dim() == 0:
                value = value.item()
            self._fixed[expr] = value
        return value

    def _compute(self, expr: Expr, bound: Bound, done: dict[Expr, Value]) -> Value:
        match expr:
            case Number(value):
                return float(value)
            case Constant(name) | Training(name) if name in self._named:
                return float(self._named[name])
            case Stop(body):
                return self._value(body, bound, done)
            case Apply("div", (a, Number(value))) if value:
                return self._value(a, bound, done) / float(value)
            case Apply(op, args) if op in _ARITHMETIC:
                return _ARITHMETIC[op](*(self._value(a, bound, done) for a in args))
            case Apply(op, args) if op in _FUNCTIONS:
                return _FUNCTIONS[op](*(_tensor(self._value(a, bound, done)) for a in args))
            case Draw(name, _, _) | Formal(name, _):
                raise Uncertified(f"`{name}` has no value there", expr.span)
        raise Uncertified("a factor that is no number", expr.span)


def _tensor(value: Value) -> Tensor:
    if isinstance(value, Tensor):
        return value
    dtype = torch.bool if isinstance(value, bool) else torch.float64
    return torch.tensor(value, dtype=dtype)
