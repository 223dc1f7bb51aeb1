"""What becomes of every mutant of every spec: `python -m tests.mutation_table [SPEC …]`.

A mutant is unreadable, killed by a check, left undecided, or accepted; one that is accepted is the
same objective, has the same gradient for every network, or is another objective that is proved.
With `--certify` the compiled loss of each is measured too, and a proof that the measurement
contradicts is shown. Takes minutes, with measurements an hour; `--jobs` runs several at once.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial

from flowdsl.checks import Report, Verdict, check
from flowdsl.checks.certificate import agreement, with_certificate
from flowdsl.diagnostics import DiagnosticError
from flowdsl.identities import IDENTITIES
from flowdsl.pipeline import compiled, load, load_text
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.compare import compare
from flowdsl.proof.errors import Clock, Pole, Undecided
from flowdsl.spec.objective import Claim, Objective
from flowdsl.syntax.format import format_tree
from tests.mutations import Mutant, base_tree, mutants, specs

#: What a measurement can say, the worst first.
AGREEMENTS = ("disagrees", "too small to see", "agrees", "measured alone", "not measured")
ACCEPTED = ("same", "equal", "another", "as biased")


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: `kind`, the check or stage that says so, and the reason.

    Kinds: "unreadable", "killed", "undecided"; of those that pass "same" (the very same one),
    "equal" (the same gradient for every network), "another" (another objective, proved). A mutant
    of a spec that is itself biased and fails in no other way is "as biased".
    """

    mutant: Mutant
    kind: str
    by: str = ""
    reason: str = ""
    measured: str = ""  # one of AGREEMENTS, or nothing
    detail: str = ""
    seconds: float = 0.0

    @property
    def accepted(self) -> bool:
        return self.kind in ACCEPTED


def judged(mutant: Mutant) -> tuple[Fate, Objective | None, Report | None]:
    """Read and check a mutant."""
    began = time.process_time()
    try:
        objective = load_text(mutant.text)
    except DiagnosticError as error:
        first = error.diagnostics[0]
        return Fate(mutant, "unreadable", first.code, first.message), None, None
    report = check(objective, find=load)
    fate = _fate(mutant, objective, report)
    return replace(fate, seconds=time.process_time() - began), objective, report


def _fate(mutant: Mutant, objective: Objective, report: Report) -> Fate:
    known = _failures(check(base(mutant.spec), find=load)) if _is_biased(mutant.spec) else set()
    failing = [v for v in report.verdicts if not v.ok]
    fresh = [v for v in failing if _essence(v) not in known]
    decided = [v for v in fresh if v.status != "undecided"]
    if decided:
        first = decided[0]
        return Fate(mutant, "killed", first.check, f"{first.status}: {first.reason}")
    if fresh:
        return Fate(mutant, "undecided", fresh[0].check, fresh[0].message)
    kind, reason = neutral(mutant.spec, objective, report)
    return Fate(mutant, "as biased" if failing and kind == "another" else kind, "", reason)


def _failures(report: Report) -> set[tuple[str, ...]]:
    return {_essence(v) for v in report.verdicts if not v.ok}


def _essence(verdict: Verdict) -> tuple[str, ...]:
    return verdict.check, verdict.status, verdict.term, verdict.case, verdict.left_over


@cache
def _is_biased(spec: str) -> bool:
    """Does the spec itself fail (trajectory flow matching is biased by its nature)?"""
    return not check(base(spec), find=load).ok


def neutral(spec: str, objective: Objective, report: Report) -> tuple[str, str]:
    """Why a mutant that passes is no worse: the same objective, or another one that is proved."""
    if same(base(spec), objective):
        return "same", "the very same objective"
    drawn = "" if base(spec).draws == objective.draws else "; rows and times are drawn otherwise"
    equal, how = beside(base(spec), objective)
    if equal:
        return "equal", how + drawn
    told = {
        f"{v.term} {v.case}: {v.shown}, {v.reason}".replace(" : ", ": ")
        for v in report.of("identity") if v.term
    }  # fmt: skip
    return "another", "; ".join(sorted(told)) + f" -- {how}{drawn}"


def beside(one: Objective, other: Objective) -> tuple[bool, str]:
    """Do two objectives have the same gradient for every network, on the rows of both?"""
    try:
        for first, second in ((one, other), (other, one)):
            analysis = Analysis(first, tuple(IDENTITIES.values()), Clock(20.0))
            pairs = compare(analysis, second, Claim("gradient", second.name, "always"))
            for pair in pairs:
                if not pair.same:
                    return False, f"for any network it differs by {pair.left}"
            weighted = all(p.weights for p in pairs)
    except (Undecided, Pole) as undecided:
        return False, getattr(undecided, "reason", "not comparable")
    if weighted:
        return True, "the same gradient for every network"
    return True, "the same gradient for every network, up to a positive weight"


