"""Is each claim about another objective true, for every network?"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from flowdsl.calculus.errors import Undecided
from flowdsl.checks.check import Check, Example, merged
from flowdsl.checks.drawn import other_laws
from flowdsl.checks.report import Verdict, cut
from flowdsl.diagnostics import Diagnostic, DiagnosticError
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.compare import compare
from flowdsl.proof.sums import Pair
from flowdsl.spec.notation import Notation
from flowdsl.spec.objective import Claim, Objective

NAME = "claims"


def _run(objective: Objective, analysis: Analysis) -> list[Verdict]:
    if not objective.claims:
        return [Verdict(NAME, "not applicable", "nothing is claimed")]
    verdicts: list[Verdict] = []
    known: dict[Claim, list[Pair]] = {}  # value and gradient are asked of the same rows
    for claim in objective.claims:
        begin = time.perf_counter()
        found = _decide(analysis, claim, known)
        each = (time.perf_counter() - begin) / max(1, len(found))
        verdicts += [replace(verdict, seconds=each) for verdict in found]
    return verdicts + _weighed(objective, analysis)


def _weighed(objective: Objective, analysis: Analysis) -> list[Verdict]:
    """What is the same row by row is not the same in the mean where rows are drawn otherwise."""
    found = []
    for name in dict.fromkeys(claim.other for claim in objective.claims):
        with suppress(DiagnosticError):
            differ = other_laws(objective, analysis.find(name)) if analysis.find else ""
            if differ:
                message = f"row by row only: {differ}"
                found.append(Verdict(NAME, "note", message))
    return found


def claim_text(claim: Claim) -> str:
    """The claim as it stands in the spec."""
    text = f"same {claim.relation} as {claim.other}"
    text += f" up to {claim.upto}" if claim.upto else ""
    if claim.mode == "always" or claim.value is None:
        return text
    return f"{text} {claim.mode} {claim.parameter} == {Notation().text(claim.value)}"


def _decide(analysis: Analysis, claim: Claim, known: dict[Claim, list[Pair]]) -> list[Verdict]:
    shown = claim_text(claim)
    if analysis.find is None:
        return [Verdict(NAME, "undecided", f"{shown}: the other objective is not at hand")]
    try:
        question = replace(claim, relation="gradient")
        if question not in known:
            known[question] = compare(analysis, analysis.find(claim.other), claim)
        pairs = known[question]
    except Undecided as undecided:
        return [Verdict(NAME, "undecided", f"{shown}: {undecided.reason}")]
    except DiagnosticError as error:
        found = error.diagnostics[0]
        return [Verdict(NAME, "undecided", f"{shown}: {found.message}",
                        diagnostic=replace(found, span=found.span or claim.span))]  # fmt: skip
    judged = [(pair.case, _verdict(claim, shown, pair)) for pair in pairs]
    return merged(analysis, judged)


def _verdict(claim: Claim, shown: str, pair: Pair) -> Verdict:
    if claim.relation == "value":
        if pair.values:
            return Verdict(NAME, "proved", f"{shown}: row by row, for every network")
        return _other_value(claim, shown, pair)
    if not pair.same:
        return _refuted(claim, f"{shown}: the gradients differ", pair.left)
    if pair.weights:
        return Verdict(NAME, "proved", f"{shown}: row by row, for every network, weights included")
    weights = f" ({cut(pair.one)} against {cut(pair.other)})" if pair.one else ""
    return Verdict(
        NAME, "proved",
        f"{shown}: row by row, for every network, up to each row's positive weight{weights}",
    )  # fmt: skip


def _other_value(claim: Claim, shown: str, pair: Pair) -> Verdict:
    if pair.apart and pair.same and pair.weights:
        message = f"{shown}: the losses differ by a term that moves no network"
        return _refuted(claim, message, pair.apart)
    if pair.apart:
        return _refuted(claim, f"{shown}: the losses differ", pair.apart)
    if not pair.same:
        return _refuted(claim, f"{shown}: the gradients differ", pair.left)
    left = f"{cut(pair.one)} against {cut(pair.other)}" if pair.one else ""
    return _refuted(claim, f"{shown}: the losses differ", left)


def _refuted(claim: Claim, message: str, left: str) -> Verdict:
    diagnostic = Diagnostic(NAME, message, claim.span, facts=(("left over", cut(left, 400)),))
    return Verdict(NAME, "refuted", message, left_over=left, diagnostic=diagnostic)


CHECK = Check(
    NAME,
    8,
    "Is each claim about another objective true, for every network?",
    """The networks are functions about which nothing is known; both objectives are compared row by
row: same state, times and conditions. `same value` compares the rows' losses. `same gradient`
compares the directions of the rows' gradients: they must be multiples of each other by a positive
weight, and the verdict says whether the weights agree too. `near` compares leading orders, `up to`
leaves a term out on either side. Where one objective has more terms, their sums are compared.

    claims  same gradient as meanflow near alpha == 0

holds for AlphaFlow: its residual divided by alpha tends to MeanFlow's. Its weight alpha / (mse +
c) reaches MeanFlow's 1 / (mse + c) only for c = 0, which the verdict shows.""",
    _run,
    Example(
        good="claims        same gradient as other",
        bad="claims        same value as other",
        status="refuted",
        other="loss          error / 2",
    ),
)
