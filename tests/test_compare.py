"""Two objectives side by side: equalities of the literature as right twins, and wrong twins beside
them whose difference must be printed."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from exact_rows import Rows, average, probe
from typer.testing import CliRunner

from flowdsl.calculus.errors import Clock
from flowdsl.checks import Report, check
from flowdsl.cli import app
from flowdsl.diagnostics import DiagnosticError
from flowdsl.identities import IDENTITIES
from flowdsl.pipeline import compared, load, load_text
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.compare import compare
from flowdsl.sources import shipped_folder
from flowdsl.spec.objective import Claim, Objective
from tests.mutations import source_of

HEAD = """objective {name} "t" arXiv:1
path z(t) = {path}
times t, r ~ sorted(uniform(0, 1)){times}
network {network}
map z(t) -> z({end}) = {map}
differentiate t along {along}
{rest}
"""


@cache
def spec(
    rest: str,
    name: str = "one",
    *,
    path: str = "(1 - t) * data + t * noise",
    times: str = "",
    network: str = "u(z, t, r)",
    body: str = "z - (t - r) * u(z, t, r)",
    end: str = "r",
    along: str = "velocity",
    constants: str = "",
) -> Objective:
    text = HEAD.format(name=name, path=path, times=times, network=network, end=end, map=body,
                       along=along, rest=rest)  # fmt: skip
    return load_text(text + (f"constants {constants}\n" if constants else ""))


def answers(report: Report) -> dict[str, str]:
    """`value` and `gradient` -> the worst status of each."""
    found: dict[str, str] = {}
    for verdict in report.verdicts:
        words = re.match(r"same (\w+) as", verdict.message)
        if verdict.status == "note":  # how rows are drawn
            continue
        assert words is not None, verdict.message
        known = found.get(words[1])
        if known in (None, "proved"):
            found[words[1]] = verdict.status
    return found


def text(report: Report) -> str:
    return " | ".join(v.reason for v in report.verdicts)


# MeanFlow = trajectory flow matching + trajectory consistency + a constant

D = "d/dt[u(z, t, r)]"
MEANFLOW = f"target match u(z, t, r) to stop(velocity - (t - r) * {D})\nloss error"
PARTS = f"""target flow: match u(z, t, r) to stop(velocity)
       consistency: minimise 2 * (t - r) * dot(u(z, t, r), stop({D}))
