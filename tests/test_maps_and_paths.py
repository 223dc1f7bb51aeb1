"""Paths, maps and what networks are shown: every right combination is proved, every wrong one is
not."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowdsl.checks import Report, check
from flowdsl.pipeline import load, load_text

GOOD = Path(__file__).parent / "good"


def judged(text: str) -> Report:
    return check(load_text(text), find=load)


def status(found: Report, name: str, term: str = "target") -> str:
    """The verdict of a check on a term; all its rows have the same one."""
    (one,) = {v.status for v in found.of(name) if v.term == term and v.status != "note"}
    return one


# networks that are not shown the time of their state

DURATION = """objective imf_like "improved MeanFlow without guidance" arXiv:2512.02012
path          z(t) = (1 - t) * data + t * noise
times         t, r ~ sorted(uniform(0, 1))
network       net(z, h) -> u, v
map           z(t) -> z(r) = z - (t - r) * u(z, t - r)
differentiate t along {along}
target        average: match u(z, t - r) {sign} (t - r) * {derivative} to stop(velocity)
              instant: match v(z, t - r) to stop(velocity)
loss          error
"""
LIVE, STOPPED = "d/dt[u(z, t - r)]", "stop(d/dt[u(z, t - r)])"


def duration(along: str, derivative: str, sign: str = "+") -> Report:
    return judged(DURATION.format(along=along, derivative=derivative, sign=sign))


@pytest.mark.parametrize(
    ("along", "derivative", "expected"),
    [
        ("v(z, 0)", LIVE, "proved"),
        ("v(z, 0)", STOPPED, "proved"),
        ("velocity", STOPPED, "proved"),
        ("velocity", LIVE, "biased"),
        ("stop(v(z, 0))", LIVE, "proved"),
    ],
)
def test_the_tangent_decides_whether_imf_is_biased(
    along: str, derivative: str, expected: str
) -> None:
    found = duration(along, derivative)
    assert status(found, "identity", "average") == "proved"
    assert status(found, "identity", "instant") == "proved"
    assert status(found, "unbiased", "average") == expected
    assert any("not shown the time of its state" in v.message for v in found.of("identity"))
    if expected == "biased":
        (left,) = [v.left_over for v in found.of("unbiased") if v.status == "biased"]
        assert left == "E <(t - r) * J g(z, t - r)[ξ], -J map(z, t, r)[ξ]>"


def test_a_wrong_sign_or_direction_is_found_without_the_time() -> None:
    wrong = duration("v(z, 0)", STOPPED, "-")
    (found,) = [v for v in wrong.of("identity") if v.term == "average"]
    assert (found.status, found.left_over) == ("refuted", "2 * (t - r) * d/dt[u(z, t - r)]")
    still = duration("v(z, 0)", "stop(d/dt[u(z, t - r) along none])")
    assert status(still, "identity", "average") == "refuted"
    end = duration("v(z, 0)", "stop(d/dr[u(z, t - r)])")
    assert status(end, "identity", "average") == "refuted"


def test_a_network_of_the_state_alone_learns_the_velocity() -> None:
    found = judged(
        """objective blind "velocity without its time" arXiv:2502.13129
path          z(t) = (1 - t) * data + t * noise
times         t ~ uniform(0, 1)
network       v(z)
target        match v(z) to velocity
loss          error
"""
    )
    (verdict,) = [v for v in found.of("identity") if v.term == "target"]
    assert verdict.status == "proved"
    assert any("not shown the time" in v.message for v in found.of("identity"))


# velocities under other conditions


@pytest.fixture(scope="module")
def imf() -> str:
    return (GOOD / "imf.flow").read_text()


def test_imf_with_its_guidance_as_a_condition(imf: str) -> None:
    found = judged(imf)
    assert found.ok, found.render()
    assert status(found, "identity", "average") == "proved"
    assert status(found, "anchored", "average") == "proved"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "own = v(z, 0 | omega = k, lo = 0, hi = 1)",
            "own = v(z, 0 | omega = k, lo = 0, hi = 0.3)",
        ),
        ("own = v(z, 0 | omega = k, lo = 0, hi = 1)", "own = v(z, 0 | omega = 3, lo = 0, hi = 1)"),
        ("(own - v(z, 0", "(own + v(z, 0"),
        ("along own", "along v(z, 0 | omega = 1, lo = 0, hi = 1)"),
        ("along own", "along v(z, 0 | omega = k, lo = 0, hi = 1, label = null)"),
    ],
)
def test_the_velocity_of_other_rows_is_not_the_own_one(imf: str, old: str, new: str) -> None:
    assert old in imf
    found = judged(imf.replace(old, new))
    assert not found.ok, found.render()
