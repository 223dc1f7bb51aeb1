"""`network`: the roles that networks play, what they are shown and what they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowdsl.diagnostics import Span, did_you_mean, fail
from flowdsl.spec.core import Kind
from flowdsl.spec.objective import Network
from flowdsl.spec.scope import Clause, Scope
from flowdsl.syntax.format import format_expression
from flowdsl.syntax.grammar import END, SectionSyntax, Wanted
from flowdsl.syntax.tree import Expression, Line

_KINDS = {"state": Kind.STATE, "scalar": Kind.SCALAR, "features": Kind.FEATURES}


@dataclass(frozen=True)
class NetworkLine(Line):
    """`u(z, t, r | label) -> heads frozen`."""

    name: str
    arguments: tuple[str, ...]
    conditions: tuple[str, ...]
    heads: tuple[tuple[str, str | None], ...]  # name and kind, as written
    frozen: bool

    def parts(self) -> tuple[str, ...]:
        bar = f" | {', '.join(self.conditions)}" if self.conditions else ""
        text = f"{self.name}({', '.join(self.arguments)}{bar})"
        if self.heads:
            shown = (name if kind is None else f"{name} {kind}" for name, kind in self.heads)
            text += f" -> {', '.join(shown)}"
        return (text + (" frozen" if self.frozen else ""),)

    def names(self) -> tuple[str, ...]:
        return (self.name, *(name for name, _ in self.heads if name not in _KINDS))


@dataclass(frozen=True)
class AverageLine(Line):
    """`slow = ema(F, decay = 0.99)`."""

    name: str
    average_of: str
    decay: Expression

    def parts(self) -> tuple[str, ...]:
        decay = format_expression(self.decay)
        return (f"{self.name} = ema({self.average_of}, decay = {decay})",)

    def names(self) -> tuple[str, ...]:
        return (self.name,)


def _network(span: Span, children: list[object]) -> Line:
    name, arguments, conditions, heads, frozen = children
    return NetworkLine(
        span,
        str(name),
        tuple(str(a) for a in _list(arguments)),
        tuple(str(c) for c in _list(conditions)),
        tuple((str(h[0]), None if h[1] is None else str(h[1])) for h in map(_list, _list(heads))),
        frozen is not None,
    )


def _list(found: object) -> list[object]:
    return list(found) if isinstance(found, list) else []


def _average(span: Span, children: list[object]) -> Line:
    name, function, average_of, keyword, decay = children
    if str(function) != "ema" or str(keyword) != "decay":
        raise fail(
            "syntax",
            "a network is declared by its arguments, or as an average of another",
            span,
            hint="write `slow = ema(F, decay = 0.99)`",
        )
    assert isinstance(decay, Expression)
    return AverageLine(span, str(name), str(average_of), decay)


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    for line in lines:
        if isinstance(line, NetworkLine):
            scope.declare_network(_declared(scope, line))
    for line in lines:
        if isinstance(line, AverageLine):
            source = scope.networks.get(line.average_of)
            if source is None:
                raise fail(
                    "resolve",
                    f"there is no network `{line.average_of}` to average",
                    line.span,
                    hint=did_you_mean(line.average_of, scope.networks),
                )
            single = len(source.heads) == 1
            heads = (
                ((line.name, source.heads[0][1]),)
                if single
                else tuple((f"{line.name}.{head}", kind) for head, kind in source.heads)
            )
            scope.declare_network(
                replace(
                    source,
                    name=line.name,
                    heads=heads,
                    frozen=False,
                    average_of=source.name,
                    span=line.span,
                )
            )
            scope.decays[line.name] = line.decay


def _declared(scope: Scope, line: NetworkLine) -> Network:
    seen: set[str] = set()
    for name in (*line.arguments, *line.conditions):
        if name in seen:
            raise fail("resolve", f"`{line.name}` names `{name}` twice", line.span)
        seen.add(name)
    heads = line.heads or ((line.name, "state"),)
    if len(heads) == 1 and heads[0][0] in _KINDS and heads[0][1] is None:
        heads = ((line.name, heads[0][0]),)
    kinds = []
    for name, kind in heads:
        if kind is not None and kind not in _KINDS:
            raise fail(
                "resolve",
                f"a head is a state, a scalar or features, not `{kind}`",
                line.span,
                hint=did_you_mean(kind, _KINDS),
            )
        kinds.append((name, _KINDS[kind or "state"]))
    arguments = tuple((a, _argument_kind(scope, a, i)) for i, a in enumerate(line.arguments))
    return Network(line.name, arguments, line.conditions, tuple(kinds), line.frozen, span=line.span)


def _argument_kind(scope: Scope, name: str, position: int) -> Kind:
    """What a name suggests before any call has shown what it is."""
    if name == "features":
        return Kind.FEATURES
    if name in scope.entries or name in ("t", "r", "s"):
        return Kind.TIME
    return Kind.STATE if position == 0 else Kind.TIME


_RULE = """NAME _LPAR names [_BAR names] _RPAR [_ARROW heads] [FROZEN] -> network
    | NAME _EQUAL NAME _LPAR NAME _COMMA NAME _EQUAL expression _RPAR -> average"""
_EXTRA = """
heads: head (_COMMA head)*
head: NAME [NAME]
FROZEN: "frozen"
"""

_ARGUMENTS = "`,` and another argument, `|` and what else the network sees, or `)`"
_CONDITIONS = "`,` and another condition, or `)`"
_WANTED = {
    "NAME": Wanted("`(` and the network's arguments, or `=` and an average of another"),
    "_LPAR": Wanted("an argument: the state first, as in `u(z, t, r)`", _ARGUMENTS),
    "_LPAR names": Wanted(_ARGUMENTS),
    "_BAR": Wanted("a condition that the network sees, such as `label`", _CONDITIONS),
    "_BAR names": Wanted(_CONDITIONS),
    "_RPAR": Wanted("`->` and the network's outputs, `frozen`, or " + END),
    "_ARROW": Wanted("an output: its name, `scalar` or `features`"),
    "heads": Wanted("`,` and another output, `frozen`, or " + END),
    "FROZEN": Wanted(END),
    "heads: head": Wanted("`,` and another output, `frozen`, or " + END),
    "heads: _COMMA": Wanted("another output"),
    "heads: heads": Wanted("`,` and another output, `frozen`, or " + END),
    "head: NAME": Wanted("what kind of output it is (`scalar`, `features`), `,`, or " + END),
    "head: NAME NAME": Wanted("`,` and another output, `frozen`, or " + END),
    "_EQUAL": Wanted("`ema(NETWORK, decay = …)`"),
    "_EQUAL NAME": Wanted("`(` and the network that is averaged"),
    "_EQUAL NAME _LPAR": Wanted("the network that is averaged"),
    "_EQUAL NAME _LPAR NAME": Wanted("`,` and `decay = …`"),
    "NAME _COMMA": Wanted("`decay = …`"),
    "_COMMA NAME": Wanted("`=` and the decay, as in `decay = 0.99`"),
    "_COMMA NAME _EQUAL": Wanted("the decay, a number such as `0.99`", "`)`"),
    "expression _RPAR": Wanted(END),
}

CLAUSES = (
    Clause(
        SectionSyntax(
            "network",
            _RULE,
            "u(z, t, r | label), net(z, h) -> u, v, phi(t) -> scalar, teacher(z, t) frozen, "
            "or slow = ema(u, decay = 0.99)",
            {"network": _network, "average": _average},
            _EXTRA,
            _WANTED,
        ),
        "names",
        _enter,
        "The networks: arguments in calling order, conditions after the bar, heads.",
        "u(z, t, r | label)",
        5,
    ),
)
