"""A whole certificate: each matched term by itself, at the end of training and before."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from flowdsl.certify.decay import Course, Family, courses, decay_of, families
from flowdsl.certify.errors import Uncertified
from flowdsl.certify.measure import Effort, measure, moment
from flowdsl.certify.setting import Setting, setting
from flowdsl.certify.variant import Bare, as_written, bare
from flowdsl.checks.certificate import (
    CertificateReport,
    Decay,
    Measurement,
    Outcome,
    TermCertificate,
)
from flowdsl.diagnostics import DiagnosticError
from flowdsl.exact.certificate import Certificate, LossLike
from flowdsl.spec.objective import Objective, Term

Compile = Callable[[Objective], LossLike]
_Pair = tuple[Measurement, Certificate]
DECAYS = 0.5  #: least order at which a gradient is said to fall


def run(objective: Objective, compile: Compile, effort: Effort) -> CertificateReport:
    """Certify every matched term of an objective; what cannot be measured says why."""
    began = time.perf_counter()
    plain = bare(objective)
    terms: list[TermCertificate] = []
    try:
        where = _ready(plain, compile)
    except Uncertified as uncertified:
        terms = [_unmeasured(t, uncertified.reason) for t in plain.objective.terms]
    else:
        terms = [
            _term(_Job(objective, plain, term, where, compile, effort))
            for term in plain.objective.terms
        ]
    for term in objective.terms:
        if term.target is None:
            terms.append(_unmeasured(term, "it states no identity, so nothing is known of it"))
    return CertificateReport(objective.name, tuple(terms), time.perf_counter() - began)


def _ready(plain: Bare, compile: Compile) -> Setting:
    if not plain.objective.terms:
        raise Uncertified("no term states an identity")
    return setting(plain.objective, compiled(plain.objective, compile))


def compiled(objective: Objective, compile: Compile) -> LossLike:
    """The compiled loss. Raises `Uncertified` where it does not compile."""
    try:
        return compile(objective)
    except DiagnosticError as error:
        raise Uncertified(f"it does not compile: {error.diagnostics[0].message}") from error


def _unmeasured(term: Term, reason: str) -> TermCertificate:
    return TermCertificate(term.name, "not measured", reason)


@dataclass(frozen=True)
class _Job:
    """One term to be certified."""

    objective: Objective
    plain: Bare
    term: Term
    where: Setting
    compile: Compile
    effort: Effort

    @property
    def replaced(self) -> tuple[str, ...]:
        return self.plain.replaced[self.term.name]


def _term(job: _Job) -> TermCertificate:
    try:
        return _certified(job)
    except Uncertified as uncertified:
        return _unmeasured(job.term, uncertified.reason)


def _certified(job: _Job) -> TermCertificate:
    own = compiled(job.plain.alone(job.term), job.compile)
    before = courses(job.objective, job.term)
    label = "the end of training" if before else ""
    end, _ = measure(own, job.where, moment(1.0), job.effort, label)
    found: list[Measurement] = [end]
    decay: Decay | None = None
    if before:
        extra, decay = _along(job, own, before[0])
        found += extra
    elif end.outcome == "nonzero":
        for family in families(job.plain.objective, job.term):
            extra, decay = _shrunk(job, family)
            found += extra
            if decay is not None and decay.order > DECAYS:
                break
    written = None
    if job.replaced and end.outcome != "unclear":
        untouched = compiled(as_written(job.objective, job.term), job.compile)
        written, _ = measure(untouched, job.where, moment(1.0), _once(job.effort, 2))
    outcome, reason = _conclusion(end, found[1:], decay, bool(before))
    return TermCertificate(
        job.term.name, outcome, reason, job.replaced, tuple(found), decay, written
    )


def _once(effort: Effort, share: int = 1) -> Effort:
    """One round, perhaps shorter, for what is told beside the certificate."""
    return replace(effort, batches=max(4, effort.batches // share), more=0)


def _along(job: _Job, loss: LossLike, course: Course) -> tuple[list[Measurement], Decay | None]:
    """A term before the end of its curriculum, on the same rows."""
    name, sizes = course.small.strip("()"), [distance for _, distance in course.points]

    def pairs(effort: Effort) -> list[_Pair]:
        return [
            measure(loss, job.where, moment(progress), effort, f"|{name}| = {distance:.3g}")
            for progress, distance in course.points
        ]

    return _falling(course.small, sizes, pairs, job.effort)


def _shrunk(job: _Job, family: Family) -> tuple[list[Measurement], Decay | None]:
    """A term with a step of it made smaller, on the same rows."""
    prepared = []
    for size, member in family.members:
        plain = Bare(member, job.plain.replaced)
        loss = compiled(plain.alone(_named(member, job.term)), job.compile)
        same = member.constants == job.plain.objective.constants
        where = job.where if same else _ready(plain, job.compile)
        prepared.append((loss, where, f"{size:g} of {family.small}"))

    def pairs(effort: Effort) -> list[_Pair]:
        return [measure(loss, where, moment(1.0), effort, at) for loss, where, at in prepared]

    return _falling(family.small, [size for size, _ in family.members], pairs, job.effort)


def _named(objective: Objective, term: Term) -> Term:
    return next(t for t in objective.terms if t.name == term.name)


def _falling(
    small: str, sizes: list[float], pairs: Callable[[Effort], list[_Pair]], effort: Effort
) -> tuple[list[Measurement], Decay | None]:
    """The measurements and how they fall; sampled more where the first do not tell."""
    once = _once(effort)
    measurements: list[Measurement] = []
    decay: Decay | None = None
    for tried in (once, replace(once, batches=effort.more * once.batches)):
        found = pairs(tried)
        measurements = [m for m, _ in found]
        if all(m.outcome == "zero" for m in measurements):
            return measurements, None
        decay = decay_of(small, sizes, [c for _, c in found])
        if decay is not None:
            break
    return measurements, decay


def _conclusion(
    end: Measurement, before: list[Measurement], decay: Decay | None, curriculum: bool
) -> tuple[Outcome, str]:
    falls = decay is not None and decay.order > DECAYS
    if end.outcome == "unclear":
        return "unclear", "the mean gradient is neither told from zero nor from its error"
    if end.outcome == "zero" and not any(m.outcome == "nonzero" for m in before):
        return "zero", "the mean gradient vanishes"
    if falls and decay is not None:
        text = f"falls like {decay.small}^{decay.order:.1f} (± {decay.error:.1f})"
        if curriculum and end.outcome == "zero":
            return "decays", f"the mean gradient vanishes at the end of training and {text}"
        if not curriculum:
            return "decays", f"the mean gradient {text}"
    if end.outcome == "zero":
        return "nonzero", "the mean gradient vanishes at the end of training but not before"
    return "nonzero", "the mean gradient does not vanish"
