"""Terms that are minimised get a verdict of their own, which claims no more than is known."""

from __future__ import annotations

from flowdsl.checks import Report, check
from flowdsl.pipeline import load_text

GAN = """objective gan_like "a flow map with a discriminator" arXiv:2601.09881
path          z(t) = (1 - t) * data + t * noise
times         t, r ~ sorted(uniform(0.01, 1)); q ~ uniform(0.01, 1); noise' ~ normal(0, 1)
network       F(z, t, r); judge(z, t) -> scalar; phi(t) -> scalar
map           z(t) -> z(r) = z - (t - r) * F(z, t, r)
let           x = z(q | data = map(noise, 1, 0), noise = noise')
differentiate t along velocity
target        derived
{extra}
loss          error
"""


def judged(extra: str) -> Report:
    return check(load_text(GAN.format(extra=extra)), only=["identity"])


def said(found: Report, term: str) -> str:
    (verdict,) = [v for v in found.of("identity") if v.term == term]
    assert verdict.status == "note"
    assert verdict.message.startswith("no identity is claimed")
    return verdict.message


def test_a_discriminator_is_constant_at_the_truth() -> None:
    found = judged("critic        minimise softplus(judge(x, q)) + softplus(-judge(z(q), q))")
    message = said(found, "critic")
    assert "judge is constant and passes no gradient" in message
    assert "that the law is reached is not proved" in message
    assert found.ok


def test_a_sample_that_is_judged_without_new_noise() -> None:
    found = judged("critic        minimise softplus(-judge(map(noise, 1, 0), r))")
    assert "judge is constant" in said(found, "critic")


def test_a_term_that_compares_laws_without_a_judge() -> None:
    found = judged("correction    minimise norm(x - z(q))")
    assert "whether this term is then at its minimum is not proved" in said(found, "correction")


def test_a_number_and_a_plain_penalty_claim_nothing() -> None:
    found = judged("critic        minimise phi(t)^2\ncorrection    minimise norm(F(z, t, r))")
    for term in ("critic", "correction"):
        assert said(found, term).endswith("where this term is at its minimum is not proved")


def test_a_matched_term_has_no_such_note() -> None:
    found = judged("")
    assert not [v for v in found.verdicts if "no identity is claimed" in v.message]
