"""One mean gradient at the truth, sampled until it is told from zero or not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.setting import STEPS, Setting
from flowdsl.checks.certificate import SHARP, Measurement
from flowdsl.diagnostics import DiagnosticError
from flowdsl.exact.certificate import Certificate, certify
from flowdsl.exact.estimation import LossLike, Moment, Posterior, Sampling

ZERO = 4.0  #: standard errors within which a mean gradient vanishes
CLEAR = 6.0  #: standard errors beyond which it does not
SURELY = 30.0  #: standard errors beyond which it does not, of fewer batches than `ENOUGH`
ENOUGH = 8
LEAST = 5e-4  #: share of the scale below which nothing is called non-zero
SEEN = 0.025  #: largest standard error, in shares of the scale, of a measurement that says zero
RESOLUTION = 1e-5  #: shares of the scale that rounding and integration may always make
MARGIN = 2.0  #: how many times the flow's own error the resolution is


@dataclass(frozen=True)
class Effort:
    """How much is sampled at first, and how many times as much where the first is not clear."""

    rows: int = 512
    batches: int = 16
    more: int = 4
    directions: int = 8
    seed: int = 0
    posterior: Posterior | None = None

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.rows, self.batches, self.posterior, self.seed)


def moment(progress: float) -> Moment:
    """A moment of a long training."""
    return Moment(progress=progress, step=round(progress * STEPS), steps=STEPS)


def measure(
    loss: LossLike, setting: Setting, when: Moment, effort: Effort, at: str = ""
) -> tuple[Measurement, Certificate]:
    """The mean gradient of a loss of one term. Raises `Uncertified` where it has no value."""
    first = _certificate(loss, setting, when, effort, effort.sampling)
    found = judged(first, at)
    coarse = found.outcome == "unclear" or (found.outcome == "zero" and found.error > SHARP)
    # of so few batches a standard error is itself uncertain, and a z-score can be large by chance
    doubtful = found.outcome == "nonzero" and found.z < SURELY and effort.batches < ENOUGH
    if not (coarse or doubtful) or effort.more < 2:
        return found, first
    more = replace(effort.sampling, batches=effort.more * effort.batches, seed=effort.seed + 1)
    second = _certificate(loss, setting, when, effort, more)
    again = judged(second, at)
    if doubtful and again.outcome == "unclear" and again.z > ZERO and again.relative > LEAST:
        again = replace(
            again, outcome="nonzero"
        )  # seen twice, on rows that know nothing of another
    return replace(again, seconds=found.seconds + again.seconds), second


def _certificate(
    loss: LossLike, setting: Setting, when: Moment, effort: Effort, sampling: Sampling
) -> Certificate:
    try:
        found = certify(
            loss,
            setting.field,
            setting.truths,
            sampling=sampling,
            moment=when,
            directions=effort.directions,
            resolution=max(RESOLUTION, MARGIN * setting.error),
        )
    except (DiagnosticError, RuntimeError, ValueError, ArithmeticError) as error:
        told = error.diagnostics[0].message if isinstance(error, DiagnosticError) else str(error)
        text = told.split("\n")[0]
        raise Uncertified(f"the loss cannot be evaluated at the truth: {text}") from error
    if not all(math.isfinite(x) for x in (*found.mean, *found.scale)):
        raise Uncertified("the loss or its gradient is not finite at the truth")
    if not any(s > 0 for s in found.scale):
        raise Uncertified("the loss does not change when the networks do")
    return found


def judged(certificate: Certificate, at: str) -> Measurement:
    """What a certificate shows."""
    relative = max(abs(r) for r in certificate.relative)
    error = max(math.hypot(e, certificate.resolution) for e in certificate.relative_error)
    z = certificate.worst
    outcome: Literal["zero", "nonzero", "unclear"] = "unclear"
    if z > CLEAR and relative > max(LEAST, CLEAR * certificate.resolution):
        outcome = "nonzero"
    elif z <= ZERO and error <= SEEN:
        outcome = "zero"
    return Measurement(
        at,
        outcome,
        round(z, 2),
        relative,
        error,
        certificate.rows,
        certificate.seconds,
    )
