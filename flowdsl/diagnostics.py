"""What a user is told: places in a source text, and errors that name place, cause and remedy.

Every error that a user can cause, in a spec or at the command line, is a `Diagnostic`; it travels
as a `DiagnosticError` and is shown with `render`. A Python traceback is a bug in flowdsl.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Source:
    """A text that was read, and the name under which a user knows it (a path, or `<text>`)."""

    name: str
    text: str = field(repr=False)

    def line(self, number: int) -> str:
        """The line with this number, counted from 1, without its end of line."""
        lines = self.text.split("\n")
        return lines[number - 1].rstrip("\r") if 0 < number <= len(lines) else ""

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column of a character offset, both counted from 1."""
        before = self.text[:offset]
        return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters, `source.text[start:end]`."""

    source: Source = field(repr=False)
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.source.place(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.place(self.start)[1]

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def as_dict(self) -> dict[str, object]:
        """Where it is, as plain data: lines and columns from 1, the end not included."""
        end_line, end_column = self.source.place(self.end)
        return {
            "file": self.source.name,
            "line": self.line,
            "column": self.column,
            "end_line": end_line,
            "end_column": end_column,
        }

    def to(self, other: Span) -> Span:
        """The smallest span that holds both."""
        return Span(self.source, min(self.start, other.start), max(self.end, other.end))


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One message: what is wrong, where, what was found and required, what is left over, one hint.

    `code` is the name of the stage or check that speaks (`syntax`, `identity`, …). `facts` are
    aligned rows such as `("left over", "2 * (t - r) * d/dt[u(z, t, r)]")`. `fix` is the hint as
    replacements in the text, where it was tried and found to mend what is wrong. `others` are
    further places in the same mistake, each with its label.
    """

    code: str
    message: str
    span: Span | None = None
    label: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    hint: str = ""
    severity: Severity = "error"
    fix: tuple[tuple[Span, str], ...] = ()
    others: tuple[tuple[Span, str], ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The message as plain data, for `--json` (docs/json.md)."""
        facts = dict(self.facts)
        return {
            "severity": self.severity,
            "code": self.code,
            "message": self.message,
            "place": None if self.span is None else self.span.as_dict(),
            "label": self.label,
            "others": [{"place": s.as_dict(), "label": label} for s, label in self.others],
            "found": "" if self.span is None else self.span.text,
            "required": facts.get("derived", facts.get("expected", "")),
            "left_over": [_left_over(x) for x in facts.get("left over", "").split("\n") if x],
            "facts": facts,
            "hint": self.hint,
            "fix": [{"place": span.as_dict(), "text": text} for span, text in self.fix],
        }


def _left_over(line: str) -> dict[str, object]:
    """`EXPRESSION      e.g. NUMBER at PLACE on an exact flow      on ROWS` in its parts."""
    text, *rest = line.split("      ")
    example = next((part for part in rest if part.startswith("e.g. ")), "")
    rows = next((part.removeprefix("on ") for part in rest if part.startswith("on ")), "")
    number = float(example.split()[1]) if example else None
    return {"text": text, "number": number, "example": example, "rows": rows}


class DiagnosticError(Exception):
    """Carries the diagnostics of a stage that cannot go on."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = diagnostics
        super().__init__("\n".join(render(d) for d in diagnostics))


def fail(
    code: str,
    message: str,
    span: Span | None = None,
    *,
    label: str = "",
    facts: Sequence[tuple[str, str]] = (),
    hint: str = "",
) -> DiagnosticError:
    """A `DiagnosticError` with one diagnostic, to be raised where it is made."""
    return DiagnosticError(Diagnostic(code, message, span, label, tuple(facts), hint))


def placed(error: DiagnosticError, span: Span | None) -> DiagnosticError:
    """The error with a place for what has none."""
    return DiagnosticError(*(replace(d, span=d.span or span) for d in error.diagnostics))


def inherited(diagnostic: Diagnostic, source: Source, line: int) -> Diagnostic:
    """A message about an inherited line says so: which file takes it over, and where it says so."""
    span = diagnostic.span
    if span is None or span.source.name == source.name:
        return diagnostic
    fact = ("inherited", f"by {source.name}:{line}, from {span.source.name}:{span.line}")
    if fact in diagnostic.facts:
        return diagnostic
    return replace(diagnostic, facts=(*diagnostic.facts, fact))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean "x"?`, or the empty string when nothing known is close to `name`."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=5, cutoff=0.6)
    if not close:
        return ""

    def closeness(other: str) -> tuple[float, int]:
        """The share in common; of equally close names the one of the likest length."""
        return -difflib.SequenceMatcher(None, other, name).ratio(), abs(len(other) - len(name))

    return f'did you mean "{min(close, key=closeness)}"?'


def render(diagnostic: Diagnostic) -> str:
    """The message as text: headline, source line with a caret, aligned facts, hint."""
    lines = [f"{diagnostic.severity}[{diagnostic.code}]: {diagnostic.message}"]
    shown = diagnostic.span
    if shown is not None:
        lines += [_arrow(shown), *_shown(shown, diagnostic.label)]
        for span, label in diagnostic.others:
            same = span.source.name == shown.source.name
            if not same or span.line != shown.line:
                lines += [_arrow(span), *_shown(span, label)]
            else:
                lines.append(_shown(span, label)[1])
            shown = span
    rows = [*diagnostic.facts, *([("hint", diagnostic.hint)] if diagnostic.hint else [])]
    if rows:
        wide = max(len(name) for name, _ in rows)
        for name, value in rows:
            first, *rest = value.split("\n")
            lines.append(f"  {name.ljust(wide)}  {first}")
            lines.extend(f"  {' ' * wide}  {line}" for line in rest)
    return "\n".join(lines)


def _arrow(span: Span) -> str:
    gutter = " " * len(str(span.line))
    return f"{gutter} --> {span.source.name}:{span.line}:{span.column}"


def _shown(span: Span, label: str) -> tuple[str, str]:
    """The line of a place, and below it the caret with its label."""
    number, column = span.line, span.column
    text = span.source.line(number).expandtabs(1)
    width = max(1, min(span.end - span.start, len(text) - column + 1))
    caret = " " * (column - 1) + "^" * width
    gutter = " " * len(str(number))
    return f"{number} | {text}", f"{gutter} | {caret}{' ' + label if label else ''}"
