"""What becomes of every mutant of every shipped spec: `python -m tests.mutation_table [SPEC …]`.

A mutant is unreadable, killed by a check, left undecided, or accepted; with `--certify` the
compiled loss of each is measured too, and a proof that the measurement contradicts is shown. Takes
minutes, and with measurements an hour on one core; `--jobs` runs several specs' mutants at once.
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

from flowdsl.checks import Report, check
from flowdsl.checks.certificate import CertificateReport, expected
from flowdsl.diagnostics import DiagnosticError
from flowdsl.pipeline import compiled, load, load_text, shipped_names
from flowdsl.spec.objective import Objective
from flowdsl.syntax.format import format_tree
from tests.mutations import Mutant, base_tree, mutants

ROWS, BATCHES = 512, 16  #: of a measurement of a mutant


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: `kind`, the check or stage that says so, and the reason."""

    mutant: Mutant
    kind: str  # unreadable | killed | undecided | accepted
    by: str = ""
    reason: str = ""
    measured: str = ""  # agrees | too small | disagrees | not measured, or nothing
    detail: str = ""
    seconds: float = 0.0


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
    failing = [v for v in report.verdicts if not v.ok]
    decided = [v for v in failing if v.status != "undecided"]
    if decided:
        first = decided[0]
        return Fate(mutant, "killed", first.check, f"{first.status}: {first.reason}")
    if failing:
        return Fate(mutant, "undecided", failing[0].check, failing[0].message)
    return Fate(mutant, "accepted", "", neutral(mutant.spec, objective, report))


def neutral(spec: str, objective: Objective, report: Report) -> str:
    """Why a mutant that passes is no worse: the same objective, or another one that is proved."""
    if same(base(spec), objective):
        return "the very same objective"
    told = {f"{v.term} {v.shown}: {v.message}" for v in report.of("identity") if v.term}
    notes = {v.message for v in report.of("gradient") if "nothing is learnt" in v.message}
    return "proved: " + "; ".join(sorted(told | notes))


@cache
def base(spec: str) -> Objective:
    return load_text(format_tree(base_tree(spec)))


def same(one: Objective, other: Objective) -> bool:
    """Do two objectives compute the same from the same draws?"""
    parts = ("constants", "paths", "draws", "networks", "maps", "terms")
    return all(getattr(one, p) == getattr(other, p) for p in parts)


def measured(fate: Fate, objective: Objective, report: Report) -> Fate:
    """The fate with a measurement: does it contradict the proof of any term?"""
    from flowdsl.certify import certify

    certificate = certify(objective, compiled, rows=ROWS, batches=BATCHES)
    joined = report.with_certificate(certificate)
    wrong = [v for v in joined.of("certificate") if v.status == "disagreement"]
    if wrong:
        return replace(fate, measured="disagrees", detail=wrong[0].message)
    return replace(fate, measured=_agreement(report, certificate))


def _agreement(report: Report, certificate: CertificateReport) -> str:
    seen = [t for t in certificate.terms if t.outcome in ("zero", "decays", "nonzero")]
    known = [(t.outcome, expected(report, t.term)) for t in seen]
    if ("zero", "nonzero") in known:
        return "too small"  # to be seen
    return "agrees" if any(e != "unknown" for _, e in known) else "not measured"


def run(mutant: Mutant, certify: bool) -> Fate:
    """One mutant, from text to fate."""
    fate, objective, report = judged(mutant)
    if not certify or objective is None or report is None:
        return fate
    return measured(fate, objective, report)


def table(fates: Iterable[Fate]) -> str:
    """Counts per spec: mutants, unreadable, killed by each check, undecided, accepted, disputed."""
    rows = [("spec", "mutants", "unreadable", "killed", "by", "undecided", "accepted", "agree",
             "too small", "disagree")]  # fmt: skip
    by_spec: dict[str, list[Fate]] = {}
    for fate in fates:
        by_spec.setdefault(fate.mutant.spec, []).append(fate)
    for spec, own in by_spec.items():
        kinds = Counter(f.kind for f in own)
        checks = Counter(f.by for f in own if f.kind == "killed")
        agreed = Counter(f.measured for f in own)
        by = ", ".join(f"{name} {count}" for name, count in checks.most_common())
        rows.append((spec, str(len(own)), str(kinds["unreadable"]), str(kinds["killed"]), by,
                     str(kinds["undecided"]), str(kinds["accepted"]), str(agreed["agrees"]),
                     str(agreed["too small"]), str(agreed["disagrees"])))  # fmt: skip
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="*", default=shipped_names())
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
    for kind in ("accepted", "undecided"):
        for fate in (f for f in fates if f.kind == kind):
            print(f"{kind:9}  {fate.measured:12}  {fate.mutant.name}\n{'':11}{fate.reason}")
    for fate in (f for f in fates if f.measured == "disagrees"):
        print(f"DISAGREES  {fate.mutant.name}\n{'':11}{fate.reason}\n{'':11}{fate.detail}")
    print("\n" + table(fates))


if __name__ == "__main__":
    main()
