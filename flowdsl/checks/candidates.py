"""Notes of the check `anchored`: what rules out which other map, and what each term is needed for.

A theorem that leaves one map only is cited where a term is the differential equation itself.
"""

from __future__ import annotations

from contextlib import suppress

from flowdsl.calculus.errors import Undecided
from flowdsl.checks.boundary import deviation
from flowdsl.checks.check import rows_text
from flowdsl.checks.report import Verdict
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.anchor import Anchors, anchors
from flowdsl.proof.uniqueness import CANDIDATES, Operator, objects, operator
from flowdsl.spec.core import Formal
from flowdsl.spec.notation import Notation
from flowdsl.spec.objective import Objective
from flowdsl.truth.cases import Case

NAME = "anchored"
THEOREMS: dict[Operator, str] = {
    "eulerian": (
        "unique among all maps F that are differentiable, not only among flows: the term is "
        "∂F/∂t + J F[v] = 0 with BOUNDARY, which the method of characteristics solves in one "
        "way (Evans, Partial Differential Equations, section 3.2)"
    ),
    "lagrangian": (
        "unique among all maps F that are differentiable, not only among flows: the term is "
        "∂F/∂s = v(F, s) with BOUNDARY, which has one solution where v is Lipschitz "
        "(Picard-Lindelöf; Hartman, Ordinary Differential Equations, theorem II.1.1)"
    ),
}


def candidates(objective: Objective, analysis: Analysis, found: Anchors) -> list[Verdict]:
    """Notes on an objective whose every field is tied."""
    return [
        *_ruled_out(objective, analysis),
        *_needed(analysis, found),
        *_theorems(objective, analysis),
    ]


def stands_still(analysis: Analysis) -> bool:
    """Does the map pass that moves nothing off the diagonal and is right on it?"""
    answers = [objects(analysis, case, "still apart") for case in analysis.all_cases()]
    return bool(answers) and all(answer is False for answer in answers)


def _ruled_out(objective: Objective, analysis: Analysis) -> list[Verdict]:
    """Which term objects to which map; one line per set of terms. Of another flow nothing where
    there is but one term, which `proved` names."""
    by_terms: dict[tuple[str, ...], list[str]] = {}
    for candidate in CANDIDATES:
        if candidate.kind == "hat" and len(analysis.matched) < 2:
            continue
        if candidate.kind != "hat" and not objective.maps:
            continue
        if candidate.kind == "constant" and _hard(objective, analysis):
            continue
        if candidate.kind == "still apart" and not _two_times(objective):
            continue
        names = tuple(
            term.name for term in analysis.matched
            if any(objects(analysis, case, candidate.kind) for case in analysis.cases(term))
        )  # fmt: skip
        if names:
            by_terms.setdefault(names, []).append(candidate.text)
    return [
        Verdict(NAME, "note", f"{', '.join(maps)}: ruled out by {', '.join(names)}")
        for names, maps in by_terms.items()
    ]


def _needed(analysis: Analysis, found: Anchors) -> list[Verdict]:
    """What is left if a term that ties a field had the weight zero."""
    names = dict.fromkeys(tie.equation.case.term.name for tie in found.tied.values())
    verdicts = []
    for name in names if len(analysis.matched) > 1 else ():
        rest = anchors(analysis, without=name)
        if rest.failures:
            continue
        if rest.empty:
            message = f"without {name} every flow passes"
        elif set(found.tied) - set(rest.tied):
            message = f"without {name} another flow passes on some rows"
        else:
            message = f"without {name} the other terms still tie the flow"
        verdicts.append(Verdict(NAME, "note", message, name))
    return verdicts


def _theorems(objective: Objective, analysis: Analysis) -> list[Verdict]:
    """Terms that are the differential equation of the flow map, with its boundary built in."""
    if not _hard(objective, analysis):
        return []
    told: dict[tuple[str, Operator], list[Case]] = {}
    for case in analysis.all_cases():
        read = operator(analysis, case)
        if read is not None:
            told.setdefault((case.term.name, read), []).append(case)
    return [
        Verdict(NAME, "note", _theorem(objective, read), name, rows_text(analysis, found))
        for (name, read), found in told.items()
    ]


def _theorem(objective: Objective, read: Operator) -> str:
    """A theorem with the boundary of the objective's map: at equal times, or at its fixed one."""
    fixed = [
        Notation.of(objective).text(end)
        for flow_map in objective.maps.values()
        for end in (flow_map.start, flow_map.end)
        if not isinstance(end, Formal)
    ]
    boundary = f"F(z, {fixed[0]}) = z" if fixed else "F(z, t, t) = z"
    return THEOREMS[read].replace("BOUNDARY", boundary)


def _hard(objective: Objective, analysis: Analysis) -> bool:
    """Does every map move nothing between equal times, whatever its network?"""
    with suppress(Undecided):
        return bool(objective.maps) and not any(
            deviation(analysis, flow_map) for flow_map in objective.maps.values()
        )
    return False


def _two_times(objective: Objective) -> bool:
    maps = objective.maps.values()
    return any(isinstance(m.start, Formal) and isinstance(m.end, Formal) for m in maps)
