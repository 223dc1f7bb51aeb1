"""Paths, maps and what networks are shown: every right combination is proved, every wrong one is
not."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowdsl.checks import Report, check
from flowdsl.pipeline import load, load_text

#: Whole specs, again and again: line coverage is measured by the tests of each part.
pytestmark = pytest.mark.untraced

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


# every map on every path

PATHS = {  # the path, the law's range, and the factors of data and noise at a time
    "linear": ("(1 - t) * data + t * noise", "0.02, 0.98", "(1 - {0})", "{0}"),
    "data at the end": ("t * data + (1 - t) * noise", "0.02, 0.98", "{0}", "(1 - {0})"),
    "trigonometric": ("cos(t) * data + sin(t) * sd * noise", "0.02, 1.5", "cos({0})",
                      "(sd * sin({0}))"),
    "cosine": ("cos(1.5 * t) * data + sin(1.5 * t) * noise", "0.02, 0.98", "cos(1.5 * {0})",
               "sin(1.5 * {0})"),
    "variance preserving": ("sqrt(1 - t^2) * data + t * noise", "0.02, 0.98", "sqrt(1 - {0}^2)",
                            "{0}"),
    "variance exploding": ("data + t * noise", "0.02, 80", "1", "{0}"),
    "somebody's own": ("(1 - t^3) * data + t^2 * noise", "0.02, 0.98", "(1 - {0}^3)", "{0}^2"),
}  # fmt: skip
MAPS = {
    "average velocity": "z - (t - r) * F(z, t, r)",
    "displacement": "z + (r^2 - t^2) * F(z, t, r)",
    "scaled": "z + (r - t) * w * F(z, t, r)",
    "rotation": "cos(t - r) * z - sin(t - r) * sd * F(z / sd, t, r)",
    "data": "{sr} / {st} * z + ({ar} - {at} * {sr} / {st}) * F(z, t, r)",
    "noise": "{ar} / {at} * z + ({sr} - {st} * {ar} / {at}) * F(z, t, r)",
    "duration": "z - (t - r) * F(z, t - r)",
}


def combined(path: str, flow_map: str, moving: str) -> str:
    body, law, alpha, sigma = PATHS[path]
    factors = {f"{name}{time}": form.format(time) for time in "tr"
               for name, form in (("a", alpha), ("s", sigma))}  # fmt: skip
    return f"""objective combined "a map on a path" arXiv:2505.13447
constants     sd = 0.5; w = 2
path          z(t) = {body}
times         t, r ~ sorted(uniform({law}))
network       {"F(z, h)" if flow_map == "duration" else "F(z, t, r)"}
map           z(t) -> z(r) = {MAPS[flow_map].format(**factors)}
differentiate {moving}
target        derived
loss          error
"""


@pytest.mark.parametrize("flow_map", MAPS)
@pytest.mark.parametrize("path", PATHS)
def test_derived_targets_are_proved_and_those_along_a_wrong_direction_refuted(
    path: str, flow_map: str
) -> None:
    for moving, expected in (
        ("t along velocity", {("eulerian",)}),
        ("r", {("lagrangian",)}),
        ("t along 2 * velocity", set()),
    ):
        found = check(load_text(combined(path, flow_map, moving)), only=["boundary", "identity"])
        (verdict,) = [v for v in found.of("identity") if v.term == "target"]
        assert all(v.status == "proved" for v in found.of("boundary") if v.term == "map")
        assert verdict.status == ("proved" if expected else "refuted"), (moving, verdict)
        assert expected <= set(verdict.identities)


def test_continuous_consistency_with_its_roots() -> None:
    found = judged(
        """objective consistency "continuous-time consistency" arXiv:2303.01469
constants     sd = 0.5
path          z(t) = data + t * noise
times         t ~ uniform(0.01, 80)
network       F(x, t)
map           z(t) -> z(0) = sd^2 / (t^2 + sd^2) * z + sd * t / sqrt(sd^2 + t^2) * F(z / sqrt(sd^2 + t^2), t)
differentiate t along velocity
target        derived
loss          error
"""  # noqa: E501
    )
    assert status(found, "identity") == "proved"
    assert status(found, "unbiased") == "proved"
    assert status(found, "anchored") == "proved"
