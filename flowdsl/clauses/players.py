"""`players`: who learns from which terms, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowdsl.diagnostics import Span, did_you_mean, fail
from flowdsl.spec.objective import Player
from flowdsl.spec.scope import Clause, Scope
from flowdsl.syntax.grammar import END, SectionSyntax, Wanted
from flowdsl.syntax.tree import Line


@dataclass(frozen=True)
class PlayerLine(Line):
    """`name: networks on term every n, …`; a term with a rhythm -n rests at every n-th step."""

    name: str
    networks: tuple[str, ...]
    terms: tuple[tuple[str, int], ...]

    def parts(self) -> tuple[str, ...]:
        shown = (
            term if every == 1 else f"{term} {'except ' if every < 0 else ''}every {abs(every)}"
            for term, every in self.terms
        )
        return (f"{self.name}: {', '.join(self.networks)} on {', '.join(shown)}",)


def _player(span: Span, children: list[object]) -> Line:
    name, networks, played = children
    assert isinstance(networks, list)
    assert isinstance(played, list)
    terms = []
    for term, rests, every in played:
        text = "1" if every is None else str(every)
        least = 1 if rests is None else 2  # except every step is never
        if not text.isdigit() or not least <= int(text) <= 10_000:
            word = "every" if rests is None else "except every"
            raise fail("syntax", f"`{word} {text}` is no number of steps", span)
        terms.append((str(term), int(text) if rests is None else -int(text)))
    return PlayerLine(span, str(name), tuple(str(n) for n in networks), tuple(terms))


def _enter(scope: Scope, lines: Sequence[Line]) -> None:
    taught: dict[str, str] = {}
    for line in lines:
        assert isinstance(line, PlayerLine)
        for network in line.networks:
            _learner(scope, line, network)
            if network in taught:
                raise fail(
                    "resolve",
                    f"`{network}` learns with `{taught[network]}` and with `{line.name}`",
                    line.span,
                    hint="one player owns a network, and may learn from several terms",
                )
            taught[network] = line.name
        if any(line.name == player.name for player in scope.players):
            raise fail("resolve", f"two players are called `{line.name}`", line.span)
        scope.players.append(Player(line.name, line.networks, _played(scope, line), line.span))
    for name, declared in scope.networks.items():
        learns = not declared.frozen and declared.average_of is None
        if lines and learns and name not in taught:
            raise fail(
                "resolve",
                f"`{name}` learns with no player",
                declared.span,
                hint=f"give it to one under `players`, or declare it `{name}(…) frozen`",
            )


def _learner(scope: Scope, line: PlayerLine, name: str) -> None:
    """Refuse what is no network, or none that learns."""
    network = scope.networks.get(name)
    if network is None:
        raise fail(
            "resolve",
            f"there is no network `{name}`",
            line.span,
            hint=did_you_mean(name, scope.networks),
        )
    if network.frozen or network.average_of is not None:
        why = "is frozen" if network.frozen else f"is an average of `{network.average_of}`"
        raise fail("resolve", f"`{name}` {why}, so it learns nothing", line.span)


def _played(scope: Scope, line: PlayerLine) -> tuple[tuple[str, int], ...]:
    """The terms by name, with their rhythm. A group stands for all of its terms; a term that is
    named itself has its own rhythm.
    """
    groups: dict[str, list[str]] = {}
    for term in scope.term_lines:
        groups.setdefault(term.group, []).append(term.name)
    names = [term.name for term in scope.term_lines]
    rhythm: dict[str, int] = {}
    for name, every in line.terms:
        if name not in groups and name not in names:
            known = {*names, *groups}
            raise fail(
                "resolve",
                f"there is no term `{name}`",
                line.span,
                hint=did_you_mean(name, known) or f"terms: {', '.join(sorted(known))}",
            )
        rhythm |= dict.fromkeys(groups.get(name, ()), every)
    rhythm |= {name: every for name, every in line.terms if name in names and name not in groups}
    return tuple((name, rhythm[name]) for name in names if name in rhythm)


_NETWORKS = "`,` and another network, or `on` and the terms"

CLAUSES = (
    Clause(
        SectionSyntax(
            "players",
            "NAME _COLON names _ON played -> player",
            "NAME: NETWORK, … on TERM [[except] every N], …",
            {"player": _player},
            "played: play (_COMMA play)*\nplay: NAME [[EXCEPT] _EVERY NUMBER]\n"
            '_EVERY: "every"\nEXCEPT: "except"',
            {
                "NAME": Wanted("`:` and the networks of this player"),
                "_COLON": Wanted("a network of this player", _NETWORKS),
                "_COLON names": Wanted(_NETWORKS),
                "_ON": Wanted("a term that is learnt, such as `target`"),
                "_ON played": Wanted("`,` and another term, or " + END),
                "played: play": Wanted("`,` and another term, or " + END),
                "played: played": Wanted("`,` and another term, or " + END),
                "played: _COMMA": Wanted("another term"),
                "play: NAME": Wanted(
                    "`every N` for a term of every N-th step, `except every N` for one of the "
                    "others, `,`, or " + END
                ),
                "play: EXCEPT": Wanted("`every N`, the steps on which the term rests"),
                "play: _EVERY": Wanted("a number of steps, such as `2`"),
                "play: NUMBER": Wanted("`,` and another term, or " + END),
            },
        ),
        "whole",
        _enter,
        "Which networks learn from which terms, and how often.",
        "student: F on target, correction every 2",
        16,
    ),
)