loss flow: error"""


def test_meanflow_is_flow_matching_plus_consistency_plus_a_constant() -> None:
    found = compared(spec(MEANFLOW), spec(PARTS, "other"))
    assert answers(found) == {"gradient": "proved", "value": "refuted"}
    (value,) = [v for v in found.verdicts if "same value" in v.message]
    assert "moves no network" in value.message
    # what the two losses differ by: (t - r)^2 |du/dt|^2 - 2 (t - r) <du/dt, velocity>
    assert "(t - r)^2 * <∂t u(z, t, r), ∂t u(z, t, r)>" in value.left_over
    assert "ξ" in value.left_over
    backwards = compared(spec(PARTS, "other"), spec(MEANFLOW))
    assert answers(backwards) == {"gradient": "proved", "value": "refuted"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("minimise 2 *", "minimise -2 *"),
        ("minimise 2 *", "minimise"),
        ("stop(velocity)", "stop(-velocity)"),
        (f"stop({D})", D),
        ("(t - r) * dot", "(t + r) * dot"),
        ("flow: error", "flow: error / 2"),
    ],
)
def test_wrong_sums_are_told_apart(old: str, new: str) -> None:
    assert PARTS.count(old) == 1
    found = compared(spec(MEANFLOW), spec(PARTS.replace(old, new), "other"))
    assert answers(found) == {"gradient": "refuted", "value": "refuted"}
    (gradient,) = [v for v in found.verdicts if "same gradient" in v.message]
    assert "gradients differ by" in gradient.left_over
    assert re.search(r"<(∂t |J )?g\(z, t, r\)", gradient.left_over)
    assert gradient.diagnostic is not None


def test_the_sum_has_the_gradient_in_numbers_too() -> None:
    rows = Rows(spec(MEANFLOW), np.array([0.4, -0.3]) + 0j, {"t": 0.75, "r": 0.2}, {
        "u": lambda x, t, r: 1.1 * average(x, t, r) + 0.3 * probe(x, r, t)
    })  # fmt: skip
    one = rows.gradient(spec(MEANFLOW).terms[0].loss)
    parts = [rows.gradient(term.loss) for term in spec(PARTS, "other").terms]
    assert abs(one) > 0.05
    assert abs(one - sum(parts)) < 1e-6
    assert abs(one - parts[0]) > 0.01


# MeanFlow's loss for u, and iMF's for V

COMPOUND = "target average: match u(z, t, r) + (t - r) * stop({d}) to stop(velocity)\n"


@pytest.mark.parametrize("along", ["velocity", "u(z, t, t)"])
def test_compound_velocity_is_meanflow_at_equal_tangent(along: str) -> None:
    imf = spec(COMPOUND.format(d=D) + "loss error", "imf", along=along)
    assert answers(compared(spec(MEANFLOW, along=along), imf)) == {
        "gradient": "proved",
        "value": "proved",
    }


def test_compound_velocity_with_another_tangent_or_alive_is_not() -> None:
    imf = spec(COMPOUND.format(d=D) + "loss error", "imf", along="u(z, t, t)")
    found = compared(spec(MEANFLOW), imf)
    assert answers(found) == {"gradient": "refuted", "value": "refuted"}
    assert "J u(z, t, r)[u(z, t, t)]" in text(found)
    live = spec(COMPOUND.format(d=D).replace("stop(d", "(d") + "loss error", "live")
    found = compared(spec(MEANFLOW), live)
    assert answers(found)["gradient"] == "refuted"
    assert "variations differ by" in text(found)


def test_a_term_can_be_left_out() -> None:
    extra = "anchor instant: match u(z, t, t) to velocity\nloss error"
    imf = spec(COMPOUND.format(d=D) + extra, "imf")
    assert answers(compared(spec(MEANFLOW), imf, upto="instant"))["gradient"] == "proved"
    assert answers(compared(spec(MEANFLOW), imf, upto="anchor"))["gradient"] == "proved"
    found = compared(spec(MEANFLOW), imf)
    assert answers(found)["gradient"] == "refuted"
    assert "<g(z, t, t), " in text(found)
    claimed = load_text(
        (HEAD.format(name="m", path="(1 - t) * data + t * noise", times="", network="u(z, t, r)",
                     end="r", map="z - (t - r) * u(z, t, r)", along="velocity", rest=MEANFLOW))
        + "claims same gradient as imf up to instant\n"
    )  # fmt: skip
    (verdict,) = check(claimed, only=["claims"], find=lambda _: imf).verdicts
    assert verdict.status == "proved"
    assert verdict.message.startswith("same gradient as imf up to instant: ")


# two half steps

SEMIGROUP = """target first = u(z, t, m); rest = u(z - (t - m) * first, m, r)
       match u(z, t, r) to stop({w} * first + (1 - {w}) * rest)
