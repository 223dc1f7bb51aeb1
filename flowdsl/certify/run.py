"""A whole certificate: each matched term by itself, on each kind of its rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.held import held
from flowdsl.certify.lessons import Find, lessons
from flowdsl.certify.measure import Effort, measure, moment
from flowdsl.certify.part import Compile, Job, Part, beside, compiled, measured
from flowdsl.certify.places import of_data
from flowdsl.certify.regression import Guide
from flowdsl.certify.setting import Law, Setting, made, setting
from flowdsl.certify.strata import strata
from flowdsl.certify.truth import Truths
from flowdsl.certify.variant import Bare, as_written, bare
from flowdsl.checks.certificate import CertificateReport, Measurement, Outcome, TermCertificate
from flowdsl.exact.estimation import LossLike
from flowdsl.exact.mixture import GaussianMixture
from flowdsl.exact.paths import AffinePath
from flowdsl.spec.objective import Objective, Term

#: What is told of a term whose kinds of rows differ: the first of these.
WORST: tuple[Outcome, ...] = ("nonzero", "unclear", "decays", "zero")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, and afterwards as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def once_each(compile: Compile) -> Compile:
    """A compiler that remembers: of one objective, the same terms come more than once."""
    known: list[tuple[Objective, LossLike]] = []

    def compiled_once(objective: Objective) -> LossLike:
        for other, loss in known:
            if other == objective:
                return loss
        known.append((objective, compile(objective)))
        return known[-1][1]

    return compiled_once


def run(
    objective: Objective, compile: Compile, effort: Effort, find: Find | None = None
) -> CertificateReport:
    """Certify every matched term of an objective; what cannot be measured says why."""
    began = time.perf_counter()
    compile = once_each(compile)
    written = objective.terms
    objective, generated = of_data(objective)
    terms = [_unmeasured(t, "a path state is made of generated samples") for t in generated]
    terms += [
        _unmeasured(t, "it states no identity, so nothing is known of it")
        for t in written
        if t.target is None
    ]
    law: Law = _as_it_is
    refused = ""
    try:
        under = held(objective)
        if under is not None:
            objective, law = under.objective, under.law
    except Uncertified as uncertified:
        refused = uncertified.reason
    plain = bare(objective)

    def ready(own: Objective) -> Setting:
        if refused:
            raise Uncertified(refused)
        if not own.terms:
            raise Uncertified("no term states an identity")
        return setting(own, compiled(own, compile), law, learn)

    def learn(path: AffinePath) -> Mapping[str, Guide]:
        return lessons(objective, find, taught, path)

    def taught(other: Objective) -> Truths:
        own = bare(other).objective
        return made(own, compiled(own, compile), law).truths

    try:
        where = ready(plain.objective)
    except Uncertified as uncertified:
        terms += [_unmeasured(t, uncertified.reason) for t in plain.objective.terms]
    else:
        for term in plain.objective.terms:
            jobs = [
                Job(plain.objective, term, rows, where, compile, ready, effort)
                for rows in strata(plain.objective, term, where.kinds)
            ]
            terms.append(_term(objective, plain, term, jobs))
    order = [term.name for term in written]
    terms.sort(key=lambda told: order.index(told.term))
    return CertificateReport(objective.name, tuple(terms), time.perf_counter() - began)


def _as_it_is(mixture: GaussianMixture) -> GaussianMixture:
    return mixture


def _unmeasured(term: Term, reason: str) -> TermCertificate:
    return TermCertificate(term.name, "not measured", reason)


def _term(objective: Objective, plain: Bare, term: Term, jobs: list[Job]) -> TermCertificate:
    """All kinds of rows of a term."""
    replaced = plain.replaced[term.name]
    try:
        parts = [measured(job) for job in jobs]
        outcome = next(o for o in WORST if any(p.outcome == o for p in parts))
        # where the residual itself has a mean, what its loss makes of it tells nothing more
        asked = replaced and outcome == "zero"
        written = _as_written(objective, term, jobs[0]) if asked else None
        elsewhere = _elsewhere(jobs[0])
    except Uncertified as uncertified:
        return _unmeasured(term, uncertified.reason)
    worst = next(p for p in parts if p.outcome == outcome)
    measurements = tuple(m for part in parts for m in part.measurements)
    return TermCertificate(
        term.name, outcome, _reason(parts, jobs, worst), replaced, measurements, worst.decay,
        written, elsewhere,
    )  # fmt: skip


def _reason(parts: list[Part], jobs: list[Job], worst: Part) -> str:
    """The reason, and where it holds when it does not hold everywhere."""
    where = [j.rows.text for j, p in zip(jobs, parts, strict=True) if p.outcome == worst.outcome]
    if len(where) == len(parts):
        return worst.reason
    return f"{worst.reason} (rows: {'; '.join(where)})"


def _as_written(objective: Objective, term: Term, job: Job) -> Measurement:
    """The same statistic of the very loss, all of its rows together."""
    loss = compiled(as_written(objective, term), job.compile)
    effort = beside(job.effort, 1, job.posterior(exact=False))
    return measure(loss, job.where, moment(1.0), effort)[0]


def _elsewhere(job: Job) -> Measurement:
    """The same statistic at the flow of another field, all rows together."""
    where = replace(job.where, truths=job.where.elsewhere)
    effort = beside(job.effort, 2, job.posterior(exact=True))
    return measure(job.loss(job.objective, whole=True), where, moment(1.0), effort)[0]
