"""Settings in which specs are certified, built once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from flowdsl.certify.kept import Kept
from flowdsl.certify.run import compiled
from flowdsl.certify.setting import Setting, setting
from flowdsl.certify.variant import bare
from flowdsl.checks.certificate import (
    CertificateReport,
)
from flowdsl.exact import (
    Posterior,
)
from flowdsl.pipeline import certified, load
from flowdsl.pipeline import compiled as compile_spec
from flowdsl.spec.objective import Objective

torch.set_num_threads(1)


SPECS = Path(__file__).parent.parent / "specs"
GOOD = Path(__file__).parent / "good"


@cache
def setting_of(spec: str) -> tuple[Objective, Setting]:
    plain = bare(load(spec)).objective
    return plain, setting(plain, compiled(plain, compile_spec))


@cache
def certificate(spec: str) -> CertificateReport:
    return certified(load(spec))


def kept_of(spec: str, term: str) -> Posterior:
    plain, where = setting_of(spec)
    own = next(t for t in plain.terms if t.name == term)
    kept = Kept.of(plain, own, where.places, where.numbers)
    assert kept is not None
    return kept.posterior(exact=True)
