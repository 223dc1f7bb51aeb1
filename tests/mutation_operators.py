"""The ways in which a line of a spec is made wrong: those in which a person makes it wrong.

A sign, two times exchanged, a tangent, a `stop` forgotten or added, an interval, a factor, a
condition, another network, other rows, a law that leaves the path's times, the velocity of another
state, the boundary, two jumps in the wrong order, a weight that knows the residual, a line left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

from flowdsl.clauses.differentiate import DifferentiateLine
from flowdsl.clauses.map import MapLine
from flowdsl.clauses.terms import MatchLine
from flowdsl.diagnostics import Span
from flowdsl.syntax.lines import Binding, DrawLine, Labelled
from flowdsl.syntax.tree import (
    Binary,
    Call,
    Comparison,
    Derivative,
    Expression,
    Line,
    Name,
    Node,
    NumberLiteral,
    Replacement,
    Unary,
)

Put = Callable[[Expression], Line]
Changes = Iterator[tuple[str, Expression]]


@dataclass(frozen=True)
class World:
    """The names of a spec that mutations exchange."""

    times: tuple[str, ...]
    networks: Mapping[str, int]  # how many arguments each takes
    maps: tuple[str, ...]
    conditions: Mapping[str, tuple[str, ...]]  # what each network sees beside state and times
    states: tuple[str, ...]


def changed_lines(keyword: str, line: Line, world: World) -> Iterator[tuple[str, Line | None]]:
    """Every way to change one line; None leaves it out."""
    yield from _whole_line(line)
    for node, put in expressions(line):
        for operator, new in _changed(keyword, line, node, world):
            yield operator, put(new)


# whole lines


def _whole_line(line: Line) -> Iterator[tuple[str, Line | None]]:
    if isinstance(line, MatchLine) or (isinstance(line, Binding) and line.rows is not None):
        yield "left out", None
    rows = getattr(line, "rows", None)
    if isinstance(rows, Expression):
        yield "rows", replace(line, rows=Unary(rows.span, "not", rows))  # type: ignore[call-arg]
        yield "rows", replace(line, rows=None)  # type: ignore[call-arg]
    match line:
        case DifferentiateLine(span, time, along):
            if along is not None:
                yield "tangent", DifferentiateLine(span, time, None)
                yield "tangent", DifferentiateLine(span, time, _twice(along))
        case MatchLine():
            yield from _term(line)
        case DrawLine():
            yield from _law(line)
        case Labelled() if _is_weight(line.value):
            yield from _weights(line)


def _term(line: MatchLine) -> Iterator[tuple[str, Line | None]]:
    prediction, target = line.prediction, line.target
    yield "stop", replace(line, prediction=_call("stop", prediction))
    if isinstance(target, Call) and target.function == "stop":
        yield "stop", replace(line, target=target.arguments[0])
    else:
        yield "stop", replace(line, target=_call("stop", target))
    yield "exchanged", replace(line, prediction=target, target=prediction)
    yield "scale", replace(line, prediction=_twice(prediction))
    yield "scale", replace(line, target=_twice(target))


def _law(line: DrawLine) -> Iterator[tuple[str, Line | None]]:
    span, law = line.span, line.law
    yield "law", replace(line, law=Binary(span, "*", _number(span, "2"), law))
    if isinstance(law, Call) and law.function in ("sorted", "truncated"):
        yield "law", replace(line, law=law.arguments[0])
    if isinstance(law, Call) and law.function in ("share", "bernoulli", "batch_bernoulli"):
        for share in ("0", "1"):
            yield "law", replace(line, law=replace(law, arguments=(_number(span, share),)))
    if len(line.drawn) == 2:
        yield "law", replace(line, drawn=line.drawn[::-1])


def _is_weight(value: Expression) -> bool:
    return any(isinstance(n, Name) and n.id in ("mse", "error") for n in nodes(value))


def _weights(line: Labelled) -> Iterator[tuple[str, Line | None]]:
    """Weights that know the sample's own residual, and ones that do not."""
    span, loss = line.span, line.value
    size = _call("norm", Name(span, "velocity"))
    yield "weight", replace(line, value=Binary(span, "*", size, loss))
    yield "weight", replace(line, value=Binary(span, "*", _call("stop", loss), loss))
    yield "weight", replace(line, value=_call("sqrt", Binary(span, "+", loss, _number(span, "1"))))
    yield "weight", replace(line, value=_twice(loss))


