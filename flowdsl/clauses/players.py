"""`players`: who learns from which terms, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowdsl.diagnostics import Span, did_you_mean, fail
from flowdsl.spec.clause import Clause
from flowdsl.spec.objective import Player
from flowdsl.spec.scope import Scope
from flowdsl.syntax.grammar import SectionSyntax
from flowdsl.syntax.tree import Line


@dataclass(frozen=True)
class PlayerLine(Line):
    """`name: networks on term every n, …`."""

    name: str
    networks: tuple[str, ...]
    terms: tuple[tuple[str, int], ...]

    def parts(self) -> tuple[str, ...]:
        shown = (term if every == 1 else f"{term} every {every}" for term, every in self.terms)
        return (f"{self.name}: {', '.join(self.networks)} on {', '.join(shown)}",)


def _player(span: Span, children: list[object]) -> Line:
    name, networks, played = children
    assert isinstance(networks, list)
    assert isinstance(played, list)
    terms = []
    for term, every in played:
        text = "1" if every is None else str(every)
        if not text.isdigit() or not 1 <= int(text) <= 10_000:
            raise fail("syntax", f"`every {text}` is no number of steps", span)
        terms.append((str(term), int(text)))
    return PlayerLine(span, str(name), tuple(str(n) for n in networks), tuple(terms))


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    terms = {term.name: term for term in scope.term_lines}
    groups = {term.group for term in scope.term_lines}
    for line in lines:
        assert isinstance(line, PlayerLine)
        for network in line.networks:
            if network not in scope.networks:
                raise fail(
                    "resolve",
                    f"there is no network `{network}`",
                    line.span,
                    hint=did_you_mean(network, scope.networks),
                )
        for term, _ in line.terms:
            if term not in terms and term not in groups:
                raise fail(
                    "resolve",
                    f"there is no term `{term}`",
                    line.span,
                    hint=did_you_mean(term, {*terms, *groups})
                    or f"terms: {', '.join(sorted({*terms, *groups}))}",
                )
        scope.players.append(Player(line.name, line.networks, line.terms, line.span))


CLAUSES = (
    Clause(
        SectionSyntax(
            "players",
            "NAME _COLON names _ON played -> player",
            "NAME: NETWORK, … on TERM [every N], …",
            {"player": _player},
            'played: play (_COMMA play)*\nplay: NAME [_EVERY NUMBER]\n_EVERY: "every"',
        ),
        "whole",
        _enter,
        "Which networks learn from which terms, and how often.",
        "student: F on target, correction every 2",
        16,
    ),
)
