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
#: The clause that says a loss was replaced, and nothing else of a term.
LOSS_REPLACED = "the plain squared error in place of its loss"
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
        size = f"{_share(self.relative)} of its scale (± {_share(self.error)})"
        return f"|z| {self.z:.1f}, {size}{where}"


def _share(value: float) -> str:
    """A share in per cent, with two digits that tell."""
    return f"{100 * value:.2g} %"


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
    same statistic for the very loss, where that is another one and the plain gradient vanishes;
    `elsewhere` that at the flow of another field, which must not vanish for every term.
    """

    term: str
    outcome: Outcome
    reason: str
    replaced: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    decay: Decay | None = None
    as_written: Measurement | None = None
    elsewhere: Measurement | None = None

    @property
    def ties(self) -> bool | None:
        """Does the term object to the flow of another field? None where that was not seen."""
        other = self.elsewhere
        if other is None or other.outcome == "unclear" or other.error > SHARP:
            return None if other is None or other.outcome != "nonzero" else True
        return other.outcome == "nonzero"

    @property
    def sharp(self) -> bool:
        """Could a small mean gradient have been seen: does a measured zero contradict one?"""
        return bool(self.measurements) and all(m.error < SHARP for m in self.measurements)

    @property
    def seconds(self) -> float:
        beside = (self.as_written, self.elsewhere)
        return sum(m.seconds for m in (*self.measurements, *beside) if m is not None)


@dataclass(frozen=True)
class CertificateReport:
    """The certificate of one objective: the compiled loss, measured on an exact flow."""

    objective: str
    terms: tuple[TermCertificate, ...]
    seconds: float = 0.0

    @property
    def tied(self) -> bool | None:
        """Does some term object to the flow of another field? None where that was not seen."""
        told = [term.ties for term in self.terms]
        if True in told:
            return True
        return False if told and set(told) == {False} else None

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
            if term.elsewhere is not None:
                lines.append(f"    at another field's flow: {term.elsewhere.text}")
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

#: A proof beside a measurement. What is too small, or was measured too coarsely, contradicts
#: nothing; nor does a measurement alone.
Agreement = Literal["agrees", "too small to see", "disagrees", "measured alone", "not measured"]


def with_certificate(report: Report, certificate: CertificateReport) -> Report:
    """The report with a verdict `certificate` for every term, and one for their anchoring."""
    found = [_verdict(report, certificate, term) for term in certificate.terms]
    found += _anchoring(report, certificate)
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


def agreement(report: Report, term: TermCertificate) -> Agreement:
    """How the measurement of a term stands to what is proved of it."""
    return _compared(report, expected(report, term.term), term)[0]


def _verdict(report: Report, certificate: CertificateReport, term: TermCertificate) -> Verdict:
    hoped = expected(report, term.term)
    word, status, message = _compared(report, hoped, term)
    shown = _with_numbers(term, f"{word}: {message}")
    diagnostic = None
    if word == "disagrees":
        facts = [("proof", _proof_text(hoped))]
        facts += [("measured", m.text) for m in term.measurements]
        if term.as_written is not None:
            facts.append(("as written", term.as_written.text))
        diagnostic = _disagreement(
            f"the proof and the measurement of `{term.term}` contradict each other", facts
        )
    return Verdict(NAME, status, shown, term.term, order=_order(term, status),
                   seconds=term.seconds, diagnostic=diagnostic)  # fmt: skip


def _disagreement(message: str, facts: list[tuple[str, str]]) -> Diagnostic:
    report = ("report", "this message, the spec, and the versions of flowdsl and torch")
    return Diagnostic(
        NAME, message, facts=(*facts, report),
        hint="this is a bug in flowdsl, not in the spec: please report it",
    )  # fmt: skip


def _anchoring(report: Report, certificate: CertificateReport) -> list[Verdict]:
    """Whether another field's flow passes, beside what the check `anchored` says."""
    if certificate.tied is None:
        return []
    statuses = {v.status for v in report.of("anchored")}
    if certificate.tied:
        message = "the flow of another field does not pass"
        return [Verdict(NAME, "certified", f"agrees: {message}" if statuses else message)]
    message = "the flow of another field passes too: every term vanishes there"
    if not statuses & {"unanchored", "undecided"} and "proved" in statuses:
        diagnostic = _disagreement(
            "the proof and the measurement of what ties the flow to the data contradict each other",
            [("proof", "the data's flow is the only solution"), ("measured", message)],
        )
        return [Verdict(NAME, "disagreement", f"disagrees: {message}", diagnostic=diagnostic)]
    return [Verdict(NAME, "unanchored", f"agrees: {message}" if statuses else message)]


