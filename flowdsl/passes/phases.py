"""Phases of training: what is decided once per step is decided before anything runs.

A curriculum that rests at a value for a stretch (`snap`, `clip`, `min`, `max`), and conditions on
curricula, split the loss into straight graphs, one per phase: at alpha = 0 the derivative, at alpha
= 1 neither derivative nor further step. Only splits that save a network pass are made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from flowdsl.ir.graph import Builder, Graph, Node, rewrite
from flowdsl.passes.common import common
from flowdsl.passes.decide import decide
from flowdsl.passes.fold import fold, simplify
from flowdsl.passes.program import Phase
from flowdsl.prelude.text import show
from flowdsl.spec.core import COMPARISONS, Level

MOST_PHASES = 8
Given = tuple[tuple[int, Fraction | bool], ...]


@dataclass(frozen=True)
class _Split:
    """A node of the common graph and the values at which it deserves a phase of its own."""

    at: int
    values: tuple[Fraction | bool, ...]


def phases(graph: Graph) -> tuple[Phase, ...]:
    """The phases of a graph; the last one is the rest, with nothing given."""
    found: list[Given] = [()]
    for split in _splits(graph):
        more = [(*given, (split.at, value)) for value in split.values for given in found]
        if len(more) + len(found) > MOST_PHASES:
            break
        found = [*more, *found]
    made: list[Phase] = []
    for given in found:
        excluded = (
            tuple((at, value) for other in found if len(other) == 1 for at, value in other)
            if not given
            else ()
        )
        made.append(Phase(_name(graph, given), given, specialise(graph, given, excluded)))
    return tuple(made)


def _splits(graph: Graph) -> list[_Split]:
    base = _passes(graph, ())
    splits: dict[int, list[Fraction | bool]] = {}
    for at, values in list(_resting(graph).items())[:MOST_PHASES]:
        kept = [v for v in values if _passes(graph, ((at, v),)) < base]
        if True in values and any(isinstance(v, bool) for v in kept):
            kept = [True]  # the rest is where it is false
        if kept:
            splits[at] = kept
    return [_Split(at, tuple(values)) for at, values in splits.items()]


def _passes(graph: Graph, given: Given) -> int:
    return len(common(specialise(graph, given)).calls())


def _resting(graph: Graph) -> dict[int, list[Fraction | bool]]:
    """The plain values of a step that may rest at a value, or decide."""
    found: dict[int, dict[Fraction | bool, None]] = {}
    for at in graph.used:
        node = graph[at]
        if node.level is not Level.STEP or not graph.is_python(at):
            continue
        numbers = [graph[i].value for i in node.inputs if graph[i].op == "number"]
        match node.op:
            case "snap":
                found.setdefault(at, {}).update(dict.fromkeys((Fraction(0), Fraction(1))))
            case "clip" | "min" | "max":
                found.setdefault(at, {}).update(dict.fromkeys(numbers))
            case "eq" | "ne" if numbers:
                other = next(i for i in node.inputs if graph[i].op != "number")
                found.setdefault(other, {}).update(dict.fromkeys(numbers))
            case _ if node.op in COMPARISONS:
                found.setdefault(at, {}).update(dict.fromkeys((True, False)))
    return {at: list(values) for at, values in found.items()}


def specialise(graph: Graph, given: Given, excluded: Given = ()) -> Graph:
    """The graph where each given node has its value, and none of the excluded ones has."""
    values = dict(given)

    def rule(builder: Builder, node: Node, old: int) -> int:
        if old in values:
            value = values[old]
            if isinstance(value, bool):
                return builder.apply("true" if value else "false")
            return builder.number(value)
        if node.op in ("eq", "ne"):
            for at, value in excluded:
                a, b = graph[old].inputs
                other = b if a == at else a if b == at else None
                if (
                    other is not None
                    and graph[other].op == "number"
                    and graph[other].value == value
                ):
                    return builder.apply("false" if node.op == "eq" else "true")
        if old in {at for at, value in excluded if isinstance(value, bool)}:
            return builder.apply("false" if (old, True) in excluded else "true")
        return simplify(builder, node)

    return decide(fold(rewrite(graph, rule)))


def _name(graph: Graph, given: Given) -> str:
    """A name for a phase, fit for a function: `alpha_is_0`, `progress_above_0_5`."""
    if not given:
        return "otherwise"
    words = []
    for at, value in given:
        node = graph[at]
        if isinstance(value, bool):
            sides = [_word(graph, i) for i in node.inputs]
            words.append(f"{sides[0]}_{_RELATIONS[node.op]}_{sides[1]}")
        else:
            words.append(f"{_word(graph, at)}_is_{show(value)}")
    spelled = "_and_".join(words).replace("-", "minus_").replace(" / ", "_over_")
    return re.sub(r"\W", "_", spelled)


_RELATIONS = {"lt": "below", "le": "up_to", "gt": "above", "ge": "from", "eq": "is", "ne": "is_not"}


def _word(graph: Graph, at: int) -> str:
    node = graph[at]
    if node.op == "number":
        return show(node.value)
    return node.name or (node.detail if isinstance(node.detail, str) else "value")
