"""Hints that are true: the caret on the piece that is wrong, and an edit that was proved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from flowdsl import pipeline, sources
from flowdsl.checks import Report
from flowdsl.diagnostics import Diagnostic, DiagnosticError, render
from flowdsl.repair.align import differences
from flowdsl.repair.edit import Edit, together
from flowdsl.syntax.layout import read_source

#: Whole specs, again and again: line coverage is measured by the tests of each part.
pytestmark = pytest.mark.untraced

#: Plenty: what is found must not depend on how busy the machine is.
SECONDS = 30.0


@dataclass(frozen=True)
class Slip:
    """A shipped spec with one slip of the hand; what the message must point to and say."""

    spec: str
    right: str
    wrong: str
    caret: str
    hint: str


TERM = "(t - r) * d/dt[u(z, t, r)]"
TARGET = f"guided - {TERM}"
SLIPS = {
    "sign": Slip("meanflow", "guided - (t", "guided + (t", "+", "replace `+` by `-`"),
    "factor": Slip("meanflow", TERM, TERM[10:], TERM[10:], "multiply by `(t - r)`"),
    "two": Slip("meanflow", "* d/dt", "* 2 * d/dt", "2", "drop the factor `2`"),
    "time": Slip("meanflow", "d/dt[u(z, t, r)]", "d/dr[u(z, t, r)]", "d/dr",
                 "write `d/dt[u(z, t, r)]`"),
    "tangent": Slip("meanflow", "t, r)])", "t, r) along none])", "none",
                    "write `d/dt[u(z, t, r)]`"),
    "argument": Slip("meanflow", "d/dt[u(z, t, r)]", "d/dt[u(z, t, t)]", "t",
                     "write `u(z, t, r)`"),
    "direction": Slip("meanflow", "differentiate t along guided", "differentiate t", "t",
                      "write `differentiate t along guided`"),
    "term": Slip("meanflow", TARGET, "guided", "guided", f"add `- {TERM}`"),
    "name": Slip("meanflow", f"stop({TARGET}", f"stop(velocity - {TERM}", "velocity",
                 "write `guided`"),
    "prediction": Slip("meanflow", "match u(z, t, r)", "match u(z, r, t)", "u(z, r, t)",
                       "write `u(z, t, r)`"),
    # with the map's sign turned, a network that learns minus the velocity is as right
    "map": Slip("meanflow", "z - (t - r) * u", "z + (t - r) * u", "guided",
                "write a `-` in front"),
    "pole": Slip("meanflow", "z - (t - r) * u", "z - (t - r)^2 * u", "2", "write `1`"),
    "stop": Slip("meanflow", f"stop({TARGET})", TARGET, TARGET, f"write `stop({TARGET})`"),
    "scale": Slip("tvm", "stop(w * slow", "stop(slow", "slow(map(z, t, s), s, s)",
                  "multiply by `w`"),
    "landing": Slip("tvm", "slow(map(z, t, s), s, s)", "slow(z, s, s)", "z",
                    "write `slow(map(z, t, s), s, s)`"),
    "condition": Slip("tvm", "slow(map(z, t, s), s, s)", "slow(map(z, t, s), s, s | w = 1)",
                      "slow(map(z, t, s), s, s | w = 1)", "write `slow(map(z, t, s), s, s)`"),
    "average": Slip("tvm", "stop(w * slow(map(z, t, s), s, s))", "w * slow(map(z, t, s), s, s)",
                    "w * slow(map(z, t, s), s, s)", "write `stop(w * slow(map(z, t, s), s, s))`"),
    "two terms": Slip("tvm", "z + (s - t) * w", "z + (t - s) * w", "+", "replace `+` by `-`"),
    "boundary": Slip("tvm", "(s - t) * w * F(z, t, s)", "w * F(z, t, s)", "w * F(z, t, s)",
                     "multiply by `(s - t)`"),
    "loss": Slip("tvm", "mse / w^2", "-mse / w^2", "-", "drop the `-`"),
    "inherited names": Slip("alphaflow", "goal = guided - (t", "goal = guided + (t", "+",
                            "replace `+` by `-`"),
    "weights": Slip("alphaflow", "(1 - alpha) * u", "alpha * u", "alpha", "write `1 - alpha`"),
    "middle": Slip("shortcut", "slow(middle, m, r)", "slow(middle, t, r)", "t",
                   "write `slow(middle, m, r)`"),
    "half": Slip("shortcut", "/ 2, -4", "/ 1, -4", "1", "write `2`"),
    # m is half-way: m - r is as right as t - m
    "let": Slip("shortcut", "z - (t - m) * first", "z - (t - r) * first", "t", "write `m`"),
}  # fmt: skip


def shipped(name: str) -> str:
    return (sources.shipped_folder() / f"{name}.flow").read_text()


def explained(text: str) -> Report:
    tree = pipeline.parse(read_source(text, "my.flow"))
    return pipeline.explained(pipeline.checked(pipeline.typed(tree)), tree, seconds=SECONDS)


def errors(report: Report) -> list[Diagnostic]:
    own = ("boundary", "identity", "unbiased", "gradient", "anchored")
    return [d for d in report.diagnostics if d.severity == "error" and d.code in own]


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS.keys())
def test_the_caret_stands_on_the_slip_and_the_hint_is_proved(slip: Slip) -> None:
    text = shipped(slip.spec)
    assert text.count(slip.right) >= 1
    wrong = text.replace(slip.right, slip.wrong, 1)
    report = explained(wrong)
    assert not report.ok
    for shown in errors(report):
        assert shown.span is not None
        assert (shown.span.text, shown.hint) == (slip.caret, slip.hint), render(shown)
        assert shown.fix
        mended = Edit(shown.fix, None, "", "").applied().text
        assert pipeline.checked(pipeline.load_text(mended)).ok, mended
    assert errors(report)


def test_a_dropped_anchor_is_written_out() -> None:
    lines = [x for x in shipped("tvm").splitlines() if not x.startswith("anchor")]
    (shown,) = errors(explained("\n".join(lines)))
    assert shown.hint == "add `anchor match w * F(z, t, t) to velocity`"
    mended = Edit(shown.fix, None, "", "").applied().text
    assert pipeline.checked(pipeline.load_text(mended)).ok


def test_one_mistake_on_several_kinds_of_rows_is_one_message() -> None:
    report = explained(shipped("meanflow").replace("z - (t - r) * u", "z + (t - r) * u"))
    (shown,) = errors(report)
    left = dict(shown.facts)["left over"].split("\n")
    assert len(left) == 3
    assert [len(x) for x in left] == sorted(len(x) for x in left)
    assert all(" on " in x for x in left)


def test_a_slip_in_an_inherited_text_is_shown_and_mended_there(tmp_path: Path) -> None:
    base = shipped("meanflow").replace("guided - (t", "guided + (t").replace("meanflow", "base")
    (tmp_path / "base.flow").write_text(base)
    (tmp_path / "child.flow").write_text("objective child extends base\nconstants omega = 2\n")
    tree = pipeline.parse(sources.find_source(str(tmp_path / "child.flow")))
    report = pipeline.checked(pipeline.typed(tree))
    (shown,) = errors(pipeline.explained(report, tree, seconds=SECONDS))
    assert shown.hint == "replace `+` by `-`"
    assert shown.span is not None
    assert shown.span.source.name.endswith("base.flow")


def test_without_time_the_derived_target_is_the_hint() -> None:
    text = shipped("meanflow").replace("guided - (t", "guided + (t")
    tree = pipeline.parse(read_source(text, "my.flow"))
    report = pipeline.checked(pipeline.typed(tree))
    (shown,) = errors(pipeline.explained(report, tree, seconds=0.0))
    assert shown.hint == "write the derived target"
    assert not shown.fix


@pytest.mark.parametrize(
    ("written", "required", "hint"),
    [
        ("a - b", "a + b", "replace `-` by `+`"),
        ("-a + b", "a + b", "drop the `-`"),
        ("a", "a - t * b", "add `- t * b`"),
        ("a + c * b", "a", "drop `+ c * b`"),
        ("a + b", "a + t * b", "multiply by `t`"),
        ("a + b", "a + b / t", "divide by `t`"),
        ("a + t * b", "a + b", "drop the factor `t`"),
        ("a + (r - t) * b", "a + (t - r) * b", "replace `+` by `-`"),
        ("a + u(x, t)", "a + u(x, r)", "write `u(x, r)`"),
        ("a + d/dt[u(x, t)]", "a + d/dr[u(x, t)]", "write `d/dr[u(x, t)]`"),
        ("a - b + c", "a + b - c", "replace `-` by `+`; replace `+` by `-`"),
    ],
)
def test_two_expressions_are_aligned(written: str, required: str, hint: str) -> None:
    found = together(differences(*map(pipeline.parse_rule, (written, required))))
    assert found.hint == hint


@pytest.mark.parametrize(("written", "required"), [("goal", "a - b"), ("a + b", "a + b")])
def test_what_has_nothing_in_common_or_no_difference_gives_no_edit(
    written: str, required: str
) -> None:
    assert not differences(*map(pipeline.parse_rule, (written, required)))


def test_inherited_lines_are_labelled_with_both_files(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = shipped("meanflow").replace("guided - (t", "guided + (t")
    (tmp_path / "base" / "base.flow").write_text(base)
    child = tmp_path / "child.flow"
    child.write_text("# mine\nobjective child extends base/base.flow\nconstants omega = 2\n")
    tree = pipeline.parse(sources.find_source(str(child)))
    (shown,) = errors(pipeline.checked(pipeline.typed(tree)))
    place = f"by {child}:2, from {tmp_path}/base/base.flow:14"
    assert dict(shown.facts)["inherited"] == place
    assert [name for name, _ in shown.facts].count("inherited") == 1


def test_errors_in_an_inherited_text_are_labelled_too(tmp_path: Path) -> None:
    (tmp_path / "base.flow").write_text(shipped("meanflow"))
    child = tmp_path / "child.flow"
    child.write_text("objective child extends base.flow\nnetwork u(z, t)\n")
    with pytest.raises(DiagnosticError) as caught:
        pipeline.load(child)
    (shown,) = caught.value.diagnostics
    assert dict(shown.facts)["inherited"].startswith(f"by {child}:1, from {tmp_path}/base.flow:")


def test_paths_of_what_is_extended_start_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.flow").write_text(shipped("meanflow").replace("meanflow", "base", 1))
    (tmp_path / "deep" / "child.flow").write_text("objective child extends ../base.flow\n")
    grandchild = 'objective grandchild extends deep/child.flow  "A title"  # a comment\n'
    (tmp_path / "grandchild.flow").write_text(grandchild)
    found = pipeline.load(tmp_path / "grandchild.flow")
    assert (found.extends, found.title) == ("deep/child.flow", "A title")
    assert found.terms == pipeline.load("meanflow").terms
