"""One slip in a spec must not pass: a sample of the mutants of every spec, the same each time.

All of them are judged by `python -m tests.mutation_table`, and by this file with
FLOWDSL_ALL_MUTANTS=1 in the environment.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from flowdsl.syntax.format import format_tree
from tests.mutation_fates import Fate, judged, measured
from tests.mutation_page import page, summary
from tests.mutation_table import judge_all, kept
from tests.mutations import Mutant, base_tree, mutants, specs

#: The same code runs for thousands of mutants: tracing its lines triples the time, and shows none
#: that other tests do not.
pytestmark = pytest.mark.untraced

EVERY = bool(os.environ.get("FLOWDSL_ALL_MUTANTS"))
SAMPLE = 3  #: mutants of each spec, spread over its lines and kinds of change

#: Mutants that are not decided, and the limit that is why.
UNDECIDED = {
    "the guidance has no fixed point at these values of the constants":
        "a network that is guided by all of itself has no truth to be compared with",
    "how the loss depends on the error is not known":
        "a logarithm under a root is no rational function of the error",
    "what stands in the place of the noise has another law":
        "the mean given the state is then not that of the path's noise",
    "does not see enough to tell the map's times apart":
        "a network that is not shown a time computes no function of the map's two",
    "a scalar with more than": "two nested maps of a network with scaled inputs grow long",
    "may have a mean": "a noise with a mean moves the state in a way that is not followed",
}  # fmt: skip


def sample(spec: str) -> list[Mutant]:
    found = mutants(spec)
    if EVERY or len(found) <= SAMPLE:
        return found
    step = len(found) / SAMPLE
    return [found[int(k * step + step / 2)] for k in range(SAMPLE)]


@pytest.mark.parametrize("spec", specs())
def test_mutants_are_killed_or_equivalent(spec: str) -> None:
    for mutant in sample(spec):
        fate, objective, report = judged(mutant)
        assert fate.reason, mutant.name
        if fate.kind == "undecided":
            assert any(reason in fate.reason for reason in UNDECIDED), mutant.name
        if fate.kind == "another":  # accepted by proof alone: what the compiled loss does decides
            assert objective is not None
            assert report is not None
            found = measured(fate, objective, report)
            assert found.measured != "disagrees", f"{mutant.name}: {found.detail}"


WRONG = [
    ("meanflow", "stop(guided + (t - r) * d/dt[u(z, t, r)])", "identity"),
    ("meanflow", "-> match u(z, r, t) to stop(guided - (t - r) * d/dt[u(z, t, r)])", "identity"),
    ("meanflow", "to stop(guided - (t - r) * d/dt[u(z, t, r) along none])", "identity"),
    ("meanflow", "z - t * u(z, t, r)", "boundary"),
    ("shortcut", "velocity on diagonal  ->  (left out)", "anchored"),
    ("tvm", "on t > s  ->  match d/ds[map(z, t, s)] to stop(w * F", ""),
    ("tvm", "stop(w * slow(map(z, s, s), t, s)) on t > s", "identity"),
    ("tvm", "-> match w * F(z(q), q, q) to 2 * (w * velocity", "identity"),
    ("vp_diffusion", "sqrt(signal(t)^2 - 1)", "boundary"),
    ("ddpm", "(first - last) / (T - 1)", "boundary"),
    ("vp_diffusion", "-> match noise to epsilon(z, t)", ""),
    ("reflow", "flow(old, data, 1, 0", "times"),
    ("lagrangian_self_distillation", "-> match stop(v(z, t, t)) to velocity", "gradient"),
    ("tvm", "-> z(t) = (1 - gap) * data + t * noise", "boundary"),
    ("flow_map_lagrangian_distillation", "-> z(t) = (1 - t) * data + s * noise", "boundary"),
    ("free_flow", "-> s ~ uniform(0.5, 1)", "anchored"),
    ("free_flow", "-> s ~ uniform(0, 0.5)", "anchored"),
    ("tmd_meanflow", "-> s, r ~ sorted(shifted(uniform(1, 0), 3))", "anchored"),
    ("reflow", "-> t ~ uniform(0, 0.5)", "anchored"),
    ("reflow", "data = flow(old, noise, 1, 0, steps = 8)", ""),
]


@pytest.mark.parametrize(("spec", "change", "by"), WRONG)
def test_slips_of_each_kind_are_killed_by_the_check_that_is_about_them(
    spec: str, change: str, by: str
) -> None:
    found = [m for m in mutants(spec) if change.removeprefix("-> ") in m.change]
    assert found, [m.change for m in mutants(spec)]
    fates = [judged(m)[0] for m in found]
    if by:
        assert {f.kind for f in fates} == {"killed"}
        assert by in {f.by for f in fates}
    else:
        assert all(f.accepted for f in fates)  # live weights under stop, in place of their average


@pytest.mark.parametrize("spec", specs())
def test_mutants_differ_from_their_spec_and_from_each_other(spec: str) -> None:
    found = mutants(spec)
    texts = {m.text for m in found}
    assert len(texts) == len(found) > 20
    assert format_tree(base_tree(spec)) not in texts
    assert len({m.operator for m in found}) >= 8


def test_fates_are_kept_and_no_mutant_is_judged_twice(tmp_path: Path) -> None:
    work, file = mutants("rectified_flow")[:6], tmp_path / "fates" / "rectified_flow.jsonl"
    options = {"certify": True, "jobs": 1, "limit": 100.0, "keep": file}
    first = list(judge_all(work[:4], **options))
    file.write_text(file.read_text().replace('"reason": "', '"reason": "kept: '))
    again = list(judge_all(work, **options))
    assert [f.mutant for f in again] == work
    assert all(f.reason.startswith("kept: ") for f in again[:4])
    assert not any(f.reason.startswith("kept: ") for f in again[4:])
    assert list(kept(file).values()) == again
    assert [f.mutant for f in first] == work[:4]
    assert not list(judge_all(work, **{**options, "limit": -1.0, "keep": None}))


def test_what_was_judged_by_proof_alone_is_measured_when_that_is_asked_for(tmp_path: Path) -> None:
    work, file = mutants("rectified_flow")[:3], tmp_path / "rectified_flow.jsonl"
    options = {"jobs": 1, "limit": 100.0, "keep": file}
    alone = list(judge_all(work, certify=False, **options))
    assert any(f.proof_alone for f in alone)
    assert f"{sum(f.proof_alone for f in alone)} mutants were judged by proof alone" in page(
        alone, 0
    )
    both = list(judge_all(work, certify=True, **options))
    assert not any(f.proof_alone for f in both)
    assert set(map(str, kept(file).values())) == set(map(str, both))


def test_the_page_counts_every_mutant_once_and_tells_what_disagrees() -> None:
    one, two, three = mutants("rectified_flow")[:3]
    fates = [
        Fate(one, "killed", "identity", "refuted: x", "agrees", commit="abc"),
        Fate(two, "another", "", "proved", "disagrees", "so and so", commit="abc"),
        Fate(three, "undecided", "unbiased", "no law", "not measured", "no truth", commit="def"),
    ]
    cells = dict(zip(*(line.split() for line in _lines(summary(fates), 0, -1)), strict=False))
    assert (cells["mutants"], cells["killed"], cells["another"]) == ("3", "1", "1")
    written = page(fates, 7)
    assert "commit abc (2 mutants), commit def (1 mutants)" in written
    assert "7 mutants were not judged" in written
    assert f"- `{two.name}`: so and so" in written
    assert f"- `{three.name}`: no truth" in written
    assert Counter(written.split())["identity"] == 2  # once for the spec, once together


def _lines(table: str, *places: int) -> list[str]:
    """Lines of a table whose columns' names are single words here."""
    for name in ("as biased", "not measured", "measured alone", "too small to see", "killed by"):
        table = table.replace(name, name.replace(" ", "_"))
    lines = table.splitlines()
    return [lines[p] for p in places]