def _order(term: TermCertificate, status: Status) -> int | None:
    return round(term.decay.order) if term.decay is not None and status == "order" else None


def _compared(
    report: Report, hoped: Expected, term: TermCertificate
) -> tuple[Agreement, Status, str]:
    """How a measured term stands to its proof, its status, and why."""
    if term.outcome == "zero" and term.replaced and _by_its_loss(report, term.term):
        return _written(term)
    if term.outcome == "zero" and hoped == "zero" and _contradicted(report, term):
        return "disagrees", "disagreement", _WRITTEN_MOVES
    match term.outcome, hoped:
        case "not measured", _:
            return "not measured", "not applicable", term.reason
        case "unclear", _:
            return "too small to see", "note", term.reason
        case "zero", "nonzero" if term.sharp:
            return "disagrees", "disagreement", f"{term.reason}, though the proof says it does not"
        case "zero", "nonzero":
            return "too small to see", "note", "what the proof leaves over is not seen"
        case "zero", "unknown":
            return "measured alone", "certified", term.reason
        case "zero", _:
            return "agrees", "certified", term.reason
        case "decays", "order":
            return _orders(report, term)
        case "nonzero", "order" if term.decay is None:
            return "too small to see", "note", f"{term.reason}; how it falls was not seen"
        case "decays" | "nonzero", "zero" | "order":
            return "disagrees", "disagreement", f"{term.reason}, though the proof says it does"
        case "decays", _:
            return "measured alone" if hoped == "unknown" else "agrees", "order", term.reason
    return "measured alone" if hoped == "unknown" else "agrees", "refuted", term.reason


#: What the loss itself does where the plain squared error has no mean gradient.
_WRITTEN_MOVES = (
    "the mean gradient of the plain squared error vanishes, that of the loss as it is written "
    "does not"
)


def _statuses(report: Report, name: str, term: str) -> set[Status]:
    return {v.status for v in report.of(name) if v.term == term}


def _by_its_loss(report: Report, term: str) -> bool:
    """Is a term biased though its residual has the mean zero? What biases it may then be a part of
    its loss that was not measured, or gradient through its target, which was."""
    right = not _statuses(report, "identity", term) & {"refuted", "biased", "undecided"}
    return right and "biased" in _statuses(report, "unbiased", term)


def _written(term: TermCertificate) -> tuple[Agreement, Status, str]:
    """A bias that was not seen with the plain squared error, in the loss as it is written."""
    found = term.as_written
    if found is not None and found.outcome == "nonzero":
        return "agrees", "refuted", _WRITTEN_MOVES
    if found is not None and found.outcome == "zero" and found.error < SHARP:
        message = f"{term.reason}, also of the loss as it is written, though the proof says it "
        return "disagrees", "disagreement", message + "does not"
    return "too small to see", "note", "the bias of the loss as it is written is not seen"


def _contradicted(report: Report, term: TermCertificate) -> bool:
    """Does the loss move, though it is proved of the loss as it is written, not of its residual
    alone, that it does not?"""
    written = term.as_written
    if written is None or written.outcome != "nonzero" or term.replaced != (LOSS_REPLACED,):
        return False
    return _statuses(report, "unbiased", term.term) == {"proved"}


def _orders(report: Report, term: TermCertificate) -> tuple[Agreement, Status, str]:
    """Does the gradient fall as fast as the proof says?"""
    assert term.decay is not None
    proved = {v.order for v in report.of("identity") if v.term == term.term and v.order}
    slack = max(0.75, 3 * term.decay.error)
    if any(abs(term.decay.order - order) <= slack for order in proved):
        return "agrees", "order", term.reason
    told = " or ".join(str(order) for order in sorted(proved))
    return "disagrees", "disagreement", f"{term.reason}, though the proof says to order {told}"


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
