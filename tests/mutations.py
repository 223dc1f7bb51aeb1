"""Wrong objectives, made from right ones: each mutant changes one thing in a spec's syntax tree.

What is changed stands in `mutation_operators`. Mutants are printed and read again, so that the
printer and the parser have a part in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from flowdsl.clauses.map import MapLine
from flowdsl.clauses.network import AverageLine, NetworkLine
from flowdsl.diagnostics import Source
from flowdsl.pipeline import merged, parse
from flowdsl.sources import find_source, shipped_names
from flowdsl.syntax.format import format_tree
from flowdsl.syntax.layout import read_source
from flowdsl.syntax.lines import Binding
from flowdsl.syntax.tree import Line, Section, Tree
from tests.mutation_operators import World, changed_lines

#: Sections whose lines are mutated.
MUTATED = ("path", "rows", "times", "conditions", "map", "guidance", "let", "differentiate",
           "target", "anchor", "correction", "critic", "loss")  # fmt: skip
DRAFTS = Path(__file__).parent / "good"  #: specs that are not shipped


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


def specs() -> tuple[str, ...]:
    """The specs that are mutated: all that are shipped, and the drafts of others."""
    drafts = sorted(p.stem for p in DRAFTS.glob("*.flow") if p.stem not in shipped_names())
    return (*shipped_names(), *drafts)


def source_of(spec: str) -> Source:
    if spec in shipped_names():
        return find_source(spec)
    path = DRAFTS / f"{spec}.flow"
    return read_source(path.read_bytes(), path.name)


def base_tree(spec: str) -> Tree:
    """A spec with what it inherits written out."""
    return bare(merged(parse(source_of(spec))))


def bare(tree: Tree) -> Tree:
    """Without claims, which would kill by text, and without stages, which name other specs."""
    kept = tuple(s for s in tree.sections if s.keyword not in ("claims", "stages"))
    return replace(tree, extends=None, sections=kept)


def mutants(spec: str) -> list[Mutant]:
    """Every mutant of a spec, each text once."""
    return mutants_of(spec, base_tree(spec))


def mutants_of(spec: str, tree: Tree) -> list[Mutant]:
    world = _world(tree)
    found: dict[str, Mutant] = {format_tree(tree): Mutant(spec, "", "", "", "")}
    for operator, keyword, change, mutated in _changes(tree, world):
        text = format_tree(mutated)
        found.setdefault(text, Mutant(spec, operator, keyword, change, text))
    return list(found.values())[1:]


def _changes(tree: Tree, world: World) -> Iterator[tuple[str, str, str, Tree]]:
    for s, section in enumerate(tree.sections):
        if section.keyword not in MUTATED:
            continue
        if section.keyword in ("anchor", "correction") and len(section.lines) > 1:
            sections = (*tree.sections[:s], *tree.sections[s + 1 :])
            change = f"{section.keyword} …  ->  (left out)"
            yield "left out", section.keyword, change, replace(tree, sections=sections)
        for n, line in enumerate(section.lines):
            for operator, other in changed_lines(section.keyword, line, world):
                mutated = _with_line(tree, s, n, other)
                if mutated is None:
                    continue
                after = " ".join(other.parts()) if other is not None else "(left out)"
                yield operator, section.keyword, f"{' '.join(line.parts())}  ->  {after}", mutated


def _world(tree: Tree) -> World:
    times: dict[str, None] = {}
    for line in tree.lines("times"):
        times.update(dict.fromkeys(n for n in line.names() if not n.endswith("'")))
    networks: dict[str, int] = {}
    conditions: dict[str, tuple[str, ...]] = {}
    lines = tree.lines("network")
    for line in (x for x in lines if isinstance(x, NetworkLine)):
        for name in line.names():
            networks[name] = len(line.arguments)
            conditions[name] = tuple(line.conditions)
    for line in lines:  # an average may stand above the network that it averages
        if isinstance(line, AverageLine):
            networks[line.name] = networks[line.average_of]
            conditions[line.name] = conditions[line.average_of]
    maps = tuple((m.label or "map") for m in tree.lines("map") if isinstance(m, MapLine))
    states = tuple(x.name for x in tree.lines("path") if isinstance(x, Binding))
    return World(tuple(times), networks, maps, conditions, states)


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
