"""A written expression beside the one that is required: where the two differ.

Sums are aligned term by term and products factor by factor; what is left is a sign, a factor, an
argument or a term too many or too few. The answer is about text: whether the edit mends the spec is
for the proof to say.
"""

from __future__ import annotations

from dataclasses import replace

from flowdsl.diagnostics import Span
from flowdsl.repair.edit import Edit, Factor, Signed, change, factors, terms, unstopped
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.tree import (
    Binary,
    Call,
    Comparison,
    Derivative,
    Expression,
    NumberLiteral,
    Unary,
)

MOST = 3  #: more differences than these are another expression, not a slip


def differences(written: Expression, required: Expression) -> list[Edit]:
    """The edits that together turn one into the other; none where they have too little in
    common."""
    found = _sums(unstopped(written), unstopped(required))
    return found if found is not None and 0 < len(found) <= MOST else []


Key = tuple[bool, str]


def key(node: Expression) -> Key:
    """Sign and text of a product up to the order of its factors; `r - t` is `t - r` negated."""
    negative, texts = False, []
    for factor in factors(node):
        turned, text = _factor_key(factor.node)
        negative = negative != turned
        texts.append(f"/{text}" if factor.below else text)
    return negative, " * ".join(sorted(texts))


def _factor_key(node: Expression) -> Key:
    match node:
        case Unary(_, "-", operand):
            negative, text = key(operand)
            return not negative, text
        case Binary(_, "-", left, right):
            one, other = format_expression(left), format_expression(right)
            return (one > other), f"({min(one, other)} - {max(one, other)})"
    return False, format_expression(node)


def _sums(written: Expression, required: Expression) -> list[Edit] | None:
    """Differences of two sums; None where the two have nothing in common."""
    mine, theirs = terms(written), terms(required)
    edits: list[Edit] = []
    many = len(mine)
    for own in list(mine):
        other = next((x for x in theirs if key(x.node)[1] == key(own.node)[1]), None)
        if other is None:
            continue
        mine.remove(own)
        theirs.remove(other)
        if _sign(own) != _sign(other):
            edits.append(_turned(own, written))
    for own in list(mine):
        best = max(theirs, key=lambda x: _common(own.node, x.node), default=None)
        if best is None or _common(own.node, best.node) == 0:
            continue
        inner = _products(own, best)
        if inner is None:
            continue
        mine.remove(own)
        theirs.remove(best)
        edits += inner
    if mine and len(mine) == many:
        return None  # nothing in common
    if len(mine) == 1 and len(theirs) == 1:
        return edits + _replaced(mine[0], theirs[0])
    for own in mine:
        edits.append(_extra(own, written))
    for missing in theirs:
        edits.append(_missing(missing, written))
    return edits


def _sign(term: Signed) -> bool:
    return term.negative != key(term.node)[0]


def _turned(own: Signed, whole: Expression) -> Edit:
    """The other sign for a term."""
    if own.sign is not None and own.sign.text in "+-" and own.sign.start >= whole.span.start:
        new = "-" if own.sign.text == "+" else "+"
        hint = f"replace `{own.sign.text}` by `{new}`"
        first = own.sign.start == whole.span.start
        text = "" if first and new == "+" else new
        if first:
            hint = "drop the `-`"
        return Edit(((own.sign, text),), own.sign, "here the sign differs", hint)
    shown = own.node.span
    at = Span(shown.source, shown.start, shown.start)
    return Edit(((at, "-"),), shown, "here the sign differs", "write a `-` in front")


def _extra(own: Signed, whole: Expression) -> Edit:
    """A term that does not belong: multiplied by zero for the proof, dropped for the reader."""
    text = own.node.span.text
    place = own.node.span if own.sign is None else own.sign.to(own.node.span)
    hint = f"drop `{place.text if own.sign is not None else text}`"
    return Edit(((own.node.span, f"(0 * ({text}))"),), place,
                "this term does not belong here", hint)  # fmt: skip


def _missing(other: Signed, whole: Expression) -> Edit:
    sign = "-" if other.negative else "+"
    text = f"{sign} {format_expression(other.node)}"
    at = Span(whole.span.source, whole.span.end, whole.span.end)
    return Edit(((at, f" {text}"),), whole.span, "a term is missing here", f"add `{text}`")


def _common(one: Expression, other: Expression) -> int:
    """How much two terms share: equal factors count twice, calls of one function once."""
    mine, theirs = factors(one), factors(other)
    score = 0
    for factor in mine:
        for candidate in theirs:
            if _same(factor, candidate):
                score += 2
            elif _alike(factor.node, candidate.node):
                score += 1
    return score


def _same(one: Factor, other: Factor) -> bool:
    return one.below == other.below and _factor_key(one.node)[1] == _factor_key(other.node)[1]


