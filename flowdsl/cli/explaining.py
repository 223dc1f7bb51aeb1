"""`check --explain`: what a check means, with examples."""

from __future__ import annotations

from textwrap import indent

from flowdsl.checks import CHECKS
from flowdsl.checks.certificate import NAME as CERTIFICATE
from flowdsl.checks.check import COMMON
from flowdsl.diagnostics import did_you_mean, fail


def explain_check(name: str) -> str:
    """What a check means, with a spec that passes it and one that does not."""
    if name == CERTIFICATE:
        return _CERTIFICATE
    if name not in CHECKS:
        raise fail(
            "command",
            f"there is no check `{name}`",
            hint=did_you_mean(name, (*CHECKS, CERTIFICATE))
            or f"checks: {', '.join((*CHECKS, CERTIFICATE))}",
        )
    check = CHECKS[name]
    shown = check.example
    parts = [
        f"{name}: {check.question}",
        check.explanation.strip(),
        f"passes:\n\n{indent(shown.good, '    ')}",
        f"is {shown.status}:\n\n{indent(shown.bad, '    ')}",
    ]
    if shown.other:
        parts.append(f"where `other` has\n\n{indent(shown.other, '    ')}")
    parts.append(f"each in the place of these lines:\n\n{indent(COMMON.rstrip(), '    ')}")
    return "\n\n".join(parts)


_CERTIFICATE = """\
certificate: Does the compiled loss do what was proved?

`flowdsl check SPEC --certify` runs the loss that `flowdsl compile` writes, beside the proof: on the
exact flow of a Gaussian mixture, where the true map and its derivatives are known. At the truth the
mean gradient of a term must vanish where `identity` and `unbiased` are proved, and must not where
they are refuted or biased. A row of the table is one term; the last row is all terms at the flow of
another field, where some term must have a gradient (see `anchored`).

    |z| 1.3, 0.02 % of its scale (± 0.05 %)

says: in random directions of the networks the mean gradient is at most 1.3 standard errors from
zero; it is 0.02 % of what a network displaced by one such direction would see; and 0.05 % is one
standard error in that unit, the least that could have been seen.

agrees             certified: the measurement is what the proof says, zero, or falling with a power
                   of a small quantity (order 2), or not zero for a term that is refuted
too small to see   a note: what the proof leaves over is smaller than the error of the measurement
measured alone     nothing was proved, or it was undecided: the measurement stands for itself
not measured       not applicable: no truth is known on an exact flow, as for a discriminator
disagrees          a bug in flowdsl, not in the spec; the message asks you to report it

"measured with the plain squared error in place of its loss" says what was replaced: a weight that
depends on the sample's own error shifts the mean by design, so the residual is measured without it,
and beside it "the loss as it is written"."""
