"""Layout: where sections begin and where lines end, decided before any parsing.

The text is masked character for character (comments, and line ends that end no line, become
blanks), so offsets stay those of the text a person sees. Headings stand at column 0; each section
is then parsed by itself, which is why one mistake does not hide those of the sections after it.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from flowdsl.diagnostics import Diagnostic, DiagnosticError, Source, Span, did_you_mean, fail

MAX_BYTES = 64 * 1024
MAX_NESTING = 64
MAX_STRING = 300
MAX_PROBLEMS = 20  # after so many the rest would not be read by anyone

LETTER = r"A-Za-zÀ-ÖØ-öø-ɏͰ-Ͽἀ-ῼ"
NAME = rf"[{LETTER}_][{LETTER}0-9_]*'*"
_HEADING = re.compile(rf"[{LETTER}_][{LETTER}0-9_]*")
_CONTINUES = re.compile(r'(?:to|on|along|or|and)\b|[+\-*/"]|arXiv:')
_ALLOWED_CONTROL = "\n\t"


@dataclass(frozen=True)
class Chunk:
    """One section: its heading, and the half-open range of the masked text that holds its lines."""

    keyword: str
    heading: Span
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    masked: str
    chunks: tuple[Chunk, ...]
    problems: tuple[Diagnostic, ...]


def read_source(data: bytes | str, name: str) -> Source:
    """Decode and normalise a spec's text; refuse what no spec needs (size, encoding, controls)."""
    size = len(data)
    if size > MAX_BYTES:
        raise fail(
            "syntax",
            f"{name} has {size} bytes; a spec has at most {MAX_BYTES}",
            hint="a .flow file is ten to forty lines of text; is this the right file?",
        )
    if isinstance(data, bytes):
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise fail(
                "syntax",
                f"{name} is not UTF-8 text: byte {error.start} cannot be decoded",
                hint="save the file as UTF-8",
            ) from None
    else:
        text = data
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    source = Source(name, text)
    for offset, char in enumerate(text):
        category = unicodedata.category(char)
        if category in ("Cc", "Cf", "Co", "Cs", "Cn") and char not in _ALLOWED_CONTROL:
            raise fail(
                "syntax",
                f"the character U+{ord(char):04X} is not allowed in a spec",
                Span(source, offset, offset + 1),
                hint="invisible characters can make a text read differently from what it says; "
                "delete it",
            )
    return source


def lay_out(source: Source, keywords: tuple[str, ...]) -> Layout:
    """Mask the text and cut it into sections."""
    text = source.text
    masked = list(text)
    problems: list[Diagnostic] = []
    heads: list[tuple[str, int, int]] = []
    opened: list[int] = []
    at = 0
    while at < len(text):
        char = text[at]
        if at == 0 or text[at - 1] == "\n":
            found = _HEADING.match(text, at)
            if found and not _CONTINUES.match(text, at):
                problems.extend(_unclosed(source, opened))
                opened.clear()
                heads.append((found.group(), at, found.end()))
                at = found.end()
                continue
        if char == "#":
            end = _line_end(text, at)
            masked[at:end] = " " * (end - at)
            at = end
        elif char == '"':
            end = text.find('"', at + 1, _line_end(text, at))
            if end < 0:
                problems.append(
                    Diagnostic(
                        "syntax",
                        "this string is not closed on its line",
                        Span(source, at, _line_end(text, at)),
                        hint='end it with `"`',
                    )
                )
                end = _line_end(text, at) - 1
            elif end - at > MAX_STRING:
                problems.append(
                    Diagnostic(
                        "syntax",
                        f"this string has more than {MAX_STRING} characters",
                        Span(source, at, end + 1),
                        hint="a title fits in one line",
                    )
                )
            at = end + 1
        else:
            if char in "([":
                opened.append(at)
                if len(opened) > MAX_NESTING:
                    raise fail(
                        "syntax",
                        f"more than {MAX_NESTING} brackets are open here",
                        Span(source, at, at + 1),
                        hint="give parts of the expression names of their own",
                    )
            elif char in ")]" and opened:
                opened.pop()
            elif char == "\n" and (opened or _continues_after(text, at)):
                masked[at] = " "
            at += 1
    problems.extend(_unclosed(source, opened))
    return Layout("".join(masked), _chunks(source, heads, keywords, problems), tuple(problems))


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")


def _continues_after(text: str, newline: int) -> bool:
    """Whether the next line that says anything goes on with the present one."""
    found = _BLANK.match(text, newline)
    at = found.end() if found else newline
    return bool(_CONTINUES.match(text, at))


def _unclosed(source: Source, opened: list[int]) -> list[Diagnostic]:
    if not opened:
        return []
    at = opened[-1]
    return [
        Diagnostic(
            "syntax",
            f"this `{source.text[at]}` is never closed",
            Span(source, at, at + 1),
            hint=f"add `{')' if source.text[at] == '(' else ']'}` before the next section begins",
        )
    ]


def _chunks(
    source: Source,
    heads: list[tuple[str, int, int]],
    keywords: tuple[str, ...],
    problems: list[Diagnostic],
) -> tuple[Chunk, ...]:
    first = heads[0][1] if heads else len(source.text)
    before = re.search(r"[^\s]", _strip_comments(source.text[:first]))
    if before:
        problems.append(
            Diagnostic(
                "syntax",
                "a spec begins with its heading `objective NAME`",
                Span(source, before.start(), before.start() + 1),
                hint="headings stand at the beginning of a line, without blanks before them",
            )
        )
    chunks = []
    ends = [*(start for _, start, _ in heads[1:]), len(source.text)][: len(heads)]
    for (word, start, body), end in zip(heads, ends, strict=True):
        if len(problems) >= MAX_PROBLEMS:
            break
        span = Span(source, start, body)
        if word in keywords:
            chunks.append(Chunk(word, span, body, end))
        else:
            problems.append(
                Diagnostic(
                    "syntax",
                    f"`{word}` is not a heading",
                    span,
                    facts=(("headings", ", ".join(keywords)),),
                    hint=did_you_mean(word, keywords)
                    or "lines inside a section begin with a blank; only headings stand at column 0",
                )
            )
    return tuple(chunks)


def _strip_comments(text: str) -> str:
    return re.sub(r"#[^\n]*", lambda m: " " * len(m.group()), text)


def stop_on(problems: tuple[Diagnostic, ...] | list[Diagnostic]) -> None:
    """Raise what was found, in the order of the text."""
    if problems:
        raise DiagnosticError(*sorted(problems, key=lambda d: d.span.start if d.span else 0))