def _alike(one: Expression, other: Expression) -> bool:
    match one, other:
        case Derivative(_, _, body, _), Derivative(_, _, other_body, _):
            return _alike(body, other_body)
        case Call(_, function, arguments), Call(_, other_function, others):
            return function == other_function and len(arguments) == len(others)
    return False


def _products(own: Signed, other: Signed) -> list[Edit] | None:
    """Differences of two products that have something in common."""
    mine, theirs = factors(own.node), factors(other.node)
    negative = own.negative != other.negative
    for factor in list(mine):
        found = next((x for x in theirs if _same(factor, x)), None)
        if found is not None:
            mine.remove(factor)
            theirs.remove(found)
            negative ^= _factor_key(factor.node)[0] != _factor_key(found.node)[0]
    edits: list[Edit] = []
    for factor in list(mine):
        found = next((x for x in theirs if factor.below == x.below
                      and _alike(factor.node, x.node)), None)  # fmt: skip
        if found is not None:
            mine.remove(factor)
            theirs.remove(found)
            edits += _inside(factor.node, found.node)
    if negative:
        edits.append(_turned(own, own.node))
    if len(mine) == 1 and len(theirs) == 1 and mine[0].below == theirs[0].below:
        return [*edits, _write(mine.pop().node, theirs.pop().node)]
    edits += [without_factor(factor) for factor in mine]
    edits += [with_factor(own.node, factor.node, factor.below) for factor in theirs]
    return edits


def _inside(one: Expression, other: Expression) -> list[Edit]:
    """Differences of two calls of one function, or two derivatives."""
    match one, other:
        case Derivative(), Derivative():
            edits = [] if one.variable == other.variable else [other_variable(one, other.variable)]
            if _shown(one.along) != _shown(other.along):
                edits.append(other_direction(one, other.along))
            return edits + _inside(one.body, other.body)
        case Call(), Call():
            pairs = zip(one.arguments, other.arguments, strict=False)
            edits = [_write(a, b) for a, b in pairs if _shown(a) != _shown(b)]
            if one.replaced != other.replaced:
                edits.append(_write(one, other))
            if len(edits) > 1:  # one hint for the whole call
                return [_write(one, other)]
            return [replace(edit, hint=f"write `{format_expression(other)}`") for edit in edits]
    return [] if _shown(one) == _shown(other) else [_write(one, other)]


def _replaced(own: Signed, other: Signed) -> list[Edit]:
    edits = [_write(own.node, other.node)]
    if own.negative != other.negative:
        edits.append(_turned(own, own.node))
    return edits


def _shown(node: Expression | None) -> str:
    return "" if node is None else format_expression(node)


def _write(old: Expression, new: Expression) -> Edit:
    text = format_expression(new)
    return change(old, new, old.span, f"this should be {text}", f"write `{text}`")


# edits that the search shares


def other_variable(node: Derivative, variable: str) -> Edit:
    """The same derivative in another time."""
    head = node.span.text.index("[")
    start = Span(node.span.source, node.span.start, node.span.start + head)
    label = f"differentiated in {node.variable}"
    new = Derivative(node.span, variable, node.body, node.along)
    return change(node, new, start, label, f"write `{format_expression(new)}`")


def other_direction(node: Derivative, along: Expression | None) -> Edit:
    """The same derivative along another direction, or along the one that is moved by default."""
    new = Derivative(node.span, node.variable, node.body, along)
    place = node.span if node.along is None else node.along.span
    label = "the state moves otherwise" if node.along is not None else "the state moves here"
    return change(node, new, place, label, f"write `{format_expression(new)}`")


def with_factor(node: Expression, factor: Expression, below: bool = False) -> Edit:
    """A term of a sum multiplied, or divided, by a factor."""
    brackets = bracketed(factor)
    source, start, end = node.span.source, node.span.start, node.span.end
    if below:
        changes = ((Span(source, end, end), f" / {brackets}"),)
        return Edit(changes, node.span, f"not divided by {brackets}", f"divide by `{brackets}`")
    changes = ((Span(source, start, start), f"{brackets} * "),)
    label = f"the factor {brackets} is missing"
    return Edit(changes, node.span, label, f"multiply by `{brackets}`")


def bracketed(node: Expression) -> str:
    """As a factor would be written."""
    text = format_expression(node)
    return f"({text})" if isinstance(node, Binary | Unary | Comparison) else text


def without_factor(factor: Factor) -> Edit:
    """A product without one of its factors."""
    brackets = bracketed(factor.node)
    label = "this factor does not belong here"
    one = NumberLiteral(factor.node.span, "1")
    word = f"do not divide by `{brackets}`" if factor.below else f"drop the factor `{brackets}`"
    return change(factor.node, one, factor.node.span, label, word)
