"""Certificates: the compiled loss, measured where the answer is known.

Data come from a Gaussian mixture with labels, every network is replaced by what it computes at the
truth, found in numbers from the spec's own trees: its path, its map solved for the network, the
fixed point of its guidance. The mean gradient in random directions must vanish. Nothing of the
calculus has a part in it, so a proof and a certificate that disagree show a bug in one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowdsl.checks.certificate import CertificateReport, Decay, Measurement, TermCertificate
from flowdsl.spec.objective import Objective

if TYPE_CHECKING:
    from flowdsl.exact.estimation import LossLike


def certify(
    objective: Objective,
    compile: Callable[[Objective], LossLike],
    *,
    rows: int = 512,
    batches: int = 16,
    seed: int = 0,
    find: Callable[[str], Objective] | None = None,
) -> CertificateReport:
    """Measure the mean gradient of every matched term of an objective at the truth.

    `compile` makes the loss of a typed objective. Each measurement calls it on `batches` batches of
    `rows` rows, and on four times as many where these do not tell. What cannot be measured says so,
    in words; nothing is raised for it. For many objectives 256 rows and 8 batches are a quick
    setting. `find` reads the objectives of stages, from which networks are carried; without it
    these compute the data's velocity. Runs on one thread: no operation has enough in it to share.
    """
    from flowdsl.certify.measure import Effort
    from flowdsl.certify.run import one_thread, run

    with one_thread():
        return run(objective, compile, Effort(rows=rows, batches=batches, seed=seed), find)


__all__ = ["CertificateReport", "Decay", "Measurement", "TermCertificate", "certify"]
