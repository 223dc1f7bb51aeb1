"""Frozen networks: what a teacher computes at the truth, and what it teaches."""

from __future__ import annotations

import pytest

from flowdsl.checks import Report, check
from flowdsl.pipeline import load, load_text


def judged(text: str) -> Report:
    return check(load_text(text), find=load)


def statuses(found: Report, name: str) -> set[str]:
    return {v.status for v in found.of(name) if v.status != "note"}


# teachers that see fewer conditions than their student

SCALED = """objective scaled "a student that is shown the scale of its guidance" arXiv:2506.14603
path          z(t) = (1 - t) * data + t * noise
times         t, s ~ sorted(uniform(0, 1))
conditions    scale ~ uniform(1, 3)
network       F(z, t, s | {shown}); teacher(z, t | label) frozen
map           z(t) -> z(s) = z + (s - t) * F(z, t, s)
differentiate t along {along}
target        match F(z, t, s) to stop({along} {sign} (t - s) * d/dt[F(z, t, s)])
loss          error
"""
PLAIN = "teacher(z, t)"
GUIDED = "classifier_free(teacher(z, t), teacher(z, t | label = null), scale)"


def scaled(along: str, shown: str = "label, scale", sign: str = "-") -> Report:
    return judged(SCALED.format(along=along, shown=shown, sign=sign))


@pytest.mark.parametrize("along", [PLAIN, GUIDED])
def test_a_teacher_need_not_see_the_numbers_that_its_student_sees(along: str) -> None:
    found = scaled(along)
    for name in ("identity", "unbiased", "anchored"):
        assert statuses(found, name) == {"proved"}, name


@pytest.mark.parametrize("along", [PLAIN, GUIDED])
def test_a_wrong_sign_under_a_teacher_stays_refuted(along: str) -> None:
    assert statuses(scaled(along, sign="+"), "identity") == {"refuted"}


def test_a_teacher_of_another_label_teaches_another_flow() -> None:
    found = scaled("teacher(z, t | label = null)")
    assert statuses(found, "identity") == {"refuted"}


def test_a_guided_flow_needs_its_scale() -> None:
    assert statuses(scaled(GUIDED, shown="label"), "identity") <= {"undecided", "refuted"}
