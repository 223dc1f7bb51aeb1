"""One term on one kind of rows: at the end of training, before it, and as its steps shrink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from flowdsl.certify.decay import Course, Family, courses, decay_of, families
from flowdsl.certify.errors import Uncertified
from flowdsl.certify.kept import Kept
from flowdsl.certify.measure import ENOUGH, Effort, measure, moment
from flowdsl.certify.setting import Setting
from flowdsl.certify.strata import Stratum
from flowdsl.checks.certificate import Decay, Measurement, Outcome
from flowdsl.diagnostics import DiagnosticError
from flowdsl.exact.certificate import Certificate
from flowdsl.exact.estimation import LossLike, Posterior
from flowdsl.spec.objective import Objective, Term

Compile = Callable[[Objective], LossLike]
Ready = Callable[[Objective], Setting]
_Pair = tuple[Measurement, Certificate]
MOST = 8  #: how many times as many rows are drawn for a rare kind of them
DECAYS = 0.5  #: least order at which a gradient is said to fall


@dataclass(frozen=True)
class Part:
    """What was measured of a part of a term."""

    outcome: Outcome
    reason: str
    measurements: tuple[Measurement, ...]
    decay: Decay | None


@dataclass(frozen=True)
class Job:
    """A part to be measured: a bare objective, its term, and where its networks are exact."""

    objective: Objective
    term: Term
    rows: Stratum
    where: Setting
    compile: Compile
    ready: Ready
    effort: Effort

    def sampled(self, share: int) -> Effort:
        """As many rows of this kind as the effort has of all; only these are evaluated. A share of
        the batches will do where the conditional expectation is exact."""
        rows = round(self.effort.rows / max(self.rows.share, 1 / MOST))
        posterior = self.posterior(exact=True)
        batches = self.effort.batches
        if posterior is not None and posterior.copies is None:
            batches = max(4, batches // share)  # only the states vary from batch to batch
        return replace(self.effort, rows=rows, batches=batches, posterior=posterior)

    def posterior(self, *, exact: bool) -> Posterior | None:
        """How the conditional expectation given a row's state is taken, where it is known."""
        kept = Kept.of(self.objective, self.term, self.where.places, self.where.numbers)
        return None if kept is None else kept.posterior(exact=exact)

    def loss(self, objective: Objective, *, whole: bool = False) -> LossLike:
        """The compiled loss of the term alone, on these rows or, `whole`, on all of its own."""
        own = next(t for t in objective.terms if t.name == self.term.name)
        term = own if whole else self.rows.of(own)
        return compiled(replace(objective, terms=(term,)), self.compile)


def compiled(objective: Objective, compile: Compile) -> LossLike:
    """The compiled loss. Raises `Uncertified` where it does not compile."""
    try:
        return compile(objective)
    except DiagnosticError as error:
        raise Uncertified(f"it does not compile: {error.diagnostics[0].message}") from error


def measured(job: Job) -> Part:
    """Measure a part. Raises `Uncertified`."""
    loss = job.loss(job.objective)
    before = courses(job.objective, job.rows.reduced(job.term))
    effort = job.sampled(2 if before else 4)  # what falls is measured more finely from the start
    end, _ = measure(loss, job.where, moment(1.0), effort, _at(job, before))
    found, decay = [end], None
    if before:
        extra, decay = _along(job, loss, before[0])
        found += extra
    elif end.outcome == "nonzero":
        for family in families(job.objective, job.term):
            extra, decay = _shrunk(job, family)
            found += extra
            if decay is not None and decay.order > DECAYS:
                break
    outcome, reason = _conclusion(end, found[1:], decay, bool(before))
    return Part(outcome, reason, tuple(found), decay)


def _at(job: Job, before: list[Course]) -> str:
    parts = [job.rows.text] if job.rows.text else []
    return ", ".join([*parts, "the end of training"] if before else parts)


def _along(job: Job, loss: LossLike, course: Course) -> tuple[list[Measurement], Decay | None]:
    """A term before the end of its curriculum, on the same rows."""
    name, sizes = course.small.strip("()"), [distance for _, distance in course.points]
    rows = f"{job.rows.text}, " if job.rows.text else ""

    def pairs(effort: Effort) -> list[_Pair]:
        return [
            measure(loss, job.where, moment(progress), effort, f"{rows}|{name}| = {distance:.3g}")
            for progress, distance in course.points
        ]

    return _falling(course.small, sizes, pairs, job.sampled(2))


def _shrunk(job: Job, family: Family) -> tuple[list[Measurement], Decay | None]:
    """A term with a step of it made smaller, on the same rows."""
    prepared = []
    rows = f"{job.rows.text}, " if job.rows.text else ""
    for size, member in family.members:
        same = member.constants == job.objective.constants
        where = job.where if same else job.ready(member)
        prepared.append((job.loss(member), where, f"{rows}{size:g} of {family.small}"))

    def pairs(effort: Effort) -> list[_Pair]:
        return [measure(loss, where, moment(1.0), effort, at) for loss, where, at in prepared]

    return _falling(family.small, [size for size, _ in family.members], pairs, job.sampled(2))


def once(effort: Effort) -> Effort:
    """One round, as it is."""
    return replace(effort, more=0)


def beside(effort: Effort, share: int, posterior: Posterior | None) -> Effort:
    """For what is told beside the certificate: half as many rows and a share of the batches, and
    twice as many batches where these do not tell."""
    batches = max(ENOUGH, effort.batches // share)
    return replace(effort, rows=effort.rows // 2, batches=batches, more=2, posterior=posterior)


def _falling(
    small: str, sizes: list[float], pairs: Callable[[Effort], list[_Pair]], effort: Effort
) -> tuple[list[Measurement], Decay | None]:
    """The measurements and how they fall; sampled more where the first do not tell."""
    first = once(effort)
    measurements: list[Measurement] = []
    decay: Decay | None = None
    for tried in (first, replace(first, batches=effort.more * first.batches)):
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
    if end.outcome == "unclear":
        return "unclear", "the mean gradient is neither told from zero nor from its error"
    if end.outcome == "zero" and not any(m.outcome == "nonzero" for m in before):
        return "zero", "the mean gradient vanishes"
    if decay is not None and decay.order > DECAYS:
        text = f"falls like {decay.small}^{decay.order:.1f} (± {decay.error:.1f})"
        if curriculum and end.outcome == "zero":
            return "decays", f"the mean gradient vanishes at the end of training and {text}"
        if not curriculum:
            return "decays", f"the mean gradient {text}"
    if end.outcome == "zero":
        return "nonzero", "the mean gradient vanishes at the end of training but not before"
    return "nonzero", "the mean gradient does not vanish"
