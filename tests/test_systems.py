"""Every shipped system: equal to its published loss, and the words that describe it are current.

The references in `tests/reference` are plain torch written from the papers, on the same draws, in
float64: the value, every term, and the gradient of every parameter agree to 1e-10.
"""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import flowdsl
from flowdsl.checks import Report
from flowdsl.cli import app, family, methods
from flowdsl.cli.measured import METRIC, read, write
from flowdsl.cli.runs import compile_saved
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.data import load_dataset
from flowdsl.runtime.metrics.sliced_wasserstein import sliced_wasserstein
from flowdsl.runtime.runs import SampleRequest, sample_run
from tests.compiler_support import batch, networks, outcome
from tests.reference import diffusion
from tests.reference.catalogue import REFERENCES

#: Whole specs, again and again: line coverage is measured by the tests of each part.
pytestmark = pytest.mark.untraced

WITH_TERMS = [name for name in flowdsl.shipped() if flowdsl.load(name).typed.terms]
SHAPE, ROWS, STEPS = (2, 3, 3), 24, 100
QUICK = "batch=16 sample_every=0 checkpoint_every=0 log_every=1 tensorboard=no sample_steps=1"
DOCS = Path(__file__).parent.parent / "docs"
PAGE, MEASURED = DOCS / "methods.md", DOCS / "measured.json"


def test_every_system_has_a_reference() -> None:
    assert set(REFERENCES) >= set(WITH_TERMS)


@cache
def compiled(name: str, optimize: bool, shipped: bool) -> flowdsl.Loss:
    constants = {} if shipped else REFERENCES[name][1]
    return flowdsl.load(name).compile(optimize=optimize, constants=constants)


@pytest.mark.parametrize(
    ("name", "shipped"),
    [(n, True) for n in WITH_TERMS] + [(n, False) for n in WITH_TERMS if REFERENCES[n][1]],
    ids=lambda x: x if isinstance(x, str) else "" if x else "other constants",
)
def test_compiled_equals_published(name: str, shipped: bool) -> None:
    objective = flowdsl.load(name).typed
    reference, constants = REFERENCES[name]
    known = {k: float(v) for k, v in objective.constants.items()} | ({} if shipped else constants)
    accepted = inspect.signature(reference).parameters
    nets, (data, label) = networks(objective, SHAPE), batch(ROWS, SHAPE)
    for progress in (0.0, 0.45, 0.7, 1.0):
        step = round(STEPS * progress)
        training = {"progress": progress, "step": step, "steps": STEPS}
        given = known | ({"step": step} if "step" in accepted else {})
        given = {k: v for k, v in given.items() if k in accepted}
        generator = torch.Generator().manual_seed(11 + step)
        draws = compiled(name, True, shipped).draw(data, generator=generator, **training)
        value, terms = reference(nets, data, draws, label, progress, **given)
        wanted = outcome(terms, value, nets)
        largest = max(float(g.abs().max()) for g in wanted.gradients.values())
        assert largest > 1e-4  # the comparison would mean nothing on vanishing gradients
        for optimize in (True, False):
            loss = compiled(name, optimize, shipped)
            value, terms = loss(nets, data, draws=draws, label=label, **training)
            found = outcome(terms, value, nets)
            assert found.terms == pytest.approx(wanted.terms, rel=1e-10, abs=1e-12)
            for parameter, gradient in wanted.gradients.items():
                torch.testing.assert_close(
                    found.gradients[parameter],
                    gradient,
                    rtol=1e-10,
                    atol=1e-10 * largest,
                    msg=lambda text, p=parameter: f"{name}: {p}: {text}",
                )


#: Objectives whose solution is knowingly another one than the map, and the checks that say so.
BIASED = {
    "trajectory_flow_matching": {"identity", "unbiased"},
    "tmd_distribution": {"identity"},
}


#: Objectives whose samples were no better after training, and why.
UNIMPROVED: dict[str, str] = {}


@cache
def report_of(name: str) -> Report:
    return flowdsl.load(name).check()


@pytest.mark.parametrize("name", flowdsl.shipped())
def test_verdicts(name: str) -> None:
    """Every check passes, or fails for the reason that the spec itself names."""
    report = report_of(name)
    failed = {v.check for v in report.verdicts if not v.ok}
    assert failed == BIASED.get(name, set()), report.render()
    assert not [v for v in report.verdicts if v.status == "undecided"]


@pytest.mark.parametrize("name", flowdsl.shipped())
def test_one_command_trains_and_samples(name: str, tmp_path: Path) -> None:
    """Every shipped spec, its teachers first: two steps a stage, numbers that are finite."""
    stages = flowdsl.load(name).stages()
    steps = 2 * max((math.ceil(1 / s.share) for s in stages), default=1)
    words = ["train", name, "-q", "--out", str(tmp_path / "run"), f"steps={steps}"]
    done = CliRunner().invoke(app, words + QUICK.split())
    assert done.exit_code == 0, done.output
    runs = sorted(p.parent for p in (tmp_path / "run").rglob("metrics.jsonl"))
    assert len(runs) == max(1, len(stages))
    for run in runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] >= 2
        assert all(math.isfinite(v) for x in lines for v in x.values() if isinstance(v, float))
        assert not any(x.get("skipped") for x in lines)
    assert list(runs[-1].glob("samples/*.png"))


SELF_DISTILLED = (
    "lagrangian_self_distillation",
    "eulerian_self_distillation",
    "progressive_self_distillation",
    "progressive_self_distillation_midpoint",
)