loss mse"""


def test_shortcut_is_the_semigroup_at_half() -> None:
    general = spec(SEMIGROUP.format(w="k"), times="; m = t - k * (t - r)", constants="k = 0.3")
    half = spec(
        "target first = u(z, t, m); "
        "match u(z, t, r) to stop((first + u(z - (t - m) * first, m, r)) / 2)\nloss mse",
        "shortcut",
        times="; m = (t + r) / 2",
    )
    assert answers(compared(general, half, at="k = 1/2")) == {
        "gradient": "proved",
        "value": "proved",
    }
    assert answers(compared(general, half, at="k = 1/3"))["gradient"] == "refuted"
    assert answers(compared(general, half))["gradient"] == "refuted"


def test_the_semigroup_tends_to_meanflow_with_its_own_velocity() -> None:
    general = spec(SEMIGROUP.format(w="k"), times="; m = t - k * (t - r)", constants="k = 0.3")
    own = spec(MEANFLOW.replace("velocity", "u(z, t, t)"), "meanflow", along="u(z, t, t)")
    found = compared(general, own, near="k = 0")
    assert answers(found)["gradient"] == "proved"
    wrong = spec(MEANFLOW.replace("velocity - ", "u(z, t, t) + "), "meanflow", along="u(z, t, t)")
    found = compared(general, wrong, near="k = 0")
    assert answers(found)["gradient"] == "refuted"
    assert "residuals differ by" in text(found)


# consistency training

BODY = {"linear": "z - t * f(z, t)", "exploding": "z - t * f(z, t)",
        "trigonometric": "cos(t) * z - sin(t) * f(z, t)"}  # fmt: skip
PATHS = {"linear": "(1 - t) * data + t * noise", "exploding": "data + t * noise",
         "trigonometric": "cos(t) * data + sin(t) * noise"}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_discrete_consistency_training_tends_to_the_continuous(path: str) -> None:
    def made(rest: str, name: str) -> Objective:
        return spec(
            rest, name, path=PATHS[path], network="f(z, t)", body=BODY[path], end="0",
            times="; s = t - h", constants="h = 0.01",
        )  # fmt: skip

    discrete = made("target match map(z, t, 0) to stop(map(z(s), s, 0))\nloss mse / h", "discrete")
    continuous = made(
        "target match map(z, t, 0) to stop(map(z, t, 0) - d/dt[map(z, t, 0)])\nloss mse", "cont"
    )
    assert answers(compared(discrete, continuous, near="h = 0"))["gradient"] == "proved"
    wrong = made(
        "target match map(z, t, 0) to stop(map(z, t, 0) + d/dt[map(z, t, 0)])\nloss mse", "wrong"
    )
    found = compared(discrete, wrong, near="h = 0")
    assert answers(found)["gradient"] == "refuted"
    assert "-1 times the other" in text(found)
    still = made("target match map(z, t, 0) to stop(map(z, s, 0))\nloss mse", "still")
    assert answers(compared(still, continuous, near="h = 0"))["gradient"] == "refuted"


# the shipped ones


@pytest.mark.parametrize(
    ("one", "other", "place", "same"),
    [
        ("alphaflow", "trajectory_flow_matching", {"at": "alpha=1"}, True),
        ("alphaflow", "trajectory_flow_matching", {"at": "alpha=0.5"}, False),
        ("alphaflow", "meanflow", {"near": "alpha=0"}, True),
        ("alphaflow", "meanflow", {"at": "alpha=0"}, True),
        ("alphaflow", "meanflow", {"at": "alpha=1"}, False),
        ("meanflow", "trajectory_flow_matching", {}, False),
        ("meanflow", "meanflow", {}, True),
        ("tvm", "tvm", {}, True),
        ("shortcut", "shortcut", {}, True),
        ("tvm", "meanflow", {}, False),
    ],
)
def test_shipped_objectives(one: str, other: str, place: dict[str, str], same: bool) -> None:
    try:
        found = compared(load(one), load(other), **place)  # type: ignore[arg-type]
    except DiagnosticError as error:  # pragma: no cover - for the message
        pytest.fail(str(error))
    status = answers(found)["gradient"]
    assert (status == "proved") == same, text(found)


def test_another_path_is_another_objective() -> None:
    """The same formula on another path has another velocity."""
    other = spec(MEANFLOW, "other", path="data + t * noise")
    found = compared(spec(MEANFLOW), other)
    assert answers(found) == {"gradient": "refuted", "value": "refuted"}
    assert "different paths" in text(found)
    turned = spec(MEANFLOW, "other", path="t * noise + (1 - t) * data")
    assert answers(compared(spec(MEANFLOW), turned))["gradient"] == "proved"


def test_scaled_losses_have_parallel_gradients() -> None:
    other = spec(MEANFLOW.replace("loss error", "loss 3 * error / (1 + t)"), "other")
    found = compared(spec(MEANFLOW), other)
    assert answers(found) == {"gradient": "proved", "value": "refuted"}
    assert "positive weight" in text(found)
    turned = spec(MEANFLOW.replace("loss error", "loss -3 * error"), "other")
    assert answers(compared(spec(MEANFLOW), turned))["gradient"] == "refuted"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("logit_normal(-0.4, 1.0)", "uniform(0, 1)", "`t, r ~ sorted(uniform(0, 1))`"),
        ("share(0.75)", "share(0.5)", "`diagonal ~ share(0.5)`"),
        ("omega = 1.0; kappa", "share = 0.75; omega = 1.0; kappa", ""),  # the same by another name
    ],
)
def test_rows_that_are_drawn_otherwise_are_told(old: str, new: str, told: str) -> None:
    source = source_of("meanflow").text
    assert old in source
    text = source.replace(old, new).replace("objective meanflow", "objective other")
    if not told:
        text = text.replace("share(0.75)", "share(share)")
    report = compared(load("meanflow"), load_text(text))
    assert all(v.status == "proved" for v in report.verdicts if v.status != "note")
    notes = [v.message for v in report.verdicts if v.status == "note"]
    assert bool(notes) == bool(told)
    assert all("row by row only: " in note and told in note for note in notes)


def test_the_command_answers_and_exits() -> None:
    run = CliRunner().invoke
    yes = run(app, ["compare", "alphaflow", "trajectory_flow_matching", "--at", "alpha=1"])
    assert yes.exit_code == 0
    assert "weights included" in yes.stdout
    no = run(app, ["compare", "meanflow", "trajectory_flow_matching"])
    assert no.exit_code == 1
    assert "differ" in no.stdout
    part = run(app, ["compare", "tvm", "tvm", "--up-to", "anchor"])
    assert part.exit_code == 0


def test_long_differences_are_cut_and_both_files_are_named(tmp_path: Path) -> None:
    first, second = (tmp_path / f"{name}.flow" for name in ("old", "new"))
    text = (shipped_folder() / "meanflow.flow").read_text().replace("meanflow", "mine", 1)
    first.write_text(text)
    second.write_text(text.replace("guided - (t", "velocity - (t"))
    done = CliRunner().invoke(app, ["compare", str(first), str(second)])
    heading, *lines = done.output.splitlines()
    assert heading == "mine (old.flow) beside mine (new.flow)"
    assert all("as new" in line for line in lines if " refuted " in line)
    done = CliRunner().invoke(app, ["compare", "uaimf", "imf"])
    assert done.output.startswith("uaimf (uaimf.flow) beside imf (imf.flow)\n")
    assert max(map(len, done.output.splitlines())) < 420
    assert "more terms" in done.output
    assert " here" not in done.output


def test_two_calls_that_look_the_same_are_told_by_their_conditions() -> None:
    report = compared(load("meanflow"), load("meanflow_cifar"))
    left = [v.left_over for v in report.verdicts if v.left_over]
    assert left
    assert "u(z, t, t | label = null) - u(z, t, t)" in left[0]


def test_a_time_that_is_a_sum_in_one_spec_alone_is_the_same_time() -> None:
    """On a straight path the velocity is one for all times; that `gap` is seen changes no other."""
    spec = (shipped_folder() / "tvm.flow").read_text()
    changed = spec.replace("velocity(z(q))", "velocity(z(gap))")
    assert changed != spec
    analysis = Analysis(load_text(spec), tuple(IDENTITIES.values()), Clock(20.0))
    pairs = compare(analysis, load_text(changed), Claim("gradient", "tvm", "always"))
    assert pairs
    assert all(pair.same for pair in pairs)
