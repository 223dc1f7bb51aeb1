"""Kinds of rows that are measured each by itself.

A fault on a quarter of the rows is four times as large there, and drowns in the noise of the
others. So rows are told apart by the drawn conditions that decide a time (`r = t on diagonal`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from flowdsl.certify.places import Facts, RowKind
from flowdsl.spec.core import FALSE, Apply, Draw, Kind, apply, assume, walk
from flowdsl.spec.objective import Objective, Term


@dataclass(frozen=True)
class Stratum:
    """Rows of one kind, in words: the conditions that pick them, and their share of all rows.

    No conditions are all rows of a term.
    """

    text: str
    facts: Facts
    share: float

    def of(self, term: Term) -> Term:
        """The term on these rows alone."""
        rows = term.rows
        for draw, value in self.facts.items():
            part = draw if value else apply("not", draw)
            rows = part if rows is None else apply("and", rows, part)
        return replace(term, rows=rows)

    def reduced(self, term: Term) -> Term:
        """The term as it stands on these rows."""
        assert term.target is not None
        return replace(
            term,
            prediction=assume(term.prediction, self.facts),
            target=assume(term.target, self.facts),
        )


def strata(objective: Objective, term: Term, kinds: Iterable[RowKind]) -> list[Stratum]:
    """The kinds of rows of a term; one of all rows where no drawn condition decides a time."""
    deciding = _deciding(objective, term)
    shares: dict[tuple[bool, ...], float] = {}
    for kind in kinds:
        if term.rows is None or assume(term.rows, kind.facts) != FALSE:
            values = tuple(kind.facts[draw] for draw in deciding)
            shares[values] = shares.get(values, 0.0) + kind.share
    if len(shares) < 2:
        return [Stratum("", {}, sum(shares.values()))]
    return [
        Stratum(_words(deciding, values), dict(zip(deciding, values, strict=True)), share)
        for values, share in sorted(shares.items(), reverse=True)
    ]


def _words(deciding: list[Draw], values: tuple[bool, ...]) -> str:
    pairs = zip(deciding, values, strict=True)
    return ", ".join(draw.name if value else f"not {draw.name}" for draw, value in pairs)


def _deciding(objective: Objective, term: Term) -> list[Draw]:
    """The drawn conditions that choose between times in a term."""
    found: dict[Draw, None] = {}
    for expr in (term.prediction, term.target):
        for node in walk(expr) if expr is not None else ():
            if not (isinstance(node, Apply) and node.op == "select"):
                continue
            if objective.kind(node) is not Kind.TIME:
                continue
            for inner in walk(node.args[0]):
                if isinstance(inner, Draw) and inner.kind is Kind.TRUTH:
                    found[inner] = None
    return list(found)
