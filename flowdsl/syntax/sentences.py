"""Parse errors in words: what was found, what belongs there, how such a line reads, one hint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowdsl.diagnostics import Diagnostic, Source, Span
from flowdsl.syntax.grammar import END, END_ON, SectionSyntax, Wanted
from flowdsl.syntax.states import Place, States
from flowdsl.syntax.wanted import OPERANDS, SHARED

HEADER_FORM = 'objective NAME [extends OTHER] ["title"] [arXiv:NUMBER]'


class Sentences:
    """The sentence of every state of a parser."""

    def __init__(self, states: States, sections: Mapping[str, SectionSyntax]) -> None:
        self._states = states
        self._forms = {"objective": HEADER_FORM, **{k: s.form for k, s in sections.items()}}
        self._wanted = dict(SHARED)
        for keyword, section in sections.items():
            for place, wanted in section.wanted.items():
                rule, colon, read = place.rpartition(": ")
                self._wanted[rule if colon else f"line_{keyword}", read] = wanted

    def form(self, keyword: str) -> str:
        """What a line of this section looks like."""
        return self._forms[keyword]

    def expected(self, stack: Sequence[int], keyword: str) -> str:
        """What belongs where the parser stands: its last states, the innermost at the end."""
        places = self._states.places[stack[-1]]
        names = [p for p in places if p.read[-1:] == ("NAME",) and p.family in ("name", "call")]
        operand = bool(names) or any(_is_operand(place) for place in places)
        others = [p for p in places if p not in names and not _is_operand(p)]
        found = [self.at(place, keyword).what for place in others]
        if names:
            found.append("`(` to call it")
        if operand:
            found += ["an operator", self._then(_below(stack, places), keyword) or END_ON]
        elif others and all(p.family in ("names", "parameters") for p in others):
            found = [self._then(stack[:-1], keyword) or found[0]]
        return _joined(list(dict.fromkeys(found)))

    def _then(self, stack: Sequence[int], keyword: str) -> str:
        """How it goes on after something whole: asked of the innermost thing still open."""
        for number in reversed(stack):
            for place in self._states.places[number]:
                if not _is_operand(place) and place.family != "name":
                    then = self.at(place, keyword).then
                    if then:
                        return then
        return ""

    def at(self, place: Place, keyword: str) -> Wanted:
        """The words of a place: those of the longest run of symbols read last.

        Raises `KeyError` for a place that nobody has written words for.
        """
        for k in range(len(place.read) + 1):
            wanted = self._wanted.get((place.family, " ".join(place.read[k:])))
            if wanted is not None:
                return wanted
        if place.family.startswith("$root_") or place.read[-1:] == ("_SEPARATOR",):
            return Wanted(f"a line: {self._forms[keyword]}")
        if place.read[-1] in ("binding", "draw", "labelled", "section") or place.read[
            -1
        ].startswith("line_"):
            return Wanted(END)
        raise KeyError(place)


def _below(stack: Sequence[int], places: Sequence[Place]) -> Sequence[int]:
    """The states beneath an operand: a closed bracket takes its contents with it."""
    closed = [len(p.read) for p in places if p.read[-1:] in (("_RPAR",), ("_RSQB",))]
    return stack[: -max(closed, default=1)]


def _is_operand(place: Place) -> bool:
    last = place.read[-1] if place.read else ""
    return last in OPERANDS or (last == "_RPAR" and place.family in ("call", "group"))


def _joined(parts: Sequence[str]) -> str:
    """`a, b or c`; a part that is itself a list keeps its own `or`."""
    *first, last = parts
    if not first:
        return last
    return f"{', '.join(first)}{',' if ' or ' in last else ''} or {last}"


@dataclass(frozen=True)
class Fault:
    """Where the parser stopped. `found` is the terminal, "" for a character that begins none."""

    source: Source
    keyword: str
    begin: int  # of the section's lines
    start: int
    end: int
    found: str
    stack: tuple[int, ...]


def explained(fault: Fault, sentences: Sentences) -> Diagnostic:
    """One parse error as a message."""
    source, start, end = fault.source, fault.start, fault.end
    before = source.text[fault.begin : start].rstrip()
    after = re.search(r"(\S+)$", before)
    what = source.text[start:end]
    if fault.found == "$END":
        message = f"`{fault.keyword}` ends too early"
    elif fault.found == "_SEPARATOR":
        message = f"this line of `{fault.keyword}` ends too early"
        start = end = fault.begin + len(before)
    else:
        message = f"`{what}` cannot stand here in `{fault.keyword}`"
    expected = sentences.expected(fault.stack, fault.keyword)
    facts = [("expected", expected)]
    if after and fault.found in ("$END", "_SEPARATOR"):
        facts.insert(0, ("after", after.group(1)))
    form = sentences.form(fault.keyword)
    if form not in expected:
        facts.append(("a line reads", form))
    return Diagnostic(
        "syntax",
        message,
        Span(source, start, max(end, start + 1)),
        facts=tuple(facts),
        hint=_hint(source, start, what, fault.found, expected),
    )


#: What a single sign most likely means.
_SIGNS = {
    "|": "bars stand only inside a call, as in `u(z, t | label = null)`; size is `norm(x)`",
    "∂": "a derivative is written `d/dt[…]`",
    "[": "square brackets belong to a derivative, `d/dt[…]`; group with `(…)`",
    "×": "products are written with `*`",
    "·": "products are written with `*`",
    "−": "write the minus sign `-`",
    "–": "write the minus sign `-`",
    "**": "powers are written with `^`",
    "≤": "write `<=`",
    "≥": "write `>=`",
    "≠": "write `!=`",
    "∇": "a derivative is written `d/dt[…]`, or `d/dz[… along w]` in a state",
    "{": "only `(…)` groups, and `[…]` after `d/dt`",
    "&": "conditions are joined with `and`",
    "!": "write `not`",
    "%": "a share is a number between 0 and 1",
    ":=": "a name is defined with `=`",
}


def _hint(source: Source, start: int, what: str, found: str, expected: str) -> str:
    before, after = source.text[:start], source.text[start:]
    begins = found in ("NAME", "NUMBER", "_LPAR", "DERIVATIVE")
    if begins:
        return _missing(before, after, what, expected)
    if what == "=" and before.endswith("="):
        return "`==` compares; to define, write `=` once"
    if what == "*" and before.endswith("*"):
        return "powers are written with `^`"
    if what == "=" and "an operator" in expected and "`=`" not in expected:
        return "`=` defines; to compare, write `==`"
    if what == ">" and before.endswith("-"):
        return "an arrow stands in a map, `z(t) -> z(r) = …`, or before a network's outputs"
    if after[:2] in _SIGNS or what in _SIGNS:
        return _SIGNS.get(after[:2]) or _SIGNS[what]
    if what == "~" and before.rstrip().endswith("="):
        return "a name is drawn with `~` alone: `t ~ uniform(0, 1)`"
    return _FOUND.get(what, "") or _FOUND.get(found, "")


#: What a thing is for that stands where it cannot.
_FOUND = {
    "~": "names are drawn under `rows`, `times` or `conditions`, one draw a line",
    ",": "a comma separates arguments or names; there are no pairs of values",
    ")": "this bracket closes nothing, or what stands before it is not complete",
    "]": "this bracket closes nothing, or what stands before it is not complete",
    "_COLON": "a colon labels a line, as in `anchor: match … to …`; it goes nowhere else",
    "_ARROW": "an arrow stands in a map, `z(t) -> z(r) = …`, or before a network's outputs",
    "STRING": "titles belong to the heading `objective`",
    "ARXIV": "papers belong to the heading `objective`",
    "_ALONG": "a direction stands inside `d/dt[… along w]`, or under `differentiate`",
    "_TO": "`to` stands between prediction and target: `match A to B`",
}


def _missing(before: str, after: str, what: str, expected: str) -> str:
    """Why something that begins an expression stands where another has just ended."""
    digits = re.search(r"[0-9.]+$", before)
    if digits and "an operator" in expected:
        return f"products are written out: `{digits.group()} * {what}`"
    if "an operator" not in expected:
        return ""
    if re.match(r"[\w']+(?:\([^()]*\))?(?:\s*,\s*[\w']+)*\s*(?:~|=(?!=)|:)", after):
        return "a new line begins here: write `;` before it, or break the line"
    if "`to`" in expected:
        return "write `to` before the target"
    if what in ("if", "when", "where", "unless"):
        return "rows are chosen with `on`"
    if "`on`" in expected:
        return "products are written out with `*`; a condition begins with `on`"
    return "products are written out with `*`"
