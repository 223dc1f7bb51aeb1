"""Wrong objectives, made from right ones: each mutant changes one thing in a spec's syntax tree.

The changes are those a person makes: a sign, two times exchanged, a tangent, a forgotten `stop`, an
interval, a factor, a condition, another network, other rows, a law that leaves the path's times,
the velocity of another state, a line left out. Mutants are printed and read again, so that the
printer and the parser have a part in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from flowdsl.clauses.differentiate import DifferentiateLine
from flowdsl.clauses.map import MapLine
from flowdsl.clauses.network import AverageLine, NetworkLine
from flowdsl.clauses.terms import MatchLine
from flowdsl.pipeline import find_source, merged, parse
from flowdsl.syntax.format import format_expression, format_tree
from flowdsl.syntax.lines import Binding, DrawLine
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
    Section,
    Tree,
    Unary,
)

#: Sections whose expressions are mutated; a mutated path would only be another path.
MUTATED = ("times", "conditions", "map", "guidance", "let", "differentiate", "target", "anchor",
           "correction", "loss")  # fmt: skip

Put = Callable[[Expression], Line]


@dataclass(frozen=True)
class Mutant:
    """One wrong spec: `text` is the whole of it, `change` the line before and after."""

    spec: str
    operator: str
    section: str
    change: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.spec}: {self.operator}: {self.change}"


@dataclass(frozen=True)
class World:
    """The names of a spec that mutations exchange."""

    times: tuple[str, ...]
    networks: dict[str, int]  # how many arguments each takes
    maps: tuple[str, ...]
    labelled: frozenset[str]
    states: tuple[str, ...]


def base_tree(spec: str) -> Tree:
    """A spec with what it inherits written out, and without claims, which would kill by text."""
    tree = replace(merged(parse(find_source(spec))), extends=None)
    kept = tuple(s for s in tree.sections if s.keyword not in ("claims", "stages"))
    return replace(tree, sections=kept)


def mutants(spec: str) -> list[Mutant]:
    """Every mutant of a spec, each text once."""
    tree = base_tree(spec)
    world = _world(tree)
    found: dict[str, Mutant] = {format_tree(tree): Mutant(spec, "", "", "", "")}
    for s, section in enumerate(tree.sections):
        if section.keyword not in MUTATED:
            continue
        for n, line in enumerate(section.lines):
            for operator, other in _changed_lines(section.keyword, line, world):
                mutated = _with_line(tree, s, n, other)
                if mutated is None:
                    continue
                text = format_tree(mutated)
                after = " ".join(other.parts()) if other is not None else "(left out)"
                change = f"{' '.join(line.parts())}  ->  {after}"
                found.setdefault(text, Mutant(spec, operator, section.keyword, change, text))
    return list(found.values())[1:]


def _world(tree: Tree) -> World:
    times: dict[str, None] = {}
    for line in tree.lines("times"):
        times.update(dict.fromkeys(n for n in line.names() if not n.endswith("'")))
    networks: dict[str, int] = {}
    labelled: set[str] = set()
    for line in tree.lines("network"):
        if isinstance(line, NetworkLine):
            networks[line.name] = len(line.arguments)
            if "label" in line.conditions:
                labelled.add(line.name)
        elif isinstance(line, AverageLine):
            networks[line.name] = networks[line.average_of]
            if line.average_of in labelled:
                labelled.add(line.name)
    maps = tuple((m.label or "map") for m in tree.lines("map") if isinstance(m, MapLine))
    states = tuple(x.name for x in tree.lines("path") if isinstance(x, Binding))
    return World(tuple(times), networks, maps, frozenset(labelled), states)


def _with_line(tree: Tree, section: int, line: int, new: Line | None) -> Tree | None:
    """The tree with one line replaced, or left out; None where a heading would be empty."""
    old = tree.sections[section]
    rest = list(old.lines)
    rest[line : line + 1] = [] if new is None else [new]
    sections: list[Section] = list(tree.sections)
    if rest:
        sections[section] = replace(old, lines=tuple(rest))
    else:
        del sections[section]
    return replace(tree, sections=tuple(sections)) if sections else None


def _changed_lines(keyword: str, line: Line, world: World) -> Iterator[tuple[str, Line | None]]:
    """Every way to change one line."""
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
        case MatchLine(_, _, prediction, target, _):
            yield "stop", replace(line, prediction=_call("stop", prediction))
            if not (isinstance(target, Call) and target.function == "stop"):
                yield "stop", replace(line, target=_call("stop", target))
            yield "exchanged", replace(line, prediction=target, target=prediction)
        case DrawLine(span, drawn, law, _):
            yield "law", replace(line, law=Binary(span, "*", NumberLiteral(span, "2"), law))
            if isinstance(law, Call) and law.function in ("sorted", "truncated"):
                yield "law", replace(line, law=law.arguments[0])
            if len(drawn) == 2:
                yield "law", replace(line, drawn=drawn[::-1])


# expressions


def _changed(
    keyword: str, line: Line, node: Expression, world: World
) -> Iterator[tuple[str, Expression]]:
    if keyword == "loss":
        if isinstance(node, Name) and node.id in ("mse", "error"):
            yield "loss", Unary(node.span, "-", node)
        return
    in_law = isinstance(line, DrawLine)
    match node:
        case Binary(span, "+" | "-" as op, left, right):
            yield "sign", Binary(span, "-" if op == "+" else "+", left, right)
            if op == "-" and isinstance(left, Name) and isinstance(right, Name):
                yield "times", Binary(span, op, right, left)
        case Binary(span, "*" | "/" as op, left, right) if not in_law:
            yield "factor", left
            yield "factor", Binary(span, "/" if op == "*" else "*", left, right)
        case Unary(_, "-", operand) if not in_law:
            yield "sign", operand
        case Comparison(span, operands, (one,)):
            flipped = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "!=", "!=": "=="}
            yield "rows", Comparison(span, operands, (flipped[one],))
        case NumberLiteral(span, text) if not in_law:
            yield "number", NumberLiteral(span, "2" if text != "2" else "3")
        case Name(span, name):
            yield from _changed_name(node, span, name, world, in_law)
        case Derivative():
            yield from _changed_derivative(node, world)
        case Call():
            yield from _changed_call(node, world)


def _changed_name(
    node: Name, span: object, name: str, world: World, in_law: bool
) -> Iterator[tuple[str, Expression]]:
    if name in world.times:
        for other in world.times:
            if other != name:
                yield "interval", replace(node, id=other)
    if in_law:
        return
    if name in ("velocity", "guided", "own"):
        yield "scale", _twice(node)
        yield "sign", Unary(node.span, "-", node)
    if name == "velocity":
        for state in world.states:
            for time in world.times:
                place = Call(node.span, state, (Name(node.span, time),))
                yield "place", Call(node.span, "velocity", (place,))
    if name in world.states:
        for time in world.times:
            yield "place", Call(node.span, name, (Name(node.span, time),))


def _changed_derivative(node: Derivative, world: World) -> Iterator[tuple[str, Expression]]:
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
    yield "tangent", node.body


def _changed_call(node: Call, world: World) -> Iterator[tuple[str, Expression]]:
    name, args = node.function, node.arguments
    if name == "stop":
        yield "stop", args[0]
    if name == "velocity":
        yield "place", Name(node.span, "velocity")
        yield "scale", _twice(node)
    if name in world.networks or name in world.maps:
        yield "scale", _twice(node)
        for k in range(1, len(args)):
            for j in range(1, len(args)):
                if args[j] != args[k]:
                    changed = (*args[:k], args[j], *args[k + 1 :])
                    yield "times", replace(node, arguments=changed)
        if len(args) > 2:
            swapped = (args[0], args[2], args[1], *args[3:])
            yield "times", replace(node, arguments=swapped)
    if name in world.networks:
        for other, count in world.networks.items():
            if other != name and count == world.networks[name]:
                yield "network", replace(node, function=other)
        yield from _changed_condition(node, world)


def _changed_condition(node: Call, world: World) -> Iterator[tuple[str, Expression]]:
    for k in range(len(node.replaced)):
        left = (*node.replaced[:k], *node.replaced[k + 1 :])
        yield "condition", replace(node, replaced=left)
    if node.function in world.labelled and not any(r.name == "label" for r in node.replaced):
        null = Replacement(node.span, "label", Name(node.span, "null"))
        yield "condition", replace(node, replaced=(null, *node.replaced))


def _twice(node: Expression) -> Expression:
    return Binary(node.span, "*", NumberLiteral(node.span, "2"), node)


def _call(function: str, node: Expression) -> Expression:
    return Call(node.span, function, (node,))


# where expressions stand


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


__all__ = ["Mutant", "World", "base_tree", "expressions", "format_expression", "mutants"]
