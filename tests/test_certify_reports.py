"""A measurement is judged by its errors, and compared with the proof."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from certify_support import certificate, kept_of, setting_of

from flowdsl.certify.decay import decay_of
from flowdsl.certify.measure import Effort, judged, measure, moment
from flowdsl.checks import Report, Verdict
from flowdsl.checks.certificate import (
    LOSS_REPLACED,
    CertificateReport,
    Decay,
    Measurement,
    TermCertificate,
    expected,
    with_certificate,
)
from flowdsl.cli import main
from flowdsl.diagnostics import render
from flowdsl.exact import (
    Certificate,
)
from flowdsl.pipeline import compiled as compile_spec

torch.set_num_threads(1)


# --- a proof and a measurement ---


def measured(outcome: str, *, error: float = 0.01, decay: Decay | None = None) -> CertificateReport:
    one = Measurement("", "zero" if outcome == "zero" else "nonzero", 9.0, 0.2, error, 100, 0.1)
    term = TermCertificate("target", outcome, "told", (), (one,), decay)  # type: ignore[arg-type]
    return CertificateReport("o", (term,))


def proved(identity: str, unbiased: str = "proved", order: int | None = None) -> Report:
    return Report("o", "", (
        Verdict("identity", identity, "m", "target", order=order),  # type: ignore[arg-type]
        Verdict("unbiased", unbiased, "m", "target"),  # type: ignore[arg-type]
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("report", "outcome", "status"),
    [
        (proved("proved"), "zero", "certified"),
        (proved("proved", "note"), "zero", "certified"),
        (proved("proved"), "nonzero", "disagreement"),
        (proved("proved"), "decays", "disagreement"),
        (proved("proved", "biased"), "nonzero", "refuted"),
        (proved("refuted"), "nonzero", "refuted"),
        (proved("refuted"), "zero", "note"),  # smaller than could be seen
        (proved("undecided"), "zero", "certified"),
        (proved("undecided"), "nonzero", "refuted"),
        (proved("proved"), "unclear", "note"),
        (proved("proved"), "not measured", "not applicable"),
        (proved("order", "order", 2), "zero", "certified"),
        (proved("order", "order", 2), "nonzero", "note"),
    ],
)
def test_proofs_and_measurements_are_compared(report: Report, outcome: str, status: str) -> None:
    decay = Decay("a", (0.8, 0.4), 1.9, 0.1) if outcome == "decays" else None
    (verdict,) = with_certificate(report, measured(outcome, decay=decay)).of("certificate")
    assert verdict.status == status


@pytest.mark.parametrize(
    ("report", "outcome", "error", "status"),
    [
        (proved("proved", "biased"), "nonzero", 1e-2, "refuted"),
        (proved("proved", "biased"), "zero", 1e-2, "note"),  # too coarse to contradict
        (proved("proved", "biased"), "zero", 1e-4, "disagreement"),
        (proved("proved", "biased"), "unclear", 1e-2, "note"),
        (proved("order", "biased", 2), "nonzero", 1e-2, "refuted"),
        (proved("refuted", "biased"), "nonzero", 1e-2, "disagreement"),  # it is the residual's
        (proved("proved"), "zero", 1e-4, "certified"),
        (proved("proved"), "nonzero", 1e-2, "disagreement"),
        (proved("proved", "note"), "nonzero", 1e-2, "certified"),  # robust, and known to be
    ],
)
def test_a_replaced_loss_is_compared_as_it_is_written(
    report: Report, outcome: str, error: float, status: str
) -> None:
    whole = measured("zero", error=1e-4)
    written = Measurement("", outcome, 9.0, 0.2, error, 100, 0.1)  # type: ignore[arg-type]
    term = replace(whole.terms[0], replaced=(LOSS_REPLACED,), as_written=written)
    joined = with_certificate(report, CertificateReport("o", (term,)))
    assert [v.status for v in joined.of("certificate")] == [status]


def test_orders_are_compared() -> None:
    report = proved("order", "order", 2)
    right = with_certificate(report, measured("decays", decay=Decay("a", (0.8, 0.4), 1.7, 0.2)))
    assert [v.shown for v in right.of("certificate")] == ["order 2"]
    wrong = with_certificate(report, measured("decays", decay=Decay("a", (0.8, 0.4), 0.6, 0.1)))
    assert [v.status for v in wrong.of("certificate")] == ["disagreement"]


def test_a_disagreement_is_loud_and_asks_to_be_reported() -> None:
    joined = with_certificate(proved("proved"), measured("nonzero"))
    assert not joined.ok
    (diagnostic,) = joined.diagnostics
    text = render(diagnostic)
    assert "contradict each other" in text
    assert "a bug in flowdsl, not in the spec: please report it" in text
    assert "the versions of flowdsl and torch" in text
    sharp = with_certificate(proved("refuted"), measured("zero", error=1e-4))
    assert [v.status for v in sharp.of("certificate")] == ["disagreement"]


def test_a_disagreement_is_told_by_the_command_and_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flowdsl.pipeline.certified", lambda _: measured("nonzero"))
    monkeypatch.setattr("sys.argv", ["flowdsl", "check", "flow_matching", "--certify"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "contradict each other" in shown
    assert "please report it" in shown


def test_expectations_come_from_identity_and_unbiased() -> None:
    assert expected(proved("proved"), "target") == "zero"
    assert expected(proved("proved", "biased"), "target") == "nonzero"
    assert expected(proved("order"), "target") == "order"
    assert expected(proved("undecided"), "target") == "unknown"
    assert expected(proved("proved"), "other") == "unknown"


# --- the statistics ---


def table_of(bias: float, size: float, seed: int = 0, batches: int = 40) -> Certificate:
    """Gradients of `batches` batches in four directions, with a mean and a spread."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batches, 4, generator=generator, dtype=torch.float64)
    table = bias + size * noise
    error = table.std(0) / math.sqrt(batches)
    return Certificate(
        ("u[0]", "u[1]", "u[2]", "u[3]"), tuple(table.mean(0).tolist()), tuple(error.tolist()),
        (1.0,) * 4, 1e-6, 100, batches, 0.1, 1.0, table=table,
    )  # fmt: skip


