"""What each state of the parser has read: its places in the rules of the grammar.

The parser's table holds numbers only. The same analysis of the same grammar is made once more, with
the rules in it, and walked beside the table: where both go the same way they are in the same state.
Made when the first parse error is explained, in about a tenth of a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lark import Lark
from lark.parsers.lalr_analysis import LALR_Analyzer, Shift


@dataclass(frozen=True)
class Place:
    """Inside a rule, after the symbols `read`. The family of a rule is its name, or its alias."""

    family: str
    read: tuple[str, ...]


class States:
    """The states of a parser, by number."""

    def __init__(self, parser: Lark) -> None:
        self._parser = parser

    @property
    def table(self) -> Mapping[int, Mapping[str, Any]]:
        """For each state, what each symbol does there: shift to a state, or reduce by a rule."""
        found: Mapping[int, Mapping[str, Any]] = self._tables.states
        return found

    @property
    def starts(self) -> Mapping[str, int]:
        """The first state of each section."""
        found: Mapping[str, int] = self._tables.start_states
        return found

    @property
    def _tables(self) -> Any:
        return self._parser.parser.parser._parse_table

    @cached_property
    def places(self) -> Mapping[int, tuple[Place, ...]]:
        """The places of each state that lie after something was read, without repetition."""
        analysis = LALR_Analyzer(self._parser.parser.parser_conf, debug=True)
        analysis.compute_lalr()  # type: ignore[no-untyped-call]
        rules: Any = analysis.parse_table
        found: dict[int, tuple[Place, ...]] = {}
        todo: list[tuple[int, Any]] = [
            (start, rules.start_states[name]) for name, start in self.starts.items()
        ]
        while todo:
            number, items = todo.pop()
            if number in found:
                continue
            found[number] = _places(items)
            for symbol, (action, to) in self.table[number].items():
                if action is Shift:
                    todo.append((to, rules.states[items][symbol][1]))
        return found

    def shifts(self, number: int) -> dict[str, int]:
        """Where each symbol leads from a state."""
        return {s: to for s, (action, to) in self.table[number].items() if action is Shift}


def _places(items: Any) -> tuple[Place, ...]:
    found: dict[Place, None] = {}
    for item in items:
        name, alias = str(item.rule.origin.name), item.rule.alias
        if item.index == 0 and not name.startswith("$root_"):
            continue
        family = alias if name == "atom" and alias else _family(name)
        read = tuple(_family(s.name) for s in item.rule.expansion[: item.index])
        found[Place(family, read)] = None
    return tuple(sorted(found, key=lambda place: (place.family, place.read)))


def _family(name: str) -> str:
    """`arguments` for `__arguments_star_1`; all sections are one family."""
    name = re.sub(r"^__(\w+)_(?:star|plus)_\d+$", r"\1", name)
    return "section" if name.startswith("section_") else name
