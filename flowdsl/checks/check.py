"""What a check is, and how its verdicts on many kinds of rows become few."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from flowdsl.calculus.errors import Undecided
from flowdsl.checks.report import Status, Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.show import Printer
from flowdsl.spec.core import Apply, Draw, Expr
from flowdsl.spec.objective import Objective, Term
from flowdsl.truth.cases import SYMBOLS, Case, negated

Facts = frozenset[tuple[Expr, bool]]


#: What the examples of the checks have in common.
COMMON = """\
path          z(t) = (1 - t) * data + t * noise
times         t, r ~ sorted(uniform(0, 1))
network       u(z, t, r)
map           z(t) -> z(r) = z - (t - r) * u(z, t, r)
differentiate t
target        match u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])
"""


@dataclass(frozen=True)
class Example:
    """Two specs: one that passes a check and one that does not, and the verdict on the second.

    Each is sections that replace those of `COMMON`; `other` those of the objective `other` that
    claims speak of. A test holds the verdicts.
    """

    good: str
    bad: str
    status: Status
    other: str = ""


def example_spec(name: str, sections: str) -> str:
    """`COMMON` with these sections in the place of its own."""
    written = {line.split()[0] for line in sections.splitlines() if line[:1].strip()}
    kept = [line for line in COMMON.splitlines() if line.split()[0] not in written]
    return "\n".join([f"objective {name}", *kept, sections])


@dataclass(frozen=True)
class Check:
    """One check: a question in a sentence, an explanation with an example, and the answer.

    Each check is one file of this folder with a `CHECK`. `run` may raise `Undecided`, which becomes
    a verdict.
    """

    name: str
    place: int
    question: str
    explanation: str
    run: Callable[[Objective, Analysis], list[Verdict]]
    example: Example


def per_case(
    check: str,
    analysis: Analysis,
    terms: Iterable[Term],
    decide: Callable[[Case], Verdict | None],
) -> list[Verdict]:
    """Judge every kind of row of every term; equal verdicts of one term are told once."""
    verdicts: list[Verdict] = []
    for term in terms:
        try:
            cases = analysis.cases(term)
        except Undecided as undecided:
            stuck = Verdict(check, "undecided", undecided.reason, term.name)
            verdicts.append(undecided_at(stuck, term))
            continue
        found: list[tuple[Case, Verdict]] = []
        for case in cases:
            begin = time.perf_counter()
            verdict: Verdict | None
            try:
                verdict = decide(case)
            except Undecided as undecided:
                verdict = Verdict(check, "undecided", undecided.reason)
            if verdict is not None:
                if verdict.status == "undecided":
                    verdict = undecided_at(verdict, term)
                seconds = time.perf_counter() - begin
                found.append((case, replace(verdict, term=term.name, seconds=seconds)))
        verdicts += merged(analysis, found)
    return verdicts


def undecided_at(verdict: Verdict, term: Term) -> Verdict:
    """The verdict with a message that points to its term, where it has none."""
    if verdict.diagnostic is not None:
        return verdict
    message = f"not decided: {verdict.message}"
    hint = "`flowdsl check --certify` measures what cannot be proved"
    return replace(verdict, diagnostic=Diagnostic(verdict.check, message, term.span, hint=hint))


def merged(analysis: Analysis, found: list[tuple[Case, Verdict]]) -> list[Verdict]:
    """One verdict for all kinds of rows with the same answer."""
    groups: dict[object, list[tuple[Case, Verdict]]] = {}
    for case, verdict in found:
        key = (verdict.status, verdict.message, verdict.left_over, verdict.order,
               verdict.identities)  # fmt: skip
        groups.setdefault(key, []).append((case, verdict))
    verdicts = []
    for members in groups.values():
        first = members[0][1]
        seconds = sum(verdict.seconds for _, verdict in members)
        rows = rows_text(analysis, [case for case, _ in members])
        verdicts.append(replace(first, case=rows, seconds=seconds))
    return verdicts


def rows_text(analysis: Analysis, cases: list[Case]) -> str:
    """The rows of several cases in words; "all" when they are all rows."""
    kinds = [frozenset((c, v) for c, v in case.facts.items() if c not in case.implied)
             for case in cases]  # fmt: skip
    texts = []
    for facts in _joined(kinds):
        shown = sorted((condition_text(analysis, cases[0], c, v) for c, v in facts), key=_rank)
        texts.append(", ".join(shown) or "all")
    return "; ".join(sorted(texts, key=_rank))


def _rank(text: str) -> tuple[bool, str]:
    return text.startswith("not "), text


def _joined(kinds: list[Facts]) -> list[Facts]:
    """Two kinds that differ in one condition alone are one kind without it."""
    current = list(dict.fromkeys(kinds))
    while True:
        pair = next(
            (
                (a, b, fact)
                for a in current
                for fact in a
                for b in current
                if b == (a - {fact}) | {(fact[0], not fact[1])}
            ),
            None,
        )
        if pair is None:
            return current
        a, b, fact = pair
        current = [k for k in current if k not in (a, b)]
        if a - {fact} not in current:
            current.append(a - {fact})


def condition_text(analysis: Analysis, case: Case, condition: Expr, value: bool) -> str:
    """`diagonal`, `not dropped`, `t >= lo`."""
    if isinstance(condition, Draw):
        return condition.name if value else f"not {condition.name}"
    holds = negated(condition, value)
    if isinstance(holds, Apply) and holds.op in SYMBOLS:
        printer = Printer(analysis, case, ())
        left, right = (printer.expression(a) for a in holds.args)
        return f"{left} {SYMBOLS[holds.op]} {right}"
    return "…"