# expressions


def _changed(keyword: str, line: Line, node: Expression, world: World) -> Changes:
    if keyword == "loss":
        if isinstance(node, Name) and node.id in ("mse", "error"):
            yield "loss", Unary(node.span, "-", node)
        return
    if isinstance(line, DrawLine):
        yield from _changed_law(node, world)
        return
    match node:
        case Binary():
            yield from _changed_binary(node)
        case Unary(_, "-", operand):
            yield "sign", operand
        case Comparison(span, operands, (one,)):
            flipped = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "!=", "!=": "=="}
            yield "rows", Comparison(span, operands, (flipped[one],))
        case NumberLiteral(span, text):
            yield "number", _number(span, "2" if text != "2" else "3")
        case Name():
            yield from _changed_name(keyword, line, node, world)
        case Derivative():
            yield from _changed_derivative(node, world)
        case Call():
            yield from _changed_call(node, world)


def _changed_binary(node: Binary) -> Changes:
    span, op, left, right = node.span, node.op, node.left, node.right
    if op in ("+", "-"):
        yield "sign", Binary(span, "-" if op == "+" else "+", left, right)
        yield "left out", left
        yield "left out", right
    if op == "-":
        yield "sign", Binary(span, op, right, left)
    if op in ("*", "/"):
        yield "factor", left
        if op == "*":
            yield "factor", right
        yield "factor", Binary(span, "/" if op == "*" else "*", left, right)


def _changed_law(node: Expression, world: World) -> Changes:
    match node:
        case NumberLiteral(span, text):
            yield "law", _number(span, "0.5" if text != "0.5" else "0.25")
        case Binary(span, "+" | "-" as op, left, right):
            yield "law", Binary(span, "-" if op == "+" else "+", left, right)
        case Name(_, name) if name in world.times:
            for other in world.times:
                if other != name:
                    yield "interval", replace(node, id=other)
        case Call(span, function, (first, second)) if function in ("uniform", "sorted"):
            yield "law", replace(node, arguments=(second, first))


def _changed_name(keyword: str, line: Line, node: Name, world: World) -> Changes:
    span, name = node.span, node.id
    if name in world.times:
        for other in world.times:
            if other != name:
                yield "interval", replace(node, id=other)
    if name in ("velocity", "guided", "own"):
        yield "scale", _twice(node)
        yield "sign", Unary(span, "-", node)
    if name == "velocity":
        for state in world.states:
            for time in world.times:
                place = Call(span, state, (Name(span, time),))
                yield "place", Call(span, "velocity", (place,))
    if name in world.states:
        for time in world.times:
            yield "place", Call(span, name, (Name(span, time),))
        if isinstance(line, MapLine):
            yield "boundary", _twice(node)
    if name in ("data", "noise"):
        yield "end", replace(node, id="noise" if name == "data" else "data")


def _changed_derivative(node: Derivative, world: World) -> Changes:
    span, along = node.span, node.along
    if along is None:
        yield "tangent", replace(node, along=Name(span, "none"))
        yield "tangent", replace(node, along=Name(span, "velocity"))
    else:
        yield "tangent", replace(node, along=None)
        yield "tangent", replace(node, along=_twice(along))
    for time in world.times:
        if time != node.variable:
            yield "tangent", replace(node, variable=time)
    yield "stop", _call("stop", node)
    yield "scale", _twice(node)
    yield "tangent", node.body


