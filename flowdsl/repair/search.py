"""Edits worth trying on an expression whose term is wrong: each is one slip of the hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from flowdsl.diagnostics import Span
from flowdsl.repair.align import (
    other_direction,
    other_variable,
    with_factor,
    without_factor,
)
from flowdsl.repair.edit import (
    Edit,
    change,
    factors,
    nodes,
    operator_span,
    parts,
    terms,
    unstopped,
)
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.tree import Binary, Call, Derivative, Expression, Name, NumberLiteral, Unary


@dataclass(frozen=True)
class Words:
    """What a spec has to offer: names of times and states, networks, factors of its map."""

    times: tuple[str, ...]
    states: tuple[str, ...]
    heads: tuple[str, ...]
    factors: tuple[Expression, ...]
    timed: tuple[str, ...] = ()  # what is called with times: networks, maps, paths
    shown: tuple[str, ...] = ()  # states that networks are shown, other than the row's own
    landings: tuple[str, ...] = ()  # the row's state, and where the map takes it


def signs(whole: Expression) -> Iterator[Edit]:
    """The other sign, everywhere."""
    for node in nodes(whole):
        match node:
            case Binary(_, "+" | "-" as op):
                new = "-" if op == "+" else "+"
                at = operator_span(node)
                hint = f"replace `{op}` by `{new}`"
                yield Edit(((at, new),), at, "here the sign differs", hint)
            case Unary(_, "-", _):
                at = Span(node.span.source, node.span.start, node.span.start + 1)
                yield Edit(((at, ""),), at, "here the sign differs", "drop the `-`")
    first = terms(unstopped(whole))[0]
    if not first.negative:
        span = first.node.span
        at = Span(span.source, span.start, span.start)
        yield Edit(((at, "-"),), span, "here the sign differs", "write a `-` in front")


def stops(whole: Expression) -> Iterator[Edit]:
    """No gradient through the whole, through a derivative, or through a call."""
    yield _stopped(whole, "gradient flows through this")
    for node in nodes(whole):
        if isinstance(node, Derivative):
            yield _stopped(node, "gradient flows through this derivative")


def stopped_calls(whole: Expression, heads: Sequence[str]) -> Iterator[Edit]:
    """No gradient through one call of a network."""
    for node in nodes(whole):
        if isinstance(node, Call) and node.function in heads:
            yield _stopped(node, "gradient flows through this call")


def released(whole: Expression) -> Iterator[Edit]:
    """Gradient through what was stopped."""
    for node in nodes(whole):
        match node:
            case Call(span, "stop", (body,), (), ()):
                hint = "drop this `stop( )`"
                yield change(node, body, span, "no gradient passes here", hint)


def _stopped(node: Expression, label: str) -> Edit:
    new = Call(node.span, "stop", (node,))
    text = format_expression(new)
    hint = f"write `{text}`" if len(text) <= 60 else "put `stop( )` around it"
    return change(node, new, node.span, label, hint)


def derivatives(whole: Expression, words: Words) -> Iterator[Edit]:
    """Another time, or another tangent, for each derivative."""
    for node in nodes(whole):
        if not isinstance(node, Derivative):
            continue
        if node.along is not None:
            yield other_direction(node, None)
        for variable in words.times:
            if variable != node.variable:
                yield other_variable(node, variable)
        shown = None if node.along is None else format_expression(node.along)
        for name in ("velocity", *words.states):
            if name != shown:
                yield other_direction(node, Name(node.span, name))


def arguments(whole: Expression, words: Words) -> Iterator[Edit]:
    """Times of a call swapped, or one of them replaced."""
    for node in nodes(whole):
        if not isinstance(node, Call) or node.function not in words.timed:
            continue
        moments = [k for k, a in enumerate(node.arguments) if _is_time(a, words)]
        for i, k in enumerate(moments):
            for other in moments[i + 1 :]:
                given = list(node.arguments)
                given[k], given[other] = given[other], given[k]
                yield _called(node, given)
        for k in moments:
            for name in words.times:
                if format_expression(node.arguments[k]) != name:
                    given = list(node.arguments)
                    given[k] = Name(given[k].span, name)
                    edit = change(node.arguments[k], given[k], node.arguments[k].span,
                                  f"this should be {name}", "")  # fmt: skip
                    new = format_expression(replace(node, arguments=tuple(given)))
                    yield replace(edit, hint=f"write `{new}`")


def _is_time(node: Expression, words: Words) -> bool:
    return isinstance(node, NumberLiteral) or (isinstance(node, Name) and node.id in words.times)


def _called(node: Call, arguments: Sequence[Expression]) -> Edit:
    new = replace(node, arguments=tuple(arguments))
    text = format_expression(new)
    return change(node, new, node.span, "the times are exchanged", f"write `{text}`")


def conditions(whole: Expression) -> Iterator[Edit]:
    """A call without what it replaces after its bar."""
    for node in nodes(whole):
        if isinstance(node, Call) and node.replaced:
            new = replace(node, replaced=())
            text = f"write `{format_expression(new)}`"
            yield change(node, new, node.span, "nothing is replaced here", text)


def products(whole: Expression, words: Words) -> Iterator[Edit]:
    """A factor of the map missing in a term, or one too many."""
    for factor in words.factors:
        for term in terms(unstopped(whole)):
            yield with_factor(term.node, factor)
    yield from fewer_factors(whole)


def fewer_factors(whole: Expression) -> Iterator[Edit]:
    """One factor, or divisor, left out."""
    for inner in _all_terms(unstopped(whole)):
        own = factors(inner)
        yield from (without_factor(f) for f in own if len(own) > 1)


def more_products(whole: Expression, words: Words) -> Iterator[Edit]:
    """The same further inside, and divisions."""
    for factor in words.factors:
        for inner in _all_terms(unstopped(whole)):
            yield with_factor(inner, factor)
            yield with_factor(inner, factor, below=True)


def complements(whole: Expression) -> Iterator[Edit]:
    """`1 - alpha` for `alpha`, and the other way round: the weights of two terms exchanged."""
    for node in nodes(whole):
        match node:
            case Binary(_, "*", left, right):
                for factor in (left, right):
                    new = _complement(factor)
                    if new is not None:
                        text = format_expression(new)
                        label = f"this should be {text}"
                        yield change(factor, new, factor.span, label, f"write `{text}`")


def whole_complement(whole: Expression) -> Iterator[Edit]:
    """The same of the whole."""
    new = _complement(whole)
    if new is not None:
        text = format_expression(new)
        yield change(whole, new, whole.span, f"this should be {text}", f"write `{text}`")


def _complement(factor: Expression) -> Expression | None:
    match factor:
        case Binary(_, "-", NumberLiteral(_, "1"), Name() as name):
            return name
        case Name(span, _):
            return Binary(span, "-", NumberLiteral(span, "1"), factor)
    return None


def velocities(whole: Expression, words: Words) -> Iterator[Edit]:
    """The velocity of the very state that a network is shown, for that of the row's own."""
    for node in nodes(whole):
        if isinstance(node, Name) and node.id == "velocity":
            for state in words.shown:
                text = f"velocity({state})"
                label = f"the network is shown {state}"
                yield change(node, text, node.span, label, f"write `{text}`")


