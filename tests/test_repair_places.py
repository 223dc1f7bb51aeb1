"""Hints away from the target: times, paths, curricula and claims; and two slips at once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowdsl import pipeline
from flowdsl.calculus.inequalities import Affine, Bound, extent, implies
from flowdsl.checks import Report
from flowdsl.diagnostics import Diagnostic, render
from flowdsl.repair.edit import Edit
from flowdsl.sources import find_source, shipped_folder
from flowdsl.syntax.layout import read_source

SECONDS = 30.0  #: what is found must not depend on how busy the machine is

COMMON = {
    "path": "z(t) = (1 - t) * data + t * noise",
    "times": "t, r ~ sorted(uniform(0, 1))",
    "network": "u(z, t, r)",
    "map": "z(t) -> z(r) = z - (t - r) * u(z, t, r)",
    "differentiate": "t",
    "target": "match u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])",
}
WARM = "match u(z, t, r) to stop(velocity - warm * (t - r) * d/dt[u(z, t, r)])"
STEPS = "t ~ uniform(0, 1); gap ~ uniform(0, {end}); r = t {sign} gap"
TERM = "(t - r) * d/dt[u(z, t, r)]"


def spec(**lines: str) -> str:
    return "\n".join(["objective mine", *(f"{k} {v}" for k, v in {**COMMON, **lines}.items())])


def errors(text: str, name: str = "my.flow") -> list[Diagnostic]:
    tree = pipeline.parse(read_source(text, name))
    report = pipeline.checked(pipeline.typed(tree))
    assert not report.ok
    return shown(pipeline.explained(report, tree, seconds=SECONDS))


def shown(report: Report) -> list[Diagnostic]:
    return [d for d in report.diagnostics if d.severity == "error"]


def mended(diagnostic: Diagnostic) -> Report:
    text = Edit(diagnostic.fix, None, "", "").applied().text
    return pipeline.checked(pipeline.load_text(text))


ONE = {
    "too far": ({"times": STEPS.format(sign="-", end=1)}, "times",
                "uniform(0, 1)", "write `gap ~ uniform(0, t)`"),
    "off the path": ({"times": "t ~ uniform(0, 2); r ~ uniform(0, t)"}, "times",
                     "uniform(0, 2)", "write `t ~ uniform(0, 1)`"),
    "long tail": ({"times": "t ~ log_normal(0, 1); r ~ uniform(0, t)"}, "times",
                  "log_normal(0, 1)", "write `t ~ truncated(log_normal(0, 1), 0, 1)`"),
    "backwards": ({"times": STEPS.format(sign="+", end=1)}, "times",
                  "+", "replace `+` by `-`; write `gap ~ uniform(0, t)`"),
    "other way": ({"times": "r, t ~ sorted(uniform(0, 1))"}, "times",
                  "r, t ", "write `t, r ~ …`"),
    "crossed": ({"times": "t ~ uniform(0, 1); r ~ uniform(t, 0.5)"}, "times",
                "uniform(t, 0.5)", "write `r ~ uniform(0, t)`"),
    "path": ({"path": "z(t) = (1 + t) * data + t * noise"}, "boundary",
             "+", "replace `+` by `-`"),
    "curriculum": ({"curriculum": "warm = progress / 2", "target": WARM}, "curriculum",
                   "2", "do not divide by `2`"),
    "falling": ({"curriculum": "warm = 1 - progress", "target": WARM}, "curriculum",
                "1 - progress", "write `progress`"),
    "stopped": ({"target": f"match stop(u(z, t, r)) to stop(velocity - {TERM})"}, "gradient",
                "stop(u(z, t, r))", "drop this `stop( )`"),
    "weight": ({"loss": "-error"}, "gradient", "-", "drop the `-`"),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "code", "caret", "hint"), ONE.values(), ids=ONE.keys())
def test_one_mistake_is_one_message_at_its_line(
    lines: dict[str, str], code: str, caret: str, hint: str
) -> None:
    (told,) = errors(spec(**lines))
    assert told.span is not None
    assert (told.code, told.span.text, told.hint) == (code, caret, hint), render(told)
    assert mended(told).ok


def test_a_time_that_leaves_its_path_is_told_with_what_it_is_drawn_from() -> None:
    told = errors(spec(times=STEPS.format(sign="+", end="0.5")))
    facts = dict(told[0].facts)
    assert facts["found"] == "r = t + gap between 0 and 1.5"
    assert facts["drawn"] == "t ~ uniform(0, 1); gap ~ uniform(0, 0.5)"
    assert [span.text for span, _ in told[0].others] == ["uniform(0, 0.5)"]
    first, second = render(told[0]).splitlines()[3:5]
    assert first.index("^") > second.index("^")


def test_a_term_that_no_row_computes_is_mended_where_its_times_are() -> None:
    text = (shipped_folder() / "tvm.flow").read_text()
    (told,) = errors(text.replace("t = s + gap", "t = s - gap"))
    assert told.span is not None
    assert (told.span.text, told.hint) == ("-", "replace `-` by `+`")
    assert mended(told).ok


def test_without_time_a_time_is_still_told_once_at_its_line() -> None:
    text = spec(times=STEPS.format(sign="+", end=1))
    tree = pipeline.parse(read_source(text, "my.flow"))
    report = pipeline.checked(pipeline.typed(tree))
    (told,) = shown(pipeline.explained(report, tree, seconds=0.0))
    assert (told.code, told.span and told.span.text) == ("times", "t + gap")


def test_two_slips_in_two_terms_have_a_message_each() -> None:
    own = f"match u(z, t, r) to stop(velocity + {TERM})"
    told = errors(spec(target=own, times="r, t ~ sorted(uniform(0, 1))"))
    assert [(d.code, d.span and d.span.text, d.hint) for d in told] == [
        ("identity", "+", "replace `+` by `-`"),
        ("times", "r, t ", "write `t, r ~ …`"),
    ]
    changes = tuple(change for d in told for change in d.fix)
    assert pipeline.checked(pipeline.load_text(Edit(changes, None, "", "").applied().text)).ok


def test_what_is_seen_only_once_the_first_slip_is_mended_is_told_beside_it() -> None:
    (first, second) = errors(spec(target=f"match u(z, t, r) to velocity + {TERM}"))
    assert (first.code, first.span and first.span.text) == ("identity", "+")
    assert (second.code, dict(second.facts)["seen"]) == (
        "unbiased", "once the other messages' hints are followed"
    )  # fmt: skip
    assert second.hint == f"write `stop(velocity - {TERM})`"
    assert second.span is not None
    assert second.span.text == f"velocity + {TERM}"  # in the text as it is, not as it would be


def test_a_negative_loss_behind_a_wrong_target_is_found_at_its_line() -> None:
    told = errors(spec(target=f"match u(z, t, r) to stop(velocity + {TERM})", loss="-error"))
    assert [d.span and d.span.text for d in told] == ["+", "-"]
    assert [d.hint for d in told] == ["replace `+` by `-`", "drop the `-`"]


def test_two_slips_in_one_term_have_a_caret_each() -> None:
    (told,) = errors(spec(target="match u(z, t, r) to stop(velocity + 2 * " + TERM + ")"))
    assert told.span is not None
    assert {told.span.text, *(span.text for span, _ in told.others)} == {"+", "2"}
    assert mended(told).ok
    assert len(told.as_dict()["others"]) == 1  # type: ignore[arg-type]


def test_a_claim_that_is_refuted_is_told_with_one_that_holds(tmp_path: Path) -> None:
    (tmp_path / "other.flow").write_text(spec().replace("mine", "other", 1))
    own = tmp_path / "mine.flow"
    own.write_text(spec(loss="adaptive(error, power = 1, offset = 1)",
                        claims="same value as other"))  # fmt: skip
    tree = pipeline.parse(find_source(str(own)))
    report = pipeline.checked(pipeline.typed(tree))  # other.flow is found beside it
    (told,) = shown(pipeline.explained(report, tree, seconds=SECONDS))
    assert told.hint == "what holds is `same gradient as other`"


def test_both_kinds_of_rows_of_one_mistake_are_one_message() -> None:
    text = (shipped_folder() / "meanflow.flow").read_text()
    report = pipeline.checked(pipeline.load_text(text.replace("z - (t - r) * u", "z - u")))
    wrong = [d for d in shown(report) if d.code == "identity"]
    (told,) = wrong
    assert dict(told.facts)["left over"].count(" on ") >= 3
    assert " on diagonal" in told.hint


def test_a_message_without_facts_names_its_rows() -> None:
    text = spec(
        rows="half ~ share(0.5)",
        target=f"goal = 2 * u(z, t, r) - velocity + {TERM}  on half\n"
        " match u(z, t, r) to stop(goal)",
    ).replace("target goal", f"target goal = velocity - {TERM}\n goal")
    told = [d for d in shown(pipeline.checked(pipeline.load_text(text))) if d.code == "gradient"]
    assert dict(told[0].facts)["on rows"] == "half"


@given(st.data())
def test_the_extent_of_a_form_is_where_it_is_implied(data: st.DataObject) -> None:
    number = st.integers(-4, 4)
    low, width = data.draw(number), data.draw(st.integers(1, 4))
    a, b = data.draw(number), data.draw(number)
    x, y = Affine.variable("x"), Affine.variable("y")
    box = [Bound(x - Affine.number(low), True), Bound(Affine.number(low + width) - x, True),
           Bound(y, True), Bound(x + Affine.number(9) - y, True)]  # fmt: skip
    form = x.scaled(Fraction(a)) + y.scaled(Fraction(b)) + Affine.number(1)
    least, most = extent(box, form)
    assert least is not None
    assert most is not None
    assert implies(box, Bound(form - Affine.number(least), False))
    assert implies(box, Bound(Affine.number(most) - form, False))
    corners = [a * p + b * q + 1 for p in (low, low + width) for q in (0, p + 9)]
    assert (least, most) == (min(corners), max(corners))