@pytest.mark.parametrize("name", SELF_DISTILLED)
def test_a_learned_weight_cannot_drown_the_anchor(name: str) -> None:
    """At v = 0, a consistent flow but the wrong one, distilled rows have no error: however far the
    weight's network goes, the loss stays bounded, and diagonal rows keep their gradient.
    """
    loss = flowdsl.load(name).compile()
    data = 3 * torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    draws = loss.draw(data, generator=torch.Generator().manual_seed(1))
    for extreme in (-50.0, 0.0, 50.0):
        v = torch.zeros((), requires_grad=True)
        called = {
            "v": lambda z, t, s, v=v: v * z,
            "w": lambda t, s, extreme=extreme: torch.full_like(t, extreme),
        }
        value, terms = loss(called, data, draws=draws)
        (gradient,) = torch.autograd.grad(value, v)
        assert abs(terms["target"]) <= 0.26  # a quarter of the rows, |w| <= 1
        assert gradient.abs() > 1


def test_self_distillation_learns_the_digits(tmp_path: Path) -> None:
    """With a weight of any size, one step's samples ended as far from the data as they began."""
    name, run = "progressive_self_distillation", tmp_path / "run"
    words = QUICK.replace("batch=16", "batch=64").split()
    trained = CliRunner().invoke(
        app, ["train", name, "-q", "--out", str(run), "steps=120", "optimizer.warmup=20", *words]
    )
    assert trained.exit_code == 0, trained.output
    drawn = sample_run(run, compile_saved, SampleRequest(steps=(1,))).states[1].flatten(0, 1)
    real = load_dataset("digits").held_out.first(len(drawn)).data
    grey = torch.zeros_like(drawn)  # what fresh networks make of the noise is no better
    assert sliced_wasserstein(drawn, real) < 0.4 * sliced_wasserstein(grey, real)


def test_the_page_of_methods_is_current(accept: bool) -> None:
    compare = methods.page(read(MEASURED), lambda objective: report_of(objective.name))
    if accept:
        PAGE.write_text(compare)
    assert compare == PAGE.read_text(), "run: flowdsl methods -o docs/methods.md"


def test_what_was_measured_improved() -> None:
    """Every figure of the page is that of a shipped objective, with its picture, and better than
    at the start in the fewest steps; `improved` is no constant.
    """
    found = read(MEASURED)
    assert set(found) <= set(flowdsl.shipped())
    assert {file.stem for file in (DOCS / "samples").glob("*.png")} == set(found)
    assert {name for name, one in found.items() if not one.improved()} == set(UNIMPROVED)
    for one in found.values():
        swapped = replace(one, before=one.after, after=one.before)
        assert swapped.improved() != one.improved()
        assert len(one.before) == len(one.after) == one.sampled().count(",") + 1
        assert all(f.values[METRIC] > one.floor[METRIC] / 2 for f in one.after)
        assert one.certificate, "run: python benchmarks/judge.py"
        assert one.reference is not None
        assert one.reference < 1e-10


def test_figures_are_read_as_written(tmp_path: Path) -> None:
    found = dict(list(read(MEASURED).items())[:2])
    write(tmp_path / "figures.json", found)
    assert read(tmp_path / "figures.json") == found
    assert read(tmp_path / "none.json") == {}
    (tmp_path / "figures.json").write_text('{"meanflow": {"steps": 1}}')
    with pytest.raises(DiagnosticError, match="cannot be read"):
        read(tmp_path / "figures.json")


def test_the_list_is_a_family_and_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    members = dict(family.family())
    assert list(members) != sorted(members)
    assert set(members) == set(flowdsl.shipped())
    assert (members["meanflow"], members["alphaflow"], members["alphaflow_xl"]) == (0, 1, 2)
    first = family.row("trajectory_flow_matching", 2)
    assert (first.verdict, first.differentiates, first.lines) == ("biased", "t", 3)
    assert first.identity == "tangent"
    (kept,) = tmp_path.rglob("*.json")
    monkeypatch.setattr(family, "describe", None)  # nothing is asked again
    assert family.row("trajectory_flow_matching", 1) == replace(first, depth=1)
    kept.write_text("{")
    with pytest.raises(TypeError):
        family.row("trajectory_flow_matching", 2)


@pytest.mark.parametrize(
    ("bound", "status"),
    [
        ("s = t - part * (t - r)", "proved"),
        ("s = (1 - part) * t + part * r", "proved"),
        ("s = t - 1.5 * part * (t - r)", "refuted"),
        ("s = min(t, part)", "proved"),
        ("s = max(r, min(t, part))", "proved"),
        ("s = min(t, part) - r", "refuted"),
        ("s = max(t, part + r)", "refuted"),
        ("s = part * part * t", "proved"),
        ("s = part - part * part", "undecided"),
    ],
)
def test_times_between_others(bound: str, status: str) -> None:
    """Draws that multiply others, and the smaller of two draws, stay in the path or do not."""
    found = flowdsl.loads(
        "objective x extends meanflow\nrows\nconditions\n"
        f"times t, r ~ sorted(uniform(0, 1)); part ~ uniform(0, 1); {bound}\n"
        "guidance\ndifferentiate t along velocity\ntarget match u(z, s, s) to velocity(z(s))"
    ).check(only=["times"])
    assert {v.status for v in found.verdicts} == {status}, found.render()


def test_ddpm_schedule_is_within_what_its_spec_says() -> None:
    near, exact = (diffusion.log_products(1e-4, 0.02, 1000, terms=n) for n in (2, None))
    assert 6e-4 < float((near - exact).abs().max()) < 7e-4  # of the log: relative, of the product
    assert math.isclose(math.exp(float(exact[-1])), 4.036e-5, rel_tol=1e-3)
