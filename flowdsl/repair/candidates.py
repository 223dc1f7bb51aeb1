"""Where edits of a failing term are looked for, and in which order they are tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.clauses.map import MapLine
from flowdsl.clauses.network import AverageLine, NetworkLine
from flowdsl.clauses.terms import MatchLine
from flowdsl.diagnostics import DiagnosticError, Span
from flowdsl.proof.derive import derive
from flowdsl.repair import search as slips
from flowdsl.repair.align import bracketed, differences, with_factor
from flowdsl.repair.edit import Edit, factors, nodes, terms, together, unstopped
from flowdsl.repair.search import Words
from flowdsl.spec.objective import Objective
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.lines import Binding, DrawLine, Labelled
from flowdsl.syntax.tree import Binary, Call, Expression, Name, Tree

MOST_PIECES = 8

Slip = Callable[[Expression], Iterator[Edit]]


class Known(Protocol):
    """What of a search the order of edits depends on."""

    @property
    def objective(self) -> Objective: ...
    @property
    def tree(self) -> Tree: ...
    @property
    def read(self) -> Callable[[str], Expression]: ...


@dataclass(frozen=True)
class Piece:
    """An expression in which the slip may be: a side of the term, or a name that it uses."""

    expression: Expression
    what: str  # "target", "prediction", "name", "guidance"


def pieces(tree: Tree, term: Span) -> list[Piece]:
    """The target, the prediction, then the names that they use, the nearest first."""
    line = next(
        (x for s in tree.sections for x in s.lines
         if isinstance(x, MatchLine) and _same(x.span, term)),
        None,
    )  # fmt: skip
    if line is None:
        return []
    found = [Piece(line.target, "target"), Piece(line.prediction, "prediction")]
    named: dict[str, list[Piece]] = {}
    whole = unstopped(line.target)
    for section in tree.sections:
        if section.keyword in ("constants", "path", "times"):
            continue
        for bound in section.lines:
            if isinstance(bound, Binding):
                own = isinstance(whole, Name) and whole.id == bound.name
                what = "guidance" if section.keyword == "guidance" else "name"
                piece = Piece(bound.value, "target" if own else what)
                named.setdefault(bound.name, []).append(piece)
    seen: set[str] = set()
    for piece in found:  # grows while it is read
        for node in nodes(piece.expression):
            name = node.id if isinstance(node, Name) else (
                node.function if isinstance(node, Call) else "")  # fmt: skip
            if name in named and name not in seen and len(found) < MOST_PIECES:
                seen.add(name)
                found += named[name]
    return found


def _same(one: Span, other: Span) -> bool:
    same_text = one.source.name == other.source.name and one.source.text == other.source.text
    return same_text and (one.start, one.end) == (other.start, other.end)


def edits(found: list[Piece], known: Known, wrong: bool) -> Iterator[Edit]:
    """Edits in the order of how likely they are; `wrong` says that the identity fails."""
    words = words_of(known, found)
    if not wrong:
        for piece in found:
            yield from slips.stops(piece.expression)
        for piece in found:
            yield from slips.stopped_calls(piece.expression, words.heads)
        for piece in found:
            yield from slips.released(piece.expression)
        for piece in found:
            yield from slips.signs(piece.expression)
        return
    sides = [p for p in found if p.what in ("target", "prediction")]
    names = [p for p in found if p.what == "name"]
    guidance = [p for p in found if p.what == "guidance"]
    yield from _aligned(found, known)
    for piece in sides:
        yield from slips.signs(piece.expression)
    for line in known.tree.lines("map"):
        if isinstance(line, MapLine):
            yield from slips.signs(line.body)
    for piece in names:
        yield from slips.signs(piece.expression)
    rounds: tuple[tuple[Slip, ...], ...] = (
        (
            lambda e: slips.velocities(e, words),
            slips.conditions,
            slips.complements,
            lambda e: slips.derivatives(e, words),
            lambda e: slips.arguments(e, words),
            lambda e: slips.landings(e, words),
            lambda e: slips.names(e, words),
            lambda e: slips.products(e, words),
        ),
        (slips.numbers,),
        (lambda e: slips.more_products(e, words),),
    )
    for makers in rounds:
        for some in (sides, names):
            for make in makers:
                for piece in some:
                    yield from make(piece.expression)
    for piece in guidance:
        yield from slips.signs(piece.expression)
        yield from slips.complements(piece.expression)


def _aligned(found: list[Piece], known: Known) -> Iterator[Edit]:
    """Where the term differs from the derived one."""
    derived = _derived(known)
    for piece in found:
        yield from _direction(piece.expression, known)
        if derived is not None:
            slip = differences(piece.expression, derived[piece.what == "prediction"])
            if slip:
                yield together(slip)


def of_loss(known: Known) -> Iterator[Edit]:
    """Other signs in the loss."""
    for line in known.tree.lines("loss"):
        if isinstance(line, Labelled):
            yield from slips.signs(line.value)


def of_map(known: Known) -> Iterator[Edit]:
    """Edits of the map: another sign, a factor that vanishes where the times are equal."""
    words = words_of(known, [])
    for line in known.tree.lines("map"):
        if not isinstance(line, MapLine):
            continue
        yield from slips.signs(line.body)
        start, end = line.start, line.end
        span = line.body.span
        for one, other in ((end, start), (start, end)):
            for term in terms(line.body):
                calls = [n for n in nodes(term.node) if isinstance(n, Call)]
                if any(c.function in words.heads for c in calls):
                    yield with_factor(term.node, Binary(span, "-", one, other))
        yield from slips.numbers(line.body)
        yield from slips.products(line.body, words)


def _direction(expression: Expression, known: Known) -> Iterator[Edit]:
    """The state may have to move along the velocity that the target uses, a guided one."""
    moving = known.objective.moving
    if moving is None or moving.along is not None or moving.span is None:
        return
    guided = [n for n in _state_names(known) if any(
        isinstance(node, Name) and node.id == n for node in nodes(expression))]  # fmt: skip
    for name in guided:
        end = moving.span.end
        at = Span(moving.span.source, end, end)
        text = f"{moving.time} along {name}"
        label = f"the target follows {name}"
        yield Edit(((at, f" along {name}"),), moving.span, label,
                   f"write `differentiate {text}`")  # fmt: skip


def _derived(known: Known) -> tuple[Expression, Expression] | None:
    """The derived target and its prediction as expressions of the language, where there are."""
    try:
        found = derive(known.objective)
        return known.read(found.target_text), known.read(found.prediction_text)
    except (Undecided, Pole, DiagnosticError):
        return None


def words_of(known: Known, found: list[Piece]) -> Words:
    """Names and factors that the spec has."""
    tree = known.tree
    drawn = {n for line in tree.lines("times") for n in line.names() if not n.startswith("noise")}
    used = [n.id for p in found for n in nodes(p.expression) if isinstance(n, Name)]
    maps = [line for line in tree.lines("map") if isinstance(line, MapLine)]
    ends = [format_expression(e) for line in maps for e in (line.start, line.end)]
    times = [n for n in dict.fromkeys([*ends, *used]) if n in drawn]
    landings = [text for line in maps for text in (
        f"{line.label or 'map'}({', '.join([line.state, *ends[:2]])})", line.state)]  # fmt: skip
    heads: dict[str, None] = {}
    for line in tree.lines("network"):
        if isinstance(line, NetworkLine):
            own = [h for h, kind in line.heads if kind is None and h not in ("scalar", "features")]
            heads.update(dict.fromkeys(own or [line.name]))
        elif isinstance(line, AverageLine):
            heads[line.name] = None
    paths = [x.name for x in tree.lines("path") if isinstance(x, Binding)]
    timed = (*heads, *paths, *(line.label or "map" for line in maps))
    calls = [n for p in found for n in nodes(p.expression) if isinstance(n, Call)]
    states = (c.arguments[0] for c in calls if c.function in heads and c.arguments)
    shown = tuple(dict.fromkeys(
        format_expression(s) for s in states if isinstance(s, Call) and s.function in paths
    ))  # fmt: skip
    factors_ = _map_factors(tree, tuple(heads))
    return Words(tuple(times), ("velocity", *_state_names(known)), tuple(heads), factors_,
                 timed, shown, tuple(landings))  # fmt: skip


def _state_names(known: Known) -> list[str]:
    """States that the spec names under `guidance` and `let`."""
    lines = [*known.tree.lines("guidance"), *known.tree.lines("let")]
    plain = [x.name for x in lines if isinstance(x, Binding) and x.parameters is None]
    definitions, kind = known.objective.definitions, known.objective.kind
    return [n for n in dict.fromkeys(plain) if n in definitions
            and kind(definitions[n]).value == "state"]  # fmt: skip


def _map_factors(tree: Tree, heads: tuple[str, ...]) -> tuple[Expression, ...]:
    """What multiplies the network in the map: `t - r`, `w`; and the constants there are."""
    found: dict[str, Expression] = {}
    for body, _ in _products_of_map(tree, heads):
        for factor in factors(body):
            if not (isinstance(factor.node, Call) and factor.node.function in heads):
                found[format_expression(factor.node)] = factor.node
    for keyword in ("constants", "conditions", "curriculum"):
        for line in tree.lines(keyword):
            if isinstance(line, Binding | DrawLine):
                for name in line.names():
                    if name != "label":
                        found[name] = Name(line.span, name)
    return tuple(found.values())


def _products_of_map(tree: Tree, heads: tuple[str, ...]) -> Iterator[tuple[Expression, MapLine]]:
    """The term of each map that holds the network."""
    for line in tree.lines("map"):
        if isinstance(line, MapLine):
            for term in terms(line.body):
                if any(isinstance(n, Call) and n.function in heads for n in nodes(term.node)):
                    yield term.node, line


def anchors(known: Known) -> Iterator[Edit]:
    """Terms that would tie the network to the data on the diagonal of its map."""
    words, tree = words_of(known, []), known.tree
    source = tree.source
    end = Span(source, len(source.text), len(source.text))
    for body, line in _products_of_map(tree, words.heads):
        start, finish = format_expression(line.start), format_expression(line.end)
        if not (start.isidentifier() and finish.isidentifier()):
            continue
        scale, call = "", ""
        for factor in factors(body):
            names = {n.id for n in nodes(factor.node) if isinstance(n, Name)}
            if isinstance(factor.node, Call) and factor.node.function in words.heads:
                call = _diagonal(factor.node, start, finish)
            elif not factor.below and not names & {start, finish}:
                scale += f"{bracketed(factor.node)} * "
        for sign in ("", "-") if call else ():
            text = f"match {sign}{scale}{call} to velocity"
            yield Edit(((end, f"\nanchor {text}\n"),), line.span, "", f"add `anchor {text}`")


def _diagonal(call: Call, start: str, end: str) -> str:
    """`u(z, t, t)` for `u(z, t, r)`; a difference of the two times becomes 0."""
    given = []
    for argument in call.arguments:
        text = format_expression(argument)
        both = {n.id for n in nodes(argument) if isinstance(n, Name)} >= {start, end}
        given.append("0" if both else start if text == end else text)
    return f"{call.function}({', '.join(given)})"
