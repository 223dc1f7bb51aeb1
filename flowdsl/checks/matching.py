"""Verdicts on steps that match distributions: where they vanish, and whether they lead there."""

from __future__ import annotations

from contextlib import suppress

from flowdsl.calculus.errors import Undecided
from flowdsl.checks.report import Verdict
from flowdsl.diagnostics import Diagnostic, Span
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.generated import off_the_draw
from flowdsl.proof.matching import Amiss, Matching, matching
from flowdsl.proof.show import Printer
from flowdsl.truth.cases import Case
from flowdsl.truth.live import taught


def standing_alone(analysis: Analysis, case: Case) -> Matching | None:
    """The step of a case whose samples no map of their own path generates: nothing but the step
    says what their law is to be.

    Steps that go wrong in another way than by their sign raise `Amiss`.
    """
    try:
        found = matching(analysis, case)
    except Undecided:
        return None
    return None if found is None or found.mapped else found


def vanishes(check: str, analysis: Analysis, case: Case) -> Verdict | None:
    """Where the residual of a step is zero; None for what is no such step."""
    try:
        found = standing_alone(analysis, case)
    except Amiss as amiss:
        return wrong(check, case, amiss)
    if found is None:
        return None
    return Verdict(check, "proved", f"zero for every sample where {_agree(found)}")


def otherwise(check: str, analysis: Analysis, case: Case) -> Verdict | None:
    """Samples that a step moves and that are not those which the sampler draws."""
    try:
        found = standing_alone(analysis, case)
        left = None if found is None else off_the_draw(analysis, case, found.samples)
    except (Amiss, Undecided):
        return None
    if not left:
        return None
    assert found is not None
    text = Printer.of(analysis, case).state(left)
    message = (
        f"zero where {_agree(found)}, but these are not the samples that are drawn: with the "
        "inner flow at its truth they do not have the data's law"
    )
    diagnostic = Diagnostic(
        check, message, found.samples.span or case.term.span, facts=(("differ by", text),),
        hint="make the samples of the outer state and of what the inner map ends in",
    )  # fmt: skip
    return Verdict(check, "biased", message, left_over=text, diagnostic=diagnostic)


def direction(check: str, analysis: Analysis, case: Case) -> Verdict | None:
    """Does descent of a step lead the generated samples to the data?"""
    try:
        found = matching(analysis, case)
    except Amiss as amiss:
        return wrong(check, case, amiss)
    except Undecided as undecided:
        return Verdict(check, "undecided", undecided.reason)
    if found is None:
        return None
    what = (f"the KL divergence of the generated samples, renoised, from the law that "
            f"{_told(found)}")  # fmt: skip
    if found.descends:
        text = f"descends {what}, given that {found.auxiliary} knows theirs"
        if found.sizes:
            text += f"; {', '.join(found.sizes)} taken as a number"
        return Verdict(check, "proved", text)
    message = f"ascends {what}: descent pushes the samples away from it"
    diagnostic = Diagnostic(
        check, message, _span(case),
        hint=f"turn the sign of the step: {found.auxiliary} and what it is compared with "
             "change places",
    )  # fmt: skip
    return Verdict(check, "refuted", message, diagnostic=diagnostic)


def tied_laws(check: str, analysis: Analysis) -> tuple[list[Verdict], frozenset[str]]:
    """What steps that stand alone tie: the law of the generated samples, and no map.

    With the terms that have no part in tying a flow: the steps, and those that teach their
    auxiliaries.
    """
    steps: dict[str, Matching] = {}
    for case in analysis.all_cases():
        with suppress(Amiss, Undecided):
            found = standing_alone(analysis, case)
            if found is not None:
                steps[case.term.name] = found
    verdicts = []
    for name, found in steps.items():
        text = ("another law of the generated samples leaves the difference of two velocities, "
                "zero at all times only where the laws are the same")  # fmt: skip
        verdicts.append(Verdict(check, "proved", text, name))
        if found.inner:
            text = (f"only the law of what {found.inner} ends in is tied: that it is a flow in "
                    "between is not asked by any term")  # fmt: skip
            verdicts.append(Verdict(check, "note", text, name))
    auxiliaries = {found.auxiliary for found in steps.values()}
    teaching = {
        case.term.name
        for case in analysis.all_cases()
        if (call := taught(analysis.objective, case.prediction, case.target)) is not None
        and call.network in auxiliaries
    }
    return verdicts, frozenset(steps) | teaching


def wrong(check: str, case: Case, amiss: Amiss) -> Verdict:
    """A step that is wrong whatever its sign."""
    diagnostic = Diagnostic(check, amiss.reason, _span(case), hint=amiss.hint)
    return Verdict(check, "refuted", amiss.reason, diagnostic=diagnostic)


def _span(case: Case) -> Span | None:
    target = case.target
    return (None if target is None else target.span) or case.term.span


def _told(found: Matching) -> str:
    names = " and ".join(found.teachers)
    verb = "tell" if len(found.teachers) > 1 else "tells"
    return f"{names} {verb}" + (", guided" if found.guided else "")


def _agree(found: Matching) -> str:
    names = " and ".join(found.teachers)
    guided = ", guided," if found.guided else ""
    return (f"{found.auxiliary}, which knows the velocity of the generated samples, agrees with "
            f"{names}{guided}").rstrip(",")  # fmt: skip


__all__ = ["direction", "otherwise", "standing_alone", "tied_laws", "vanishes"]