@cache
def base(spec: str) -> Objective:
    return load_text(format_tree(base_tree(spec)))


def same(one: Objective, other: Objective) -> bool:
    """Do two objectives compute the same from the same draws?"""
    parts = ("constants", "paths", "draws", "networks", "maps", "terms")
    return all(getattr(one, p) == getattr(other, p) for p in parts)


def measured(fate: Fate, objective: Objective, report: Report) -> Fate:
    """The fate with a measurement: how the compiled loss's mean gradient stands to the proof.

    The worst of the terms counts; "too small to see" is told apart from agreement.
    """
    from flowdsl.certify import certify

    certificate = certify(objective, compiled)
    joined = with_certificate(report, certificate)
    wrong = [v for v in joined.of("certificate") if v.status == "disagreement"]
    if wrong:
        return replace(fate, measured="disagrees", detail=wrong[0].message)
    said = {agreement(report, term) for term in certificate.terms}
    return replace(fate, measured=next((a for a in AGREEMENTS if a in said), "not measured"))


def run(mutant: Mutant, certify: bool) -> Fate:
    """One mutant, from text to fate."""
    fate, objective, report = judged(mutant)
    if not certify or objective is None or report is None:
        return fate
    return measured(fate, objective, report)


def table(fates: Iterable[Fate]) -> str:
    """Counts per spec: what became of its mutants, and what measurements say to that."""
    kinds = ("unreadable", "killed", "undecided", *ACCEPTED)
    told = AGREEMENTS
    rows = [("spec", "mutants", *kinds, *told, "killed by")]
    by_spec: dict[str, list[Fate]] = {}
    for fate in fates:
        by_spec.setdefault(fate.mutant.spec, []).append(fate)
    everything = [f for own in by_spec.values() for f in own]
    for spec, own in [*by_spec.items(), ("together", everything)]:
        count, said = Counter(f.kind for f in own), Counter(f.measured for f in own)
        checks = Counter(f.by for f in own if f.kind == "killed")
        by = ", ".join(f"{name} {number}" for name, number in checks.most_common())
        cells = [len(own), *(count[k] for k in kinds), *(said[k] for k in told)]
        rows.append((spec, *(str(c) for c in cells), by))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def by_operator(fates: Iterable[Fate]) -> str:
    """Per kind of change: how many were made, read, killed, and accepted."""
    groups: dict[str, list[Fate]] = {}
    for fate in fates:
        groups.setdefault(fate.mutant.operator, []).append(fate)
    lines = [f"{'change':12} mutants  unreadable  killed  undecided  accepted"]
    for name, own in sorted(groups.items()):
        kinds = Counter("accepted" if f.accepted else f.kind for f in own)
        lines.append(f"{name:12} {len(own):7}  {kinds['unreadable']:10}  {kinds['killed']:6}  "
                     f"{kinds['undecided']:9}  {kinds['accepted']:8}")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="*", default=specs())
    parser.add_argument("--certify", action="store_true", help="measure the compiled losses too")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="only mutants whose name contains this")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    work = [m for spec in chosen.specs for m in mutants(spec) if chosen.only in m.name]
    one = partial(run, certify=chosen.certify)
    if chosen.jobs > 1:
        with ProcessPoolExecutor(chosen.jobs) as pool:
            fates = list(pool.map(one, work, chunksize=4))
    else:
        fates = [one(m) for m in work]
    for kind in ("undecided", *ACCEPTED):
        for fate in (f for f in fates if f.kind == kind):
            print(f"{kind:9}  {fate.measured:12}  {fate.mutant.name}\n{'':11}{fate.reason}")
    for fate in (f for f in fates if f.measured == "disagrees"):
        print(f"DISAGREES  {fate.mutant.name}\n{'':11}{fate.reason}\n{'':11}{fate.detail}")
    print("\n" + by_operator(fates))
    print("\n" + table(fates))
    slowest = max(fates, key=lambda f: f.seconds, default=None)
    if slowest is not None:
        print(f"\n{sum(f.seconds for f in fates):.0f} s in all, at most {slowest.seconds:.1f} s "
              f"({slowest.mutant.name})")  # fmt: skip


if __name__ == "__main__":
    main()