def landings(whole: Expression, words: Words) -> Iterator[Edit]:
    """The state of the row where the map has landed, or the other way round."""
    for node in nodes(whole):
        if not (isinstance(node, Call) and node.function in words.heads and node.arguments):
            continue
        place = node.arguments[0]
        for text in words.landings:
            if format_expression(place) != text:
                label = f"the velocity is needed at {text}"
                new = replace(node, arguments=(Name(place.span, text), *node.arguments[1:]))
                yield change(place, text, place.span, label, f"write `{format_expression(new)}`")


def _all_terms(whole: Expression) -> Iterator[Expression]:
    """The terms of a sum, and those of the sums inside them."""
    for term in terms(whole):
        yield term.node
        for factor in factors(term.node):
            inner = [factor.node] if factor.node is not term.node else list(parts(factor.node))
            for node in inner:
                if len(terms(node)) > 1:
                    yield from _all_terms(node)


def names(whole: Expression, words: Words) -> Iterator[Edit]:
    """Another state, another network, or another time, for a name."""
    for node in nodes(whole):
        match node:
            case Name(span, name):
                pool = words.states if name in words.states else (
                    words.times if name in words.times else ())  # fmt: skip
                for other in pool:
                    if other != name:
                        label, hint = f"this should be {other}", f"write `{other}`"
                        yield Edit(((span, other),), span, label, hint)
            case Call(span, function) if function in words.heads:
                at = Span(span.source, span.start, span.start + len(function))
                for other in words.heads:
                    if other != function:
                        label, hint = f"this should be {other}", f"call `{other}`"
                        yield Edit(((at, other),), at, label, hint)


def numbers(whole: Expression) -> Iterator[Edit]:
    """A term doubled or halved; another whole number."""
    for node in nodes(whole):
        if isinstance(node, NumberLiteral) and "." not in node.text and len(node.text) < 3:
            for value in (1, 2, 3, 4):
                if str(value) != node.text:
                    label, hint = f"this should be {value}", f"write `{value}`"
                    yield Edit(((node.span, str(value)),), node.span, label, hint)
    for term in terms(unstopped(whole)):
        for below in (True, False):
            yield with_factor(term.node, NumberLiteral(whole.span, "2"), below)
