"""Headings, and what the names of a spec mean: filled by the clauses, asked by the resolver.

Definitions may stand in any order. A name's lines are folded when it is first asked for: the first
line gives its value, each later one replaces the value on its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flowdsl.diagnostics import Span, fail
from flowdsl.spec.core import Expr, Kind
from flowdsl.spec.objective import (
    Claim,
    Network,
    Player,
    Stage,
)
from flowdsl.syntax.grammar import SectionSyntax
from flowdsl.syntax.lines import Binding, DrawLine, Labelled
from flowdsl.syntax.tree import Expression, Line, Tree

#: Under `extends`: lines merge name by name, the section is replaced whole, or it is never
# inherited.
Merge = Literal["names", "whole", "never"]

#: Enters the lines of one section into the scope. Order does not matter: names are looked up later.
Enter = Callable[["Scope", Sequence[Line]], None]


@dataclass(frozen=True)
class Clause:
    """One section keyword. `summary` is a sentence for `flowdsl explain` and the documentation."""

    syntax: SectionSyntax
    merge: Merge
    enter: Enter
    summary: str
    example: str
    place: int  # where the heading stands in a printed spec
    draws: Kind = Kind.SCALAR  # what a name drawn under this heading is, unless its law says more
    transparent: bool = False  # whether `d/dX[…]` looks into names defined under this heading
    group: bool = False  # whether the heading groups terms

    @property
    def keyword(self) -> str:
        return self.syntax.keyword


@dataclass(frozen=True)
class Entry:
    """One line that says something about a name, and the heading it stands under."""

    line: Binding | DrawLine
    clause: Clause


@dataclass(frozen=True)
class MapLine:
    """What the clause `map` enters: the pieces of `NAME: z(start) -> z(end) = body`."""

    name: str
    state: str
    start: Expression
    end: Expression
    body: Expression
    span: Span


@dataclass(frozen=True)
class TermLine:
    """What a group of terms enters: `label: match prediction to target on rows`, or `minimise`."""

    name: str
    group: str
    prediction: Expression | None  # None: the target is derived from map and differentiate
    target: Expression | None
    rows: Expression | None
    span: Span


@dataclass
class Scope:
    """The tables of one spec while it is being resolved."""

    tree: Tree
    clauses: Sequence[Clause]
    functions: Mapping[str, Binding]  # of the prelude, by name
    parse_rule: Callable[[str], Expression]
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)  # head -> network
    argument_kinds: dict[tuple[str, int], Kind] = field(default_factory=dict)
    path_lines: dict[str, Binding] = field(default_factory=dict)
    map_lines: dict[str, MapLine] = field(default_factory=dict)
    moving_line: tuple[str, Expression | None, Span] | None = None
    term_lines: list[TermLine] = field(default_factory=list)
    loss_lines: list[Labelled] = field(default_factory=list)
    players: list[Player] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    claim_lines: list[Callable[[Resolve], Claim]] = field(default_factory=list)
    sampler_lines: list[Binding] = field(default_factory=list)
    decays: dict[str, Expression] = field(default_factory=dict)

    def bind(self, line: Binding | DrawLine, clause: Clause) -> None:
        """Enter a line under each name it binds."""
        for name in line.names():
            self.entries.setdefault(name, []).append(Entry(line, clause))

    def declare_network(self, network: Network) -> None:
        """Enter a network and its heads; a head is called by its own name."""
        for taken in (network.name, *(head for head, _ in network.heads)):
            if taken in self.heads or taken in self.networks:
                raise fail(
                    "resolve",
                    f"two networks or heads are called `{taken}`",
                    network.span,
                    hint="a head is called by its name alone, so names must differ",
                )
        self.networks[network.name] = network
        for head, _ in network.heads:
            self.heads[head] = network.name

    def is_constant(self, name: str) -> bool:
        """Whether a name is bound under `constants`."""
        return any(entry.clause.keyword == "constants" for entry in self.entries.get(name, ()))

    def group_clauses(self) -> tuple[Clause, ...]:
        return tuple(clause for clause in self.clauses if clause.group)

    def lines(self, keyword: str) -> tuple[Line, ...]:
        return self.tree.lines(keyword)

    @property
    def known_names(self) -> set[str]:
        return {*self.entries, *self.heads, *self.networks, *self.path_lines, *self.map_lines}


#: Resolves an expression in the outermost scope; handed to clauses that need it late.
Resolve = Callable[[Expression], Expr]
