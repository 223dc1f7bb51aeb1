"""Verdicts, and the report that a check of an objective ends in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from html import escape
from typing import Literal

from flowdsl.diagnostics import Diagnostic, render

Status = Literal[
    "proved",
    "order",
    "biased",
    "refuted",
    "unanchored",
    "undecided",
    "note",
    "not applicable",
    "certified",  # measured, and as proved
    "disagreement",  # measured, and not as proved: a bug in flowdsl
]

#: What an author must not overlook. A note, and "holds to order k", are told and pass.
FAILURES: frozenset[str] = frozenset(
    {"biased", "refuted", "unanchored", "undecided", "disagreement"}
)


@dataclass(frozen=True)
class Verdict:
    """One answer: which check, on which term and which rows, what, and why.

    `left_over` is what remains of an identity where it should be zero; `order` the order to which
    it holds; `identities` the minimal sets of identities each of which suffices for the proof.
    `cause` names what in a spec may be at fault where several checks object to one mistake.
    """

    check: str
    status: Status
    message: str
    term: str = ""
    case: str = ""
    left_over: str = ""
    order: int | None = None
    identities: tuple[tuple[str, ...], ...] = ()
    seconds: float = 0.0
    diagnostic: Diagnostic | None = field(default=None, compare=False, repr=False)
    cause: Literal["", "times"] = field(default="", compare=False)

    @property
    def ok(self) -> bool:
        return self.status not in FAILURES

    @property
    def shown(self) -> str:
        """The status as it is shown: `order 2` with its number."""
        return f"order {self.order}" if self.status == "order" else self.status

    @property
    def reason(self) -> str:
        """The message with the identities it rests on and the beginning of what is left over."""
        by = " or ".join(" + ".join(names) for names in self.identities if names)
        text = f"{self.message} (by {by})" if by else self.message
        return f"{text}: {cut(self.left_over)}" if self.left_over else text

    def as_dict(self) -> dict[str, object]:
        return {
            "check": self.check,
            "term": self.term,
            "rows": self.case,
            "status": self.shown,
            "ok": self.ok,
            "message": self.message,
            "left_over": self.left_over,
            "order": self.order,
            "identities": [list(names) for names in self.identities],
            "seconds": round(self.seconds, 5),
            "diagnostic": None if self.diagnostic is None else self.diagnostic.as_dict(),
        }


def cut(text: str, most: int = 240) -> str:
    """A long sum up to the last whole term that fits, and how many more there are; what is no sum,
    up to so many characters."""
    if len(text) <= most:
        return text
    depth, ends = 0, []
    for k, character in enumerate(text):
        depth += (character in "([<") - (character in ")]>")
        if depth == 0 and text[k : k + 3] in (" + ", " - "):
            ends.append(k)
    fitting = [end for end in ends if end <= most]
    if not fitting:
        return f"{text[:most].rstrip()} …"
    return f"{text[: fitting[-1]]} … and {len(ends) - len(fitting) + 1} more terms"


_HEAD = ("check", "term", "rows", "verdict", "reason")


@dataclass(frozen=True, repr=False)
class Report:
    """Everything the checker has to say about one objective.

    `further` are messages about mistakes that stand behind others: seen once these are mended.
    """

    objective: str
    title: str
    verdicts: tuple[Verdict, ...]
    further: tuple[Diagnostic, ...] = field(default=(), compare=False, repr=False)

    @property
    def ok(self) -> bool:
        """No verdict is a failure (see `FAILURES`)."""
        return all(verdict.ok for verdict in self.verdicts)

    def told(self, how: Callable[[Diagnostic], Diagnostic]) -> Report:
        """The report with every message told in this way."""
        verdicts = (v if v.diagnostic is None else replace(v, diagnostic=how(v.diagnostic))
                    for v in self.verdicts)  # fmt: skip
        further = tuple(how(diagnostic) for diagnostic in self.further)
        return replace(self, verdicts=tuple(verdicts), further=further)

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """The messages that come with the verdicts; one message for all rows of one mistake."""
        groups: dict[object, list[Verdict]] = {}
        for verdict in self.verdicts:
            shown = verdict.diagnostic
            if shown is not None:
                code = "" if verdict.status == "undecided" else shown.code  # told by the first
                key = (code, verdict.term, shown.span, shown.label, shown.fix,
                       shown.severity)  # fmt: skip
                groups.setdefault(key, []).append(verdict)
        told = dict.fromkeys(of_rows(members) for members in groups.values())
        return (*told, *self.further)

    @property
    def seconds(self) -> float:
        return sum(verdict.seconds for verdict in self.verdicts)

    def of(self, check: str) -> tuple[Verdict, ...]:
        """The verdicts of one check."""
        return tuple(v for v in self.verdicts if v.check == check)

    def as_dict(self) -> dict[str, object]:
        """The report as plain data, for `--json`."""
        return {
            "objective": self.objective,
            "title": self.title,
            "ok": self.ok,
            "seconds": round(self.seconds, 4),
            "verdicts": [verdict.as_dict() for verdict in self.verdicts],
            "messages": [diagnostic.as_dict() for diagnostic in self.diagnostics],
        }

    def __repr__(self) -> str:
        failed = ", ".join(dict.fromkeys(v.check for v in self.verdicts if not v.ok))
        return f"Report({self.objective}: {f'fails {failed}' if failed else 'all checks pass'})"

    def __str__(self) -> str:
        return self.render()

    def _repr_html_(self) -> str:
        """The table for a notebook, failures in bold, and the messages of what failed."""
        head = "".join(f"<th>{name}</th>" for name in _HEAD)
        rows = []
        for v in self.verdicts:
            cells = [escape(x) for x in (v.check, v.term, v.case, v.shown, v.reason)]
            cells[3] = cells[3] if v.ok else f"<b>{cells[3]}</b>"
            rows.append("<tr>" + "".join(f"<td>{x}</td>" for x in cells) + "</tr>")
        errors = [render(d) for d in self.diagnostics if d.severity == "error"]
        told = f"<pre>{escape(chr(10).join(errors))}</pre>" if errors else ""
        return f"<table><tr>{head}</tr>{''.join(rows)}</table>{told}"

    def render(self) -> str:
        """The verdicts as an aligned table: check, term, rows, verdict, reason."""
        rows = [(v.check, v.term, v.case, v.shown, v.reason) for v in self.verdicts]
        return _table([_HEAD, *rows])


def of_rows(members: list[Verdict]) -> Diagnostic:
    """The message of verdicts on several kinds of rows: each fact with its rows, the shortest
    first.

    Facts and hints that all rows share are told once. A refutation gives the headline before a bias
    does.
    """
    ranked = sorted(members, key=lambda v: v.status != "refuted")
    told = [(v, v.diagnostic) for v in ranked if v.diagnostic is not None]
    facts: dict[str, dict[str, list[str]]] = {}  # name -> value -> rows
    for verdict, diagnostic in told:
        for name, value in diagnostic.facts:
            facts.setdefault(name, {}).setdefault(value, []).append(verdict.case)
    hints: dict[str, list[str]] = {}
    for verdict, diagnostic in told:
        hints.setdefault(diagnostic.hint, []).append(verdict.case)
    hints.pop("", None)
    first = replace(told[0][1], hint=_by_rows(hints, len(told)) if hints else "")
    if all(d.facts == first.facts for _, d in told):
        rows = "; ".join(dict.fromkeys(v.case for v, _ in told))
        extra = () if rows in ("", "all") else (("on rows", rows),)
        return replace(first, facts=(*first.facts, *extra))
    first_told = ("learns", "derived", "left over")
    order = sorted(facts, key=lambda n: first_told.index(n) if n in first_told else 9)
    return replace(first, facts=tuple((n, _by_rows(facts[n], len(told))) for n in order))


def _by_rows(values: dict[str, list[str]], count: int) -> str:
    """One value on all rows, or a line for each with its rows."""
    if len(values) == 1:
        ((value, rows),) = values.items()
        if len(rows) == count:
            return value
    lines = [(value, "; ".join(dict.fromkeys(rows))) for value, rows in values.items()]
    lines.sort(key=lambda line: len(line[0]))
    return "\n".join(f"{value}      on {rows}" for value, rows in lines)


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = list(rows)
    widths = [max(len(row[k]) for row in lines) for k in range(len(lines[0]) - 1)]
    shown = []
    previous: tuple[str, ...] = ()
    for row in lines:
        cells = [
            ("" if k == 0 and previous[:1] == row[:1] else cell).ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        shown.append("  ".join([*cells, row[-1]]).rstrip())
        previous = row
    return "\n".join(shown)