def _changed_call(node: Call, world: World) -> Changes:
    name, args = node.function, node.arguments
    if name == "stop":
        yield "stop", args[0]
    if name == "velocity":
        yield "place", Name(node.span, "velocity")
        yield "scale", _twice(node)
        if args and isinstance(args[0], Call) and len(args[0].arguments) == 1:
            for time in world.times:
                moved = replace(args[0], arguments=(Name(node.span, time),))
                yield "place", replace(node, arguments=(moved,))
    if name in world.states:
        for time in world.times:
            yield "place", replace(node, arguments=(Name(node.span, time),))
    if name in world.networks or name in world.maps:
        yield "scale", _twice(node)
        yield "stop", _call("stop", node)
        yield from _exchanged_times(node)
        yield from _exchanged_jumps(node, world)
    if name in world.networks:
        for other, count in world.networks.items():
            if other != name and count == world.networks[name]:
                yield "network", replace(node, function=other)
        yield from _changed_condition(node, world)


def _exchanged_times(node: Call) -> Changes:
    args = node.arguments
    for k in range(1, len(args)):
        for j in range(1, len(args)):
            if args[j] != args[k]:
                yield "times", replace(node, arguments=(*args[:k], args[j], *args[k + 1 :]))
    if len(args) > 2:
        yield "times", replace(node, arguments=(args[0], args[2], args[1], *args[3:]))


def _exchanged_jumps(node: Call, world: World) -> Changes:
    """f(g(x, a, b), b, c) with the jumps in the other order, and f and g exchanged."""
    inner = node.arguments[0]
    if not isinstance(inner, Call) or len(inner.arguments) != len(node.arguments):
        return
    if inner.function not in world.networks and inner.function not in world.maps:
        return
    first = replace(inner, arguments=(inner.arguments[0], *node.arguments[1:]))
    yield "jumps", replace(node, arguments=(first, *inner.arguments[1:]))
    if inner.function != node.function:
        first = replace(inner, function=node.function)
        outer = replace(node, function=inner.function)
        yield "jumps", replace(outer, arguments=(first, *node.arguments[1:]))
    yield "jumps", inner


def _changed_condition(node: Call, world: World) -> Changes:
    for k in range(len(node.replaced)):
        left = (*node.replaced[:k], *node.replaced[k + 1 :])
        yield "condition", replace(node, replaced=left)
    shown = {r.name for r in node.replaced}
    for name in world.conditions[node.function]:
        if name not in shown:
            value = Name(node.span, "null") if name == "label" else _number(node.span, "1")
            new = Replacement(node.span, name, value)
            yield "condition", replace(node, replaced=(new, *node.replaced))


def _number(span: Span, text: str) -> NumberLiteral:
    return NumberLiteral(span, text)


def _twice(node: Expression) -> Expression:
    return Binary(node.span, "*", _number(node.span, "2"), node)


def _call(function: str, node: Expression) -> Expression:
    return Call(node.span, function, (node,))


# where expressions stand


def nodes(node: Node) -> Iterator[Node]:
    """Everything below a node of the tree, itself included."""
    yield node
    for field in fields(node):
        value = getattr(node, field.name)
        for child in value if isinstance(value, tuple) else (value,):
            if isinstance(child, Node):
                yield from nodes(child)


def expressions(line: Line) -> Iterator[tuple[Expression, Put]]:
    """Every expression of a line, outermost first, with the way to put another in its place."""

    def visit(node: Node, put: Callable[[Node], Line]) -> Iterator[tuple[Expression, Put]]:
        if isinstance(node, Expression):
            yield node, put
        for field in fields(node):
            value = getattr(node, field.name)
            if isinstance(value, Node):
                yield from visit(value, _setter(node, field.name, put))
            elif isinstance(value, tuple):
                for k, item in enumerate(value):
                    if isinstance(item, Node):
                        yield from visit(item, _item_setter(node, field.name, k, put))

    yield from visit(line, lambda new: new)  # type: ignore[arg-type, return-value]


def _setter(owner: Node, name: str, put: Callable[[Node], Line]) -> Callable[[Node], Line]:
    return lambda new: put(replace(owner, **{name: new}))  # type: ignore[arg-type]


def _item_setter(
    owner: Node, name: str, k: int, put: Callable[[Node], Line]
) -> Callable[[Node], Line]:
    def changed(new: Node) -> Line:
        items = getattr(owner, name)
        return put(replace(owner, **{name: (*items[:k], new, *items[k + 1 :])}))  # type: ignore[arg-type]

    return changed
