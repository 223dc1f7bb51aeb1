"""What a notebook shows, and what it is warned of."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

import flowdsl
from flowdsl.cli import app
from flowdsl.sources import shipped_folder

WRONG = (shipped_folder() / "meanflow.flow").read_text().replace("guided - (t", "guided + (t")
LOOSE = """objective loose
path z(t) = (1 - t) * data + t * noise
times t ~ uniform(0, 1)
network u(z, t)
target match u(z, t) to velocity
"""


def test_an_objective_shows_itself_in_short_and_its_derivation_in_latex() -> None:
    objective = flowdsl.load("meanflow")
    assert repr(objective) == "Objective(meanflow: networks u; terms target)"
    latex = objective._repr_latex_()
    assert latex is not None
    assert latex.startswith("$$\n\\begin{aligned}")
    assert latex.endswith("\\end{aligned}\n$$")
    assert "(t - r)" in objective._repr_html_()
    assert "t &lt; lo or t &gt; hi" in objective._repr_html_()
    assert flowdsl.loads(LOOSE)._repr_latex_() is None  # nothing implies its target


def test_a_report_shows_its_table_and_what_failed() -> None:
    good, bad = flowdsl.load("tvm").check(), flowdsl.loads(WRONG).check()
    assert repr(good) == "Report(tvm: all checks pass)"
    assert repr(bad).startswith("Report(meanflow: fails identity")
    assert str(good) == good.render()
    html = bad._repr_html_()
    assert html.count("<tr>") == len(bad.verdicts) + 1
    assert "<b>refuted</b>" in html
    assert "error[identity]" in html
    assert "<b>" not in good._repr_html_()
    assert "&lt;" in html.replace("<pre>", "") or "&gt;" in html


def test_a_graph_shows_its_picture() -> None:
    assert flowdsl.load("meanflow").graph()._repr_svg_().lstrip().startswith("<svg")


def test_compiling_what_is_not_proved_warns_once_asked_and_not_when_told_not_to() -> None:
    objective = flowdsl.loads(WRONG)
    with pytest.warns(flowdsl.NotProvedWarning, match=r"meanflow is not proved \(identity"):
        objective.compile()
    with warnings.catch_warnings():
        warnings.simplefilter("error", flowdsl.NotProvedWarning)
        objective.compile(check=False)
        flowdsl.load("tvm").compile()
        with pytest.raises(flowdsl.NotProvedWarning):
            objective.compile()


def test_the_command_line_says_it_in_its_own_words(tmp_path: Path) -> None:
    path = tmp_path / "mine.flow"
    path.write_text(WRONG)
    with warnings.catch_warnings():
        warnings.simplefilter("error", flowdsl.NotProvedWarning)
        done = CliRunner().invoke(app, ["train", str(path), "steps=1", "batch=8", "sample_steps=1",
                                        "tensorboard=no", "-o", str(tmp_path / "run")])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "warning: meanflow is not proved (identity" in done.output
    assert "data: 1,797 images of 8x8x1, 1,438 to train, 359 held out, 10 classes" in done.output
