"""At which time does a network see this? Functions of one time, such as log(t) / 4, inverted."""

from __future__ import annotations

from collections.abc import Iterable

from flowdsl.calculus.errors import Pole
from flowdsl.calculus.field import Element
from flowdsl.calculus.scalars import Scalars

MONOTONE = frozenset({"log", "exp", "sqrt", "atan"})


def preimage(
    scalars: Scalars, read: Element, index: int, value: Element, hints: Iterable[Element] = ()
) -> Element | None:
    """The value of the symbol `index` at which a function `read` of it has this value.

    Found where the function is made of affine and of monotone ones; else one of `hints` is, if it
    fits. None where neither is.
    """
    found = _undone(scalars, read, index, value)
    if found is not None:
        return found
    for hint in hints:
        try:
            if scalars.substitute(read, index, hint) == value:
                return hint
        except Pole:
            continue
    return None


def _undone(scalars: Scalars, read: Element, index: int, value: Element) -> Element | None:
    outer = outermost(scalars, read, index)
    if outer is None:
        return None
    slope = read.diff(scalars.generator(outer))
    inner = scalars.divide(value - read + slope * scalars.generator(outer), slope)
    if outer == index:
        return inner
    definition = scalars.defined[outer]
    if definition.function not in MONOTONE:
        return None
    undone = _argument(scalars, definition.function, inner)
    return None if undone is None else _undone(scalars, definition.argument, index, undone)


def outermost(scalars: Scalars, x: Element, index: int) -> int | None:
    """The one generator in which x is affine and by which alone it depends on a symbol: the symbol
    itself, or a function of it."""
    moving = [
        i
        for i in scalars.generators_in(x)
        if x.diff(scalars.generator(i))
        and (i == index or (i in scalars.defined and index in scalars.defined[i].inside))
    ]
    if len(moving) != 1:
        return None
    slope = x.diff(scalars.generator(moving[0]))
    return None if moving[0] in scalars.generators_in(slope) else moving[0]


def _argument(scalars: Scalars, function: str, value: Element) -> Element | None:
    """What the function is taken of where it has this value."""
    for i in scalars.generators_in(value):
        definition = scalars.defined.get(i)
        own = definition is not None and definition.function == function
        if definition is not None and own and scalars.generator(i) == value:
            return definition.argument
    match function:
        case "log":
            return scalars.exp(value)
        case "sqrt":
            return scalars.product(value, value)
    return None
