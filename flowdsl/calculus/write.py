"""Scalars of the calculus back into core expressions."""

from __future__ import annotations

import ast
from collections.abc import Callable
from fractions import Fraction

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.field import Element
from flowdsl.calculus.scalars import Scalars
from flowdsl.calculus.text import element_text
from flowdsl.spec.core import Apply, Expr, Number

_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.Pow: "pow",
}  # fmt: skip


def element_expr(scalars: Scalars, x: Element, leaf: Callable[[int], Expr]) -> Expr:
    """The core expression of a scalar, factored as it is printed; `leaf` gives each generator's.

    The printed form is unambiguous arithmetic, so it is read back by the host language's own
    parser.
    """
    named = _Named(scalars)
    text = element_text(named, x).replace("^", "**")
    return _convert(ast.parse(text, mode="eval").body, leaf)


class _Named:
    """The field with generators named by their numbers, whatever a spec calls them."""

    def __init__(self, scalars: Scalars) -> None:
        self.defined = {
            i: d for i, d in scalars.defined.items() if d.function in ("tan_half", "opaque")
        }
        self.field = scalars.field
        self._scalars = scalars

    def name_of(self, index: int) -> str:
        definition = self._scalars.defined.get(index)
        if definition is None or definition.argument is None:
            return f"g{index}"
        return f"{definition.function}({element_text(self, definition.argument)})"


def _convert(tree: ast.expr, leaf: Callable[[int], Expr]) -> Expr:
    match tree:
        case ast.Constant(int() as value):
            return Number(Fraction(value))
        case ast.Name(name):
            return leaf(int(name[1:]))
        case ast.UnaryOp(ast.USub(), operand):
            return Apply("neg", (_convert(operand, leaf),))
        case ast.BinOp(left, op, right):
            return Apply(_OPERATORS[type(op)], (_convert(left, leaf), _convert(right, leaf)))
        case ast.Call(ast.Name(name), [argument]):
            return Apply(name, (_convert(argument, leaf),))
    raise Undecided("a scalar that cannot be written in the language")
