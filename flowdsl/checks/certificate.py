"""The certificate: what was measured on an exact flow, beside what was proved.

Records of a measurement (made in `flowdsl/certify`, which needs torch), and their verdicts: the
pseudo-check `certificate`, one verdict per term. Where a proof and a measurement contradict each
other, flowdsl is wrong somewhere, and says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from flowdsl.checks.report import Report, Status, Verdict
from flowdsl.diagnostics import Diagnostic

NAME = "certificate"
SHARP = 2e-3  #: standard error, in shares of the scale, below which a measured zero is one

Outcome = Literal["zero", "decays", "nonzero", "unclear", "not measured"]


@dataclass(frozen=True)
class Measurement:
    """One mean gradient at the truth: of one loss, at one moment or value of a parameter.

    `z` is the largest |z-score| of all directions and of all at once; `relative` the largest mean
    gradient in units of what a network displaced by one unit of its direction would see, `error`
    the largest standard error in the same units: what could have been seen.
    """

    at: str
    outcome: Literal["zero", "nonzero", "unclear"]
    z: float
    relative: float
    error: float
    rows: int
    seconds: float

    @property
    def text(self) -> str:
        where = f" at {self.at}" if self.at else ""
        return f"|z| {self.z:.1f}, {self.relative:.2%} of its scale (± {self.error:.2%}){where}"


@dataclass(frozen=True)
class Decay:
    """How the mean gradient falls with a small quantity: like its power `order` (± `error`)."""

    small: str
    values: tuple[float, ...]
    order: float
    error: float


@dataclass(frozen=True)
class TermCertificate:
    """One term: whether its mean gradient vanishes at the truth, and how that was found out.

    `replaced` says what was measured in place of the term as it is written; `as_written` is the
    same statistic for the very loss, where that is another one.
    """

    term: str
    outcome: Outcome
    reason: str
    replaced: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    decay: Decay | None = None
    as_written: Measurement | None = None

    @property
    def sharp(self) -> bool:
        """Could a small mean gradient have been seen: does a measured zero contradict one?"""
        return bool(self.measurements) and all(m.error < SHARP for m in self.measurements)

    @property
    def seconds(self) -> float:
        own = sum(m.seconds for m in self.measurements)
        return own + (self.as_written.seconds if self.as_written else 0.0)


@dataclass(frozen=True)
class CertificateReport:
    """The certificate of one objective: the compiled loss, measured on an exact flow."""

    objective: str
    terms: tuple[TermCertificate, ...]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """No term was measured to have a mean gradient at the truth, or left in doubt."""
        return all(t.outcome in ("zero", "decays", "not measured") for t in self.terms)

    def of(self, term: str) -> TermCertificate | None:
        """The certificate of one term."""
        return next((t for t in self.terms if t.term == term), None)

    def render(self) -> str:
        """One line per term and measurement."""
        lines = [f"certificate of {self.objective}, on an exact flow ({self.seconds:.1f} s)"]
        for term in self.terms:
            lines.append(f"  {term.term}: {term.outcome}: {term.reason}")
            lines += [f"    measured with {clause}" for clause in term.replaced]
            lines += [f"    {m.outcome}: {m.text}, {m.rows} rows" for m in term.measurements]
            if term.as_written is not None:
                lines.append(f"    the loss as it is written: {term.as_written.text}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The report as plain data, for `--json`."""
        return {
            "objective": self.objective,
            "ok": self.ok,
            "seconds": round(self.seconds, 2),
            "terms": [asdict(term) for term in self.terms],
        }


#: What the proof of a term lets a measurement expect.
Expected = Literal["zero", "order", "nonzero", "unknown"]


def certified(report: Report, certificate: CertificateReport) -> Report:
    """The report with a verdict `certificate` for every term that was measured."""
    found = tuple(_verdict(report, certificate, term) for term in certificate.terms)
    return Report(report.objective, report.title, (*report.verdicts, *found))


def expected(report: Report, term: str) -> Expected:
    """What the verdicts of `identity` and `unbiased` on a term say about its mean gradient."""
    statuses = {v.status for name in ("identity", "unbiased") for v in report.of(name)
                if v.term == term}  # fmt: skip
    if not statuses or "undecided" in statuses:
        return "unknown"
    if statuses & {"refuted", "biased"}:
        return "nonzero"
    return "order" if "order" in statuses else "zero"


def _verdict(report: Report, certificate: CertificateReport, term: TermCertificate) -> Verdict:
    hoped = expected(report, term.term)
    status, message = _compared(report, hoped, term)
    shown = _with_numbers(term, message)
    diagnostic = None
    if status == "disagreement":
        facts = [("proof", _proof_text(hoped))]
        facts += [("measured", m.text) for m in term.measurements]
        diagnostic = Diagnostic(
            NAME,
            f"the proof and the measurement of `{term.term}` contradict each other",
            facts=tuple(facts),
            hint="this is a bug in flowdsl: please report it, with this spec",
        )
    return Verdict(NAME, status, shown, term.term, order=_order(term, status),
                   seconds=term.seconds, diagnostic=diagnostic)  # fmt: skip


def _order(term: TermCertificate, status: Status) -> int | None:
    return round(term.decay.order) if term.decay is not None and status == "order" else None


def _compared(report: Report, hoped: Expected, term: TermCertificate) -> tuple[Status, str]:
    """The status of a measured term, given what its proof lets expect."""
    match term.outcome, hoped:
        case "not measured", _:
            return "not applicable", f"not measured: {term.reason}"
        case "unclear", _:
            return "note", term.reason
        case "zero", "nonzero" if term.sharp:
            return "disagreement", f"{term.reason}, though the proof says it does not"
        case "zero", "nonzero":
            return "note", "what the proof leaves over is too small to be seen"
        case "zero", _:
            return "certified", term.reason
        case "decays", "order":
            return _orders(report, term)
        case "nonzero", "order" if term.decay is None:
            return "note", f"{term.reason}; how it falls was not seen"
        case "decays" | "nonzero", "zero" | "order":
            return "disagreement", f"{term.reason}, though the proof says it does"
        case "decays", _:
            return "order", term.reason
    return "refuted", term.reason


def _orders(report: Report, term: TermCertificate) -> tuple[Status, str]:
    """Does the gradient fall as fast as the proof says?"""
    assert term.decay is not None
    proved = {v.order for v in report.of("identity") if v.term == term.term and v.order}
    slack = max(0.75, 3 * term.decay.error)
    if any(abs(term.decay.order - order) <= slack for order in proved):
        return "order", term.reason
    told = " or ".join(str(order) for order in sorted(proved))
    return "disagreement", f"{term.reason}, though the proof says to order {told}"


def _proof_text(hoped: Expected) -> str:
    return {
        "zero": "the mean gradient is zero at the truth",
        "order": "the mean gradient falls with a power of a small quantity",
        "nonzero": "the mean gradient is not zero at the truth",
    }.get(hoped, "undecided")


def _with_numbers(term: TermCertificate, message: str) -> str:
    """The sentence, with the numbers it rests on."""
    parts = [message]
    parts += [m.text for m in term.measurements]
    if term.replaced:
        parts.append("measured with " + ", ".join(term.replaced))
    if term.as_written is not None:
        parts.append(f"the loss as it is written: {term.as_written.text}")
    return "; ".join(parts)
