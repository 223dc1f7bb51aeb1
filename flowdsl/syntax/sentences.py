"""Parse errors in words: what was being read, what was found, what could stand there, one hint."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flowdsl.diagnostics import Diagnostic, Source, Span

_EXPRESSION = {"NAME", "NUMBER", "MINUS", "NOT", "_LPAR", "DERIVATIVE"}
_OPERATOR = {"PLUS", "MINUS", "STAR", "SLASH", "CARET", "COMPARE", "AND", "OR"}
_WORDS = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": 'a "title"',
    "ARXIV": "arXiv:NUMBER",
    "COMPARE": "a comparison",
    "DERIVATIVE": "d/dX[…]",
    "_SEPARATOR": "the end of the line",
    "$END": "the end of the section",
    "_LPAR": "`(`",
    "_RPAR": "`)`",
    "_RSQB": "`]`",
    "_COMMA": "`,`",
    "_BAR": "`|`",
    "_EQUAL": "`=`",
    "_TILDE": "`~`",
    "_COLON": "`:`",
    "_ARROW": "`->`",
    "PLUS": "`+`",
    "MINUS": "`-`",
    "STAR": "`*`",
    "SLASH": "`/`",
    "CARET": "`^`",
}


def _word(terminal: str) -> str:
    return _WORDS.get(terminal, f"`{terminal.strip('_').lower()}`")


def describe(expected: Sequence[str]) -> str:
    """The terminals that could stand at a place, as a person would list them."""
    left = [t for t in expected if t not in ("_BLANK",)]
    words: list[str] = []
    if {"NAME", "NUMBER", "_LPAR"} <= set(left):
        words.append("an expression")
        left = [t for t in left if t not in _EXPRESSION]
    if {"PLUS", "STAR"} <= set(left):
        words.append("an operator")
        left = [t for t in left if t not in _OPERATOR]
    rank = {"_SEPARATOR": 1, "$END": 2}
    if "_SEPARATOR" in left and "$END" in left:
        left.remove("$END")
    words += [_word(t) for t in sorted(left, key=lambda t: (rank.get(t, 0), t))]
    if not words:
        return "nothing more"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def sentence(
    source: Source,
    keyword: str,
    form: str,
    begin: int,
    start: int,
    end: int,
    found: str,
    expected: Sequence[str],
) -> Diagnostic:
    """One parse error. `found` is the terminal, "" for a character no terminal begins with."""
    before = source.text[begin:start].rstrip()
    after = re.search(r"(\S+)$", before)
    what = source.text[start:end]
    if found == "$END":
        message = f"`{keyword}` ends too early"
    elif found == "_SEPARATOR":
        message = f"this line of `{keyword}` ends too early"
        start = end = begin + len(before)
    else:
        message = f"`{what}` cannot stand here in `{keyword}`"
    # After a character that begins no word, the parser knows only what its merged states allow.
    facts = [("expected", describe(expected))] if found or len(expected) < 12 else []
    if after and found in ("$END", "_SEPARATOR"):
        facts.insert(0, ("after", after.group(1)))
    facts.append(("a line reads", form))
    return Diagnostic(
        "syntax",
        message,
        Span(source, start, max(end, start + 1)),
        facts=tuple(facts),
        hint=_hint(source, start, what, found, expected),
    )


def _hint(source: Source, start: int, what: str, found: str, expected: Sequence[str]) -> str:
    before = source.text[:start]
    digits = re.search(r"[0-9.]+$", before)
    if digits and (found == "NAME" or found == "_LPAR"):
        return f"products are written out: `{digits.group()} * {what}`"
    juxtaposed = found in ("NAME", "NUMBER", "_LPAR") and re.search(r"[\w')]\s*$", before)
    if juxtaposed and "STAR" in expected:
        return "products are written out with `*`"
    if what == "=" and "COMPARE" in expected and "_EQUAL" not in expected:
        return "`=` defines; to compare, write `==`"
    if what == "|":
        return "bars stand only inside a call, as in `u(z, t | label = null)`; size is `norm(x)`"
    if what == "∂":
        return "a derivative is written `d/dt[…]`"
    if what == "[":
        return "square brackets belong to a derivative, `d/dt[…]`; group with `(…)`"
    if what in ("×", "·"):
        return "products are written with `*`"
    if what in ("−", "–"):
        return "write the minus sign `-`"
    if what == "**":
        return "powers are written with `^`"
    if found == "_COLON":
        return "a colon labels a line, as in `anchor: match … to …`; it goes nowhere else"
    return ""
