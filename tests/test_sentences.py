"""A written sentence for every state of the parser, each reached by a real text."""

from __future__ import annotations

import heapq
import re
from functools import cache

import pytest
from lark.parsers.lalr_analysis import Shift

from flowdsl import pipeline
from flowdsl.diagnostics import Diagnostic, DiagnosticError
from flowdsl.syntax.layout import read_source
from flowdsl.syntax.states import States

#: Whole specs, again and again: line coverage is measured by the tests of each part.
pytestmark = pytest.mark.untraced

#: How each terminal is written in a text that visits states.
TEXTS = {
    "NAME": "x", "NUMBER": "1", "STRING": '"A title"', "ARXIV": "arXiv:2505.13447",
    "PATH": "../base.flow", "DERIVATIVE": "d/dt[", "COMPARE": "<", "FROZEN": "frozen",
    "_LPAR": "(", "_RPAR": ")", "_RSQB": "]", "_COMMA": ",", "_BAR": "|", "_EQUAL": "=",
    "_TILDE": "~", "_COLON": ":", "_ARROW": "->", "PLUS": "+", "MINUS": "-", "STAR": "*",
    "SLASH": "/", "CARET": "^", "_SEPARATOR": ";", "AND": "and", "OR": "or", "NOT": "not",
    "MODE": "at", "_UPTO": "up to",
}  # fmt: skip

#: Names of terminals and rules of the grammar, which no message may show.
RAW = re.compile(r"_[A-Z]{2,}|\$END|__|\b(?:RPAR|LPAR|RSQB|SEPARATOR|DERIVATIVE|CARET|COMPARE)\b")


def terminal(symbol: str) -> bool:
    return symbol.isupper() or symbol == "$END" or (symbol[0] == "_" and symbol[1:].isupper())


def written(symbol: str) -> str:
    return TEXTS.get(symbol, symbol.strip("_").lower())


@cache
def states() -> States:
    return pipeline.parser().states


def run(start: int, symbols: tuple[str, ...]) -> tuple[list[int], list[int], bool]:
    """The states on the stack after these terminals, all states that were visited, and success."""
    table = states().table
    stack, visited = [start], [start]
    for symbol in symbols:
        while True:
            if symbol not in table[stack[-1]]:
                return stack, visited, False
            action, to = table[stack[-1]][symbol]
            if action is Shift:
                stack.append(to)
                visited.append(to)
                break
            del stack[len(stack) - len(to.expansion) :]
            stack.append(table[stack[-1]][to.origin.name][1])
            visited.append(stack[-1])
    return stack, visited, True


@cache
def shortest() -> dict[str, tuple[str, ...]]:
    """The fewest terminals that make each symbol of the grammar."""
    found: dict[str, tuple[str, ...]] = {}
    rules = states()._parser.parser.parser_conf.rules  # type: ignore[attr-defined]
    changed = True
    while changed:
        changed = False
        for rule in rules:
            parts = [(s.name,) if s.is_term else found.get(s.name) for s in rule.expansion]
            if any(part is None for part in parts):
                continue
            made = tuple(t for part in parts if part is not None for t in part)
            name = str(rule.origin.name)
            if name not in found or len(made) < len(found[name]):
                found[name] = made
                changed = True
    return found


@cache
def ways() -> dict[int, tuple[str, tuple[str, ...]]]:
    """For every state, terminals that lead to it, and the section they begin in.

    The shortest way through the graph of states, its symbols written out. A state that lies behind
    a whole rule is visited when the next terminal comes: one is found that can follow.
    """
    best: dict[int, tuple[str, tuple[str, ...]]] = {}
    queue = [(0, name, start, ()) for name, start in states().starts.items()]
    heapq.heapify(queue)  # type: ignore[arg-type]
    while queue:
        _, name, number, symbols = heapq.heappop(queue)
        if number in best:
            continue
        best[number] = (name, symbols)
        for symbol, to in states().shifts(number).items():
            more = (*symbols, *((symbol,) if terminal(symbol) else shortest()[symbol]))
            heapq.heappush(queue, (len(more), name, to, more))
    found = {}
    for number, (name, symbols) in best.items():
        tried = [(*symbols, *after) for after in _followers(number)]
        visits = [(run(states().starts[name], t), t) for t in tried]
        fitting = [(fits, t) for (_, visited, fits), t in visits if number in visited]
        if fitting:
            found[number] = (name, max(fitting, key=lambda pair: (pair[0], -len(pair[1])))[1])
    return found


def _followers(number: int) -> list[tuple[str, ...]]:
    return [(), ("$END",), *((t,) for t in states().table[number] if terminal(t))]


def message(text: str) -> Diagnostic:
    with pytest.raises(DiagnosticError) as caught:
        pipeline.parse(read_source(text, "my.flow"))
    return caught.value.diagnostics[0]


def expected_line(expected: str, keyword: str) -> bool:
    return expected.endswith(pipeline.parser().sentences.form(keyword))


def test_every_state_has_a_sentence_without_raw_names() -> None:
    sentences = pipeline.parser().sentences
    assert len(states().places) == len(states().table)
    for number in states().places:
        for keyword in pipeline.parser().keywords:
            shown = sentences.expected((number,), keyword)
            assert shown
            assert not RAW.search(shown), shown


def test_every_state_is_visited_by_a_text() -> None:
    missing = set(states().table) - set(ways())
    assert not missing, [states().places[n] for n in missing]


def test_something_wrong_in_any_state_is_told_by_its_sentence() -> None:
    """Each state: a text that visits it, then something that cannot follow.

    The parser stops where it has shifted a word, or a little later; the sentence is that of the
    state in which it stands. Every state that is entered by a word is stopped in.
    """
    sentences = pipeline.parser().sentences
    told = set()
    for name, symbols in ways().values():
        keyword = "objective" if name == "header" else name.removeprefix("section_")
        stack, _, fits = run(states().starts[name], symbols)
        if not fits or symbols[-1:] == ("$END",):
            symbols = symbols[:-1]
            stack, _, fits = run(states().starts[name], symbols)
        assert fits
        begun = "" if keyword == "objective" else "objective x\n"
        closing = ""
        for symbol in symbols:
            if symbol in ("_LPAR", "DERIVATIVE"):
                closing = (")" if symbol == "_LPAR" else "]") + closing
            elif symbol in ("_RPAR", "_RSQB"):
                closing = closing[1:]
        text = f"{begun}{keyword} {' '.join(map(written, symbols))} @{closing}"
        shown = message(text)
        assert shown.message.startswith("`@` cannot stand here in"), (text, shown)
        facts = dict(shown.facts)
        assert facts["expected"] == sentences.expected(tuple(stack), keyword), text
        assert "a line reads" in facts or expected_line(facts["expected"], keyword)
        told.add(stack[-1])
    table = states().table
    entered = {to for n in table for s, to in states().shifts(n).items() if terminal(s)}
    assert entered <= told | {n for n in table if not table[n]}
    assert len(told) > 280


def test_sentences_speak_of_what_is_still_open() -> None:
    def expected(text: str) -> str:
        return dict(message(f"objective x\n{text}").facts)["expected"]

    assert expected("target match u(z, t) @") == "an operator or `to` and the target"
    assert expected("target match d/dt[u(z, t) @]") == (
        "an operator, or `along` and a direction, or `]`"
    )
    assert expected("let a = u(z, t | label = null @)") == (
        "`(` to call it, an operator, or `,` and another `name = value`, or `)`"
    )
    assert expected("players a: u @") == "`,` and another network, or `on` and the terms"
    assert expected("times t, @") == "another name"
