"""`extends`: one tree laid over another, before anything is resolved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from flowdsl.diagnostics import fail
from flowdsl.spec.scope import Clause
from flowdsl.syntax.tree import Line, Section, Tree

MAX_ANCESTORS = 16


def merge_ancestors(
    tree: Tree, find: Callable[[str, Tree], Tree], clauses: Sequence[Clause]
) -> Tree:
    """The tree with everything it inherits. `find` gives the tree that a name refers to."""
    chain = [tree]
    while chain[-1].extends is not None:
        last = chain[-1]
        assert last.extends is not None
        base = find(last.extends, last)
        if any(base.source == seen.source for seen in chain) or len(chain) > MAX_ANCESTORS:
            names = " -> ".join(t.name for t in [*chain, base])
            raise fail("resolve", f"`extends` goes round in a circle: {names}", last.extends_span)
        chain.append(base)
    merged = chain.pop()
    while chain:
        merged = _lay_over(merged, chain.pop(), clauses)
    return merged


def _lay_over(base: Tree, tree: Tree, clauses: Sequence[Clause]) -> Tree:
    """Lines of one name replace all lines of that name; stating headings replace whole."""
    by_name = {clause.keyword for clause in clauses if clause.merge == "names"}
    bound = {n for s in tree.sections if s.keyword in by_name for x in s.lines for n in x.names()}
    sections = []
    for clause in clauses:
        own = [s for s in tree.sections if s.keyword == clause.keyword]
        inherited = [s for s in base.sections if s.keyword == clause.keyword]
        lines: list[Line] = []
        if any(not s.lines for s in own):
            inherited = []  # a heading alone on its line drops what would be inherited under it
        if clause.merge == "names":
            kept = (x for s in inherited for x in s.lines)
            lines = [x for x in kept if not bound.intersection(x.names())]
        elif clause.merge == "whole" and not own:
            lines = [x for s in inherited for x in s.lines]
        lines += [x for s in own for x in s.lines]
        if lines:
            span = (own or inherited)[0].span
            sections.append(Section(clause.keyword, tuple(lines), span))
    return replace(tree, sections=tuple(sections))