def test_measurements_are_judged_by_their_errors() -> None:
    assert judged(table_of(0.0, 0.05), "").outcome == "zero"
    assert judged(table_of(0.1, 0.05), "").outcome == "nonzero"
    assert judged(table_of(0.0, 5.0), "").outcome == "unclear"  # too coarse to say zero
    assert judged(table_of(0.04, 0.05), "").outcome in ("unclear", "nonzero")
    assert judged(table_of(1e-4, 1e-6), "").outcome == "unclear"  # clear, but next to nothing


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_a_decay_is_found(order: int) -> None:
    sizes = [0.8, 0.4]
    tables = [table_of(s**order, 0.1 * s, seed=7) for s in sizes]
    found = decay_of("a", sizes, tables)
    assert found is not None
    assert abs(found.order - order) < 4 * found.error + 0.05
    assert found.error < 0.5


def test_no_order_is_told_where_nothing_is_seen() -> None:
    assert decay_of("a", [0.8, 0.4], [table_of(0.0, 1.0, 1), table_of(0.0, 1.0, 2)]) is None


def test_a_measurement_is_repeated_with_more_rows_only_where_it_is_not_clear() -> None:
    plain, where = setting_of("flow_matching")
    loss = compile_spec(plain)
    exact = kept_of("flow_matching", "target")
    one, _ = measure(loss, where, moment(1.0), Effort(rows=256, batches=20, posterior=exact))
    assert one.rows == 256 * 20
    coarse, _ = measure(loss, where, moment(1.0), Effort(rows=16, batches=8))
    assert coarse.rows == 16 * 8 * 4


def test_replaced_reports_keep_their_fields() -> None:
    found = certificate("flow_matching")
    assert replace(found, seconds=0.0).terms == found.terms
    assert found.of("nothing") is None
