"""Which maps that are not the data's each term rules out, what each term is needed for, and where
a theorem leaves one map only."""

from __future__ import annotations

import pytest

from flowdsl.calculus.errors import Clock
from flowdsl.calculus.state import FunctionAtom, MapAtom, VelocityAtom
from flowdsl.checks import check
from flowdsl.identities import IDENTITIES
from flowdsl.pipeline import load, load_text
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.uniqueness import objects, operator
from flowdsl.spec.objective import Objective

HEAD = """objective one "t" arXiv:1
path z(t) = (1 - t) * data + t * noise
times t, r ~ sorted(uniform(0, 1))
network u(z, t, r)
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
"""
ANCHOR = "match u(z, t, t) to velocity"
EULERIAN = "match u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])"
LAGRANGIAN = "match d/dr[map(z, t, r)] to stop(u(map(z, t, r), r, r))"
SEMIGROUP = "match map(z, t, r) to stop(map(map(z, t, m), m, r))"
STILL = "passes too"
CHARACTERISTICS, PICARD = "method of characteristics", "Picard-Lindelöf"


def spec(target: str, moving: str = "", *, anchor: str = ANCHOR, head: str = HEAD) -> str:
    lines = [head.rstrip()]
    lines += [f"differentiate {moving}"] if moving else []
    lines += [f"target {target}", *([f"anchor {anchor}"] if anchor else []), "loss mse", ""]
    return "\n".join(lines)


def halves(**more: str) -> str:
    return spec(SEMIGROUP, head=HEAD.replace("(0, 1))", "(0, 1)); m = (t + r) / 2"), **more)


def analysis_of(objective: Objective) -> Analysis:
    return Analysis(objective, tuple(IDENTITIES.values()), Clock(20.0))


def notes(text: str) -> dict[str, str]:
    """Every message of `anchored`, with its status."""
    return {v.message: v.status for v in check(load_text(text), only=["anchored"]).verdicts}


@pytest.mark.parametrize(
    ("text", "theorem"),
    [
        (spec(EULERIAN, "t along velocity"), CHARACTERISTICS),
        (spec(EULERIAN, "t along velocity", anchor=""), CHARACTERISTICS),  # ties by its border
        (spec(LAGRANGIAN, "r"), PICARD),
        (halves(), ""),
    ],
)
def test_a_theorem_is_cited_where_the_term_is_its_equation(text: str, theorem: str) -> None:
    found = " ".join(notes(text))
    for words in (CHARACTERISTICS, PICARD):
        assert (words in found) == (words == theorem)
    assert ("continuous in their times" in found) == (not theorem)
    assert (STILL in found) == (not theorem)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("velocity - (t - r)", "velocity + (t - r)"),
        ("velocity - (t - r)", "velocity - 2 * (t - r)"),
        ("stop(velocity", "stop(2 * velocity"),
        ("d/dt[u(z, t, r)]", "d/dt[u(z, t, r) along none]"),
    ],
)
def test_another_equation_is_no_theorem_s(old: str, new: str) -> None:
    text = spec(EULERIAN, "t along velocity")
    assert old in text
    wrong = analysis_of(load_text(text.replace(old, new)))
    assert all(operator(wrong, case) is None for case in wrong.all_cases())


@pytest.mark.parametrize("new", ["stop(u(z, r, r))", "stop(u(map(z, t, r), t, t))",
                                 "stop(2 * u(map(z, t, r), r, r))"])  # fmt: skip
def test_another_velocity_is_no_theorem_s(new: str) -> None:
    text = spec(LAGRANGIAN.replace("stop(u(map(z, t, r), r, r))", new), "r")
    wrong = analysis_of(load_text(text))
    assert all(operator(wrong, case) is None for case in wrong.all_cases())


def test_a_theorem_needs_the_boundary() -> None:
    """d/dr map = v(map) has a solution for every start: without F(z, t, t) = z it proves nothing.

    A map that learns its own boundary is not solved for its network on the diagonal, where its
    velocity is another network's.
    """
    free = HEAD.replace("= z - (t - r) * u(z, t, r)", "= u(z, t, r)").replace(
        "network u(z, t, r)", "network u(z, t, r); w(z, t) frozen"
    )
    text = spec("match d/dr[map(z, t, r)] to stop(w(map(z, t, r), r))", "r", anchor="", head=free)
    objective = load_text(text)
    analysis = analysis_of(objective)
    assert [operator(analysis, case) for case in analysis.all_cases()] == ["lagrangian"]
    assert PICARD not in " ".join(notes(text))


