"""Is the flow of the data the only solution?"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from flowdsl.calculus.context import Conditions
from flowdsl.calculus.errors import Undecided
from flowdsl.checks.boundary import deviation
from flowdsl.checks.candidates import candidates, stands_still
from flowdsl.checks.check import Check, Example, rows_text
from flowdsl.checks.identity import LONG, used
from flowdsl.checks.matching import tied_laws
from flowdsl.checks.reach import untied, untrained
from flowdsl.checks.report import Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.anchor import Anchors, Tie, anchors, mentions, passes, reaches_off_diagonal
from flowdsl.proof.judge import judge
from flowdsl.proof.show import Printer, signed
from flowdsl.spec.core import Formal, Null
from flowdsl.spec.objective import Objective
from flowdsl.truth.live import live_calls

NAME = "anchored"


def _run(objective: Objective, analysis: Analysis) -> list[Verdict]:
    if not analysis.matched:
        return [Verdict(NAME, "not applicable", "no term states an identity")]
    begin = time.perf_counter()
    verdicts = _decide(objective, analysis)
    if analysis.values is not analysis and any(v.status == "undecided" for v in verdicts):
        by_value = _decide(objective, analysis.values)
        if not any(v.status == "undecided" for v in by_value):
            verdicts = by_value
    each = (time.perf_counter() - begin) / max(1, len(verdicts))
    return [replace(verdict, seconds=each) for verdict in verdicts]


def _decide(objective: Objective, analysis: Analysis) -> list[Verdict]:
    """For all values of the constants, or at those of the spec, as the analysis has them."""
    laws, apart = tied_laws(NAME, analysis)
    if {term.name for term in analysis.matched} <= apart:
        return laws + _never_labelled(objective, analysis)
    found = anchors(analysis, apart=apart)
    verdicts = [_loose(objective, found)] if found.empty and found.equations else []
    if not verdicts:
        verdicts = [_tied(analysis, tie) for tie in found.tied.values()]
        verdicts += [_open(analysis, objective, found, c) for c in found.loose]
        verdicts += [_unread(reason) for reason in dict.fromkeys(found.failures) if not found.tied]
        verdicts += _elsewhere(objective, analysis)
        if found.tied and not found.loose:
            verdicts += candidates(objective, analysis, found)
        verdicts += _unreached(objective, analysis, found)
    if not verdicts:
        verdicts = [_unread("no term that states an identity counts at the end of training")]
    return laws + verdicts + _never_labelled(objective, analysis)


def _loose(objective: Objective, found: Anchors) -> Verdict:
    message = "every flow passes, whatever its velocity: nothing ties the map to the data"
    term = objective.terms[0]
    diagnostic = Diagnostic(
        NAME, message, term.span,
        facts=(("left over", "0 with the exact flow of any other field in the map"),),
        hint="add a term that regresses the network on `velocity` where its times are equal",
    )  # fmt: skip
    return Verdict(NAME, "unanchored", message, diagnostic=diagnostic)


def _tied(analysis: Analysis, tie: Tie) -> Verdict:
    case = tie.equation.case
    printer = Printer.of(analysis, case)
    text = f"({printer.atom(tie.hat)} - {printer.atom(tie.own)})"
    left = signed(printer.scalar(tie.factor), text)
    left = left if len(left) <= LONG else f"a multiple of {text}"  # on a path of many terms
    message = f"another flow leaves {left}, zero only where v^ = v"
    return Verdict(NAME, "proved", message, case.term.name, rows_text(analysis, [case]))


def _open(
    analysis: Analysis, objective: Objective, found: Anchors, conditions: Conditions
) -> Verdict:
    """A field that no equation ties: never trained, or an equation of an unknown form."""
    case = found.equations[0].case
    shown = Printer(analysis, case, ()).conditions(conditions).removeprefix(" | ") or "the map"
    mentioned = [e for e in found.unread if mentions(e, conditions)]
    if not mentioned and conditions in found.objected:
        return Verdict(NAME, "not applicable", f"no flow passes at {shown}: see identity")
    if not mentioned or found.few(conditions):
        message = f"nothing ties the network at {shown} to the data"
        diagnostic = Diagnostic(
            NAME, message, case.term.span,
            hint="train it on such rows: drop conditions on some of them, or add a term",
        )  # fmt: skip
        return Verdict(NAME, "unanchored", message, diagnostic=diagnostic)
    if any(judge(analysis, e.case).outcome in ("refuted", "biased") for e in mentioned):
        return Verdict(NAME, "not applicable", "the truth itself does not pass: see identity")
    try:
        if passes(analysis, "zero"):
            message = "the map that moves nothing passes"
            return Verdict(NAME, "unanchored", message,
                           diagnostic=Diagnostic(NAME, message, case.term.span))  # fmt: skip
    except Undecided:
        pass
    left = Printer.of(analysis, mentioned[0].case).state(mentioned[0].mean)
    message = "whether another flow passes is not decided by what it leaves over"
    return Verdict(NAME, "undecided", message, mentioned[0].case.term.name, left_over=left)


def _unread(reason: str) -> Verdict:
    return Verdict(NAME, "undecided", reason)


def _elsewhere(objective: Objective, analysis: Analysis) -> list[Verdict]:
    """Maps that are no flows: constants, and what is never trained."""
    verdicts = []
    two_times = [
        m for m in objective.maps.values()
        if isinstance(m.start, Formal) and isinstance(m.end, Formal)
    ]  # fmt: skip
    if two_times and not reaches_off_diagonal(analysis):
        message = "the map is trained only where its times are equal"
        hint = "add a term with different times"
        diagnostic = Diagnostic(NAME, message, analysis.matched[0].span, hint=hint)
        verdicts.append(Verdict(NAME, "unanchored", message, diagnostic=diagnostic, cause="times"))
    for flow_map in objective.maps.values():
        if deviation(analysis, flow_map) and passes(analysis, "constant"):
            message = "a constant map passes: the boundary is not built in"
            verdicts.append(
                Verdict(NAME, "unanchored", message, flow_map.name,
                        diagnostic=Diagnostic(NAME, message, flow_map.span))
            )  # fmt: skip
    if _by_semigroup_alone(analysis):
        message = ("unique among networks that are continuous in their times: away from the "
                   "diagonal only the semigroup identity is used")  # fmt: skip
        if stands_still(analysis):
            message += (", and the map that moves nothing there, with the right velocity on the "
                        "diagonal, passes too")  # fmt: skip
        verdicts.append(Verdict(NAME, "note", message))
    return verdicts


def _unreached(objective: Objective, analysis: Analysis, found: Anchors) -> list[Verdict]:
    """Times of the path that no row draws where it matters; where the truth does not even pass,
    that comes first."""
    if any(judge(analysis, c).outcome in ("refuted", "biased") for c in analysis.all_cases()):
        return []
    messages = {
        untrained(objective, analysis, flow_map): flow_map.span
        for flow_map in objective.maps.values()
    }
    messages[untied(objective, analysis, found)] = analysis.matched[0].span
    hint = "let the laws of the times, and the rows they hold on, reach all of the path"
    return [
        Verdict(NAME, "unanchored", message, cause="times",
                diagnostic=Diagnostic(NAME, message, span, hint=hint))
        for message, span in messages.items() if message
    ]  # fmt: skip


def _never_labelled(objective: Objective, analysis: Analysis) -> list[Verdict]:
    """A network with a label among its conditions, and no row that shows it one."""
    losses = [term.loss for term in objective.terms if term.target is None]
    with suppress(Undecided):
        losses += [case.loss for case in analysis.all_cases()]
    calls = [call for loss in losses for call in live_calls(objective, loss)]
    verdicts = []
    for network in objective.networks.values():
        shown = [dict(c.conditions).get("label") for c in calls if c.network == network.name]
        if "label" not in network.conditions or not shown:
            continue
        if all(isinstance(value, Null) for value in shown):
            message = f"{network.name} is never shown a label, only null"
            hint = "drop the label on some rows, not on all of them"
            diagnostic = Diagnostic(NAME, message, network.span, hint=hint)
            verdicts.append(Verdict(NAME, "unanchored", message, diagnostic=diagnostic))
    return verdicts


def _by_semigroup_alone(analysis: Analysis) -> bool:
    proofs = [
        used(analysis, case)
        for case in analysis.all_cases()
        if judge(analysis, case).outcome == "proved"
    ]
    apart = [sets for sets in proofs if sets and () not in sets and ("tangent",) not in sets]
    return bool(apart) and all("semigroup" in names for sets in apart for names in sets)


CHECK = Check(
    NAME,
    4,
    "Is the flow of the data the only solution?",
    """The exact flow of some other field is put into the map, while data and velocity stay. Some
term must object: what it leaves over must force the other field to be the data's. Constant maps are
tried too where the map's line does not exclude them.

    target  match d/ds[map(z, t, s)] to stop(F(map(z, t, s), s, s))         # and nothing else

is unanchored: every flow satisfies it. A term that regresses F(z, t, t) on `velocity` ties it to
the data.

An identity says nothing at times that no row draws, so the laws are probed too. "no row trains the
map from times about 0.9 to times about 0.65": a sampler jumps there, and no row with these times
can be drawn. "nothing ties the velocity to the data at times about 0.9": rows that regress on
`velocity` are never drawn there. Widen the laws of these times, or the rows that they hold on.""",
    _run,
    Example(
        good="""\
differentiate r
target        match d/dr[map(z, t, r)] to stop(u(map(z, t, r), r, r))
anchor        match u(z, t, t) to velocity""",
        bad="""\
differentiate r
target        match d/dr[map(z, t, r)] to stop(u(map(z, t, r), r, r))""",
        status="unanchored",
    ),
)