def test_which_term_rules_out_which_map() -> None:
    found = notes(spec(LAGRANGIAN, "r"))
    assert "another flow, the map that moves nothing: ruled out by anchor" in found
    assert "the map that moves nothing off the diagonal: ruled out by target" in found
    assert "without anchor every flow passes" in found
    halved = notes(halves())
    assert not any("off the diagonal: ruled out" in message for message in halved)
    both = notes(spec(EULERIAN, "t along velocity"))
    assert "another flow, the map that moves nothing: ruled out by target, anchor" in both
    assert not any("every flow passes" in message for message in both)
    assert any("still tie the flow" in message for message in both)


@pytest.mark.parametrize(("name", "term"), [("tvm", "anchor"), ("shortcut", "anchor")])
def test_without_a_needed_term_the_verdict_is_what_the_note_says(name: str, term: str) -> None:
    """The note is held to the verdict on the spec without that term."""
    objective = load(name)
    told = check(objective, only=["anchored"]).of("anchored")
    assert any(v.term == term and "every flow passes" in v.message for v in told)
    rest = Objective(**{**vars(objective),
                        "terms": tuple(t for t in objective.terms if t.name != term)})  # fmt: skip
    (message,) = [v.message for v in check(rest, only=["anchored"]).verdicts
                  if v.status == "unanchored"]  # fmt: skip
    assert message.startswith("every flow passes, whatever its velocity")


def test_the_map_that_stands_still_is_right_on_the_diagonal() -> None:
    analysis = analysis_of(load_text(halves()))
    target, anchor = analysis.all_cases()
    assert [objects(analysis, case, "still apart") for case in (target, anchor)] == [False, False]
    assert [objects(analysis, case, "zero") for case in (target, anchor)] == [False, True]


TEACHER = """objective distilled "t" arXiv:1
path z(t) = (1 - t) * data + t * noise
times t, r ~ sorted(uniform(0, 1))
network u(z, t, r); teacher(z, t, r) frozen
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
map guide: z(t) -> z(r) = z - (t - r) * teacher(z, t, r)
target match map(z, t, r) to stop(guide(z, t, r))
loss mse
"""


def test_a_frozen_teacher_keeps_its_own_flow() -> None:
    """Another flow in the student's map is no other flow in the teacher's."""
    objective = load_text(TEACHER)
    analysis = analysis_of(objective)
    (case,) = analysis.all_cases()
    study = analysis.study(case, kind="hat")
    fields = {a.field[0] for a in study.residual.atoms() if isinstance(a, MapAtom | VelocityAtom)}
    assert fields == {"hat", "flow"}
    assert objects(analysis, case, "hat")
    assert objects(analysis, case, "still apart")
    anchored = check(objective, only=["anchored"]).verdicts
    assert "every flow passes" not in " ".join(v.message for v in anchored)


def test_an_arbitrary_map_is_arbitrary() -> None:
    analysis = analysis_of(load_text(spec(EULERIAN, "t along velocity", anchor="")))
    (case,) = analysis.all_cases()
    atoms = list(analysis.study(case, kind="any apart").residual.atoms())
    assert any(isinstance(a, FunctionAtom) for a in atoms)
    assert not any(isinstance(a, MapAtom) for a in atoms)


def test_a_single_term_says_what_it_rules_out() -> None:
    text = spec(EULERIAN, "t along velocity", anchor="")
    still = "the map that moves nothing, the map that moves nothing off the diagonal"
    assert f"{still}: ruled out by target" in notes(text)
    velocity = check(load("rectified_flow"), only=["anchored"])
    assert not any("ruled out" in v.message for v in velocity.verdicts)  # it has no map


@pytest.mark.parametrize(
    ("name", "boundary"),
    [
        ("meanflow", "J F[v] = 0 with F(z, t, t) = z"),
        ("continuous_consistency_training", "J F[v] = 0 with F(z, 0) = z"),
        ("free_flow", "v(F, s) with F(z, 1) = z"),
    ],
)
def test_a_theorem_names_the_boundary_of_its_map(name: str, boundary: str) -> None:
    told = [v.message for v in check(load(name), only=["anchored"]).verdicts]
    assert any(boundary in message for message in told)
    assert not any("BOUNDARY" in message for message in told)
