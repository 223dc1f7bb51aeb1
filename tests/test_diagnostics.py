"""What a user is told: checks that explain themselves, JSON, names that are nearly right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flowdsl import pipeline
from flowdsl.checks import CHECKS, check
from flowdsl.checks.check import COMMON, example_spec
from flowdsl.checks.report import cut
from flowdsl.cli import app
from flowdsl.diagnostics import DiagnosticError
from flowdsl.spec.objective import Objective

DOCS = Path(__file__).parent.parent / "docs"
NAMES = list(CHECKS)


def judged(name: str, sections: str) -> set[str]:
    """The statuses that a check gives to the common spec with these sections."""
    shown = CHECKS[name].example

    def find(other: str) -> Objective:
        assert other == "other"
        return pipeline.load_text(example_spec("other", shown.other))

    objective = pipeline.load_text(example_spec("example", sections))
    report = check(objective, only=[name], find=find)
    return {verdict.status for verdict in report.verdicts}


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_check_have_the_verdicts_that_are_told(name: str) -> None:
    shown = CHECKS[name].example
    good, bad = judged(name, shown.good), judged(name, shown.bad)
    assert "proved" in good
    assert not good & {"refuted", "biased", "unanchored", "undecided"}
    assert shown.status in bad


@pytest.mark.parametrize("name", NAMES)
def test_a_check_is_explained_with_its_examples(name: str) -> None:
    done = CliRunner().invoke(app, ["check", "--explain", name])
    assert done.exit_code == 0
    shown = CHECKS[name].example
    for text in (CHECKS[name].question, shown.good, shown.bad, f"is {shown.status}", COMMON):
        for line in text.splitlines():
            assert line in done.output


def test_the_certificate_is_explained() -> None:
    done = CliRunner().invoke(app, ["check", "--explain", "certificate"])
    assert done.exit_code == 0
    for word in ("|z|", "% of its scale", "agrees", "too small to see", "measured alone",
                 "not measured", "disagrees"):  # fmt: skip
        assert word in done.output
    unknown = CliRunner().invoke(app, ["check", "--explain", "certificat"])
    assert isinstance(unknown.exception, DiagnosticError)
    assert 'did you mean "certificate"?' in str(unknown.exception)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a + b", "a + b"),
        ("a + f(b - c) - d + e", "a + f(b - c) … and 2 more terms"),
        ("x" * 30, "x" * 12 + " …"),
    ],
)
def test_long_sums_are_cut_between_their_terms(text: str, shown: str) -> None:
    assert cut(text, 12) == shown


PLACE = {"file": str, "line": int, "column": int, "end_line": int, "end_column": int}
LEFT = {"text": str, "number": (float, type(None)), "example": str, "rows": str}
MESSAGE = {
    "severity": str, "code": str, "message": str, "place": (PLACE, None), "label": str,
    "found": str, "required": str, "left_over": [LEFT], "facts": dict, "hint": str,
    "others": [{"place": PLACE, "label": str}],
    "fix": [{"place": PLACE, "text": str}],
}  # fmt: skip
VERDICT = {
    "check": str, "term": str, "rows": str, "status": str, "ok": bool, "message": str,
    "left_over": str, "order": (int, type(None)), "identities": list, "seconds": float,
    "diagnostic": (MESSAGE, None),
}  # fmt: skip
SPEC = {
    "spec": str, "objective": str, "title": str, "ok": bool, "seconds": float,
    "verdicts": [VERDICT], "messages": [MESSAGE],
}  # fmt: skip
BROKEN = {"spec": str, "ok": bool, "errors": [MESSAGE]}


def conforms(value: object, schema: object) -> bool:
    """Has the value this shape: exactly these keys, and values of these kinds?"""
    if isinstance(schema, dict):
        return (
            isinstance(value, dict)
            and value.keys() == schema.keys()
            and all(conforms(value[key], schema[key]) for key in schema)
        )
    if isinstance(schema, list):
        return isinstance(value, list) and all(conforms(item, schema[0]) for item in value)
    if isinstance(schema, tuple):
        return any(value is None if s is None else conforms(value, s) for s in schema)
    assert isinstance(schema, type)
    return isinstance(value, schema)


def reported(tmp_path: Path, text: str) -> dict[str, object]:
    path = tmp_path / "my.flow"
    path.write_text(text)
    done = CliRunner().invoke(app, ["check", "--json", str(path)])
    (found,) = json.loads(done.output)
    assert isinstance(found, dict)
    return found


def test_json_carries_everything_that_is_known_of_a_failure(tmp_path: Path) -> None:
    text = example_spec("example", CHECKS["identity"].example.bad)
    found = reported(tmp_path, text)
    assert conforms(found, SPEC)
    (message,) = [m for m in found["messages"] if m["code"] == "identity"]  # type: ignore[attr-defined]
    assert message["found"] == "+"
    assert message["hint"] == "replace `+` by `-`"
    assert message["required"].startswith("u(z, t, r) = velocity - (t - r) * d/dt[u(z, t, r)]")
    (left,) = message["left_over"]
    assert left["text"] == "2 * (t - r) * d/dt[u(z, t, r)]"
    assert left["number"] == pytest.approx(float(left["example"].split()[1]))
    (fix,) = message["fix"]
    lines = text.splitlines()
    place = fix["place"]
    line = lines[place["line"] - 1]
    lines[place["line"] - 1] = (
        line[: place["column"] - 1] + fix["text"] + line[place["end_column"] - 1 :]
    )
    assert reported(tmp_path, "\n".join(lines))["ok"] is True


def test_json_of_what_cannot_be_read_and_of_what_passes(tmp_path: Path) -> None:
    assert conforms(reported(tmp_path, "objective x\nlet a = 2t\n"), BROKEN)
    passing = reported(tmp_path, example_spec("example", CHECKS["identity"].example.good))
    assert conforms(passing, SPEC)
    assert passing["ok"] is True
    sets = [v["identities"] for v in passing["verdicts"] if v["check"] == "identity"]  # type: ignore[attr-defined]
    assert sets[0] == [["eulerian"]]


def test_every_key_of_the_json_is_documented() -> None:
    text = (DOCS / "json.md").read_text()
    for schema in (SPEC, VERDICT, MESSAGE, PLACE, LEFT, BROKEN):
        for key in schema:
            assert f"`{key}`" in text, key


TERM = "target match u(z, t, r) to velocity\n"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("differentiate tt", 'did you mean "t"?'),
        ("let y = uu(z, t, r)", 'did you mean "u"?'),
        ("let y = zz(t)", 'did you mean "z"?'),
        ("let y = z(t | nose = z)", 'did you mean "noise"?'),
        ("let y = u(z, tt, r)", 'did you mean "t"?'),
        ("let y = map(z, t, r | labl = null)", 'did you mean "label"?'),
        ("let y = u(z, t, r | labl = null)", 'did you mean "label"?'),
        ("let y = u(z, t)", "write `u(z, t, r)`"),
        ("let y = map(z, t)", "write `map(x, start, end)`"),
        ("let y = flow(map, z, t, r, step = 2)", 'did you mean "steps"?'),
        ("let y = uniform(0, 1)", "write `q ~ uniform(…)` under `times`, `rows` or `conditions`"),
        ("let y = velocty", 'did you mean "velocity"?'),
        ("times q ~ logitnormal(0, 1)", 'did you mean "logit_normal"?'),
        ("times q ~ logit_normal(0, stdd = 1)", 'did you mean "std"?'),
        ("loss hubr(error, 1)", 'did you mean "huber"?'),
        ("loss huber(error, cc = 1)", 'did you mean "c"?'),
        ("loss taget: mse", 'did you mean "target"?'),
        ("players a: uu on target", 'did you mean "u"?'),
        ("players a: u on targt", 'did you mean "target"?'),
        ("stages a: meanfow for 1", 'did you mean "meanflow"?'),
        ("stages first: this for 0.5; b: this for 0.5, u from frist", 'did you mean "first"?'),
        ("claims same grad as meanflow", 'did you mean "gradient"?'),
        ("network w = ema(uu, decay = 0.9)", 'did you mean "u"?'),
        ("guidence y = z", 'did you mean "guidance"?'),
    ],
)
def test_names_that_are_nearly_right(line: str, hint: str) -> None:
    kept = [x for x in COMMON.replace("u(z, t, r)", "u(z, t, r | label)", 1).splitlines()
            if x.split()[0] not in ("target", "differentiate")]  # fmt: skip
    text = "\n".join(["objective x", *kept, line, TERM])
    with pytest.raises(DiagnosticError) as caught:
        pipeline.load_text(text)
    assert caught.value.diagnostics[0].hint == hint


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["check", "meanflo"], 'did you mean "meanflow"?'),
        (["check", "meanflow", "--only", "identiy"], 'did you mean "identity"?'),
        (["check", "--explain", "identiy"], 'did you mean "identity"?'),
        (["compile", "meanflow", "--set", "omga=2"], 'did you mean "omega"?'),
        (["compare", "meanflow", "alphaflo"], 'did you mean "alphaflow"?'),
    ],
)
def test_words_of_the_command_line_that_are_nearly_right(words: list[str], hint: str) -> None:
    done = CliRunner().invoke(app, words)
    told = [done.output]
    if isinstance(done.exception, DiagnosticError):
        told += [d.hint for d in done.exception.diagnostics]
    assert any(hint in text for text in told)


def verdicts(sections: str, name: str) -> list[str]:
    report = check(pipeline.load_text(example_spec("x", sections)), only=[name])
    return [v.message for v in report.verdicts]


def test_a_live_target_says_where_gradient_flows_and_what_it_costs() -> None:
    live = "target  match u(z, t, r) to velocity - (t - r) * d/dt[u(z, t, r)]"
    (told,) = [m for m in verdicts(live, "gradient") if "through the target" in m]
    assert told == (
        "gradient flows into u through the target: by d/dt[u(z, t, r)]; one more backward pass, "
        "of second order"
    )


def test_an_unused_differentiate_is_noted() -> None:
    plain = "target  match u(z, t, t) to velocity"
    note = "`differentiate t` is not used: no term takes a derivative"
    assert note in verdicts(plain, "identity")
    assert note not in verdicts("", "identity")


def test_the_velocity_of_another_state_is_mended() -> None:
    text = example_spec(
        "x",
        "times t, r ~ sorted(uniform(0, 1)); q ~ uniform(0, 1); noise' ~ normal(0, 1)\n"
        "anchor match u(z(q | noise = noise'), q, q) to velocity",
    )
    tree = pipeline.parse(pipeline.read_source(text, "my.flow"))
    report = pipeline.checked(pipeline.typed(tree))
    assert not report.ok
    shown = [d for d in pipeline.explained(report, tree, seconds=30).diagnostics
             if d.severity == "error" and d.fix]  # fmt: skip
    assert {d.hint for d in shown} == {"write `velocity(z(q | noise = noise'))`"}


def test_signs_that_no_spec_is_written_with_are_explained() -> None:
    wrong = "target  match u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r) along none])"
    report = check(pipeline.load_text(example_spec("x", wrong)), only=["identity"])
    (shown,) = report.diagnostics
    assert dict(shown.facts)["where"].startswith("J u[w]: the derivative of u in the state")
    text = (DOCS / "language.md").read_text()
    for sign in ("`J u(z, t, r)[w]`", "`∂t v(z, t)`", "along none"):
        assert sign in text


@pytest.mark.parametrize("count", [10, 63, 500, 20_000])
def test_deep_nesting_of_every_bracket_ends_soon(count: int) -> None:
    for opening, closing in (("(", ")"), ("stop(", ")"), ("d/dt[", "]")):
        text = f"objective x\nlet a = {opening * count}z{closing * count}\n"
        with pytest.raises(DiagnosticError) as caught:
            pipeline.load_text(text)
        assert re.search(r"nested|open here|at most|path|called|moves|deep", str(caught.value))


@pytest.mark.parametrize(
    ("law", "words"),
    [
        ("choice(grid(0.5))", "`n` of `grid` is 0.5, and must be a whole number, at least 1"),
        ("choice(grid(k - 4))", "`n` of `grid` is -2, and must be a whole number, at least 1"),
        ("choice(karras(1, 0.1, 1))", "`n` of `karras` is 1, and must be a whole number, at leas"),
        ("logit_normal(0, -1)", "`std` of `logit_normal` is -1, and must be 0 or more"),
        ("beta(1, 0)", "`b` of `beta` is 0, and must be positive"),
        ("shifted(uniform(0, 1), -k)", "`shift` of `shifted` is -2, and must be positive"),
    ],
)
def test_numbers_that_a_law_cannot_have_are_refused(law: str, words: str) -> None:
    spec = PLAIN.replace("uniform(0, 1)", law)
    with pytest.raises(DiagnosticError, match=re.escape(words)) as caught:
        pipeline.load_text(spec)
    (told,) = caught.value.diagnostics
    assert told.span is not None
    assert told.span.text in law


def test_numbers_that_a_law_can_have_are_read() -> None:
    for law in ("choice(grid(8 / k))", "logit_normal(0, 0)", "beta(0.5, k)", "uniform(0, 1 / k)"):
        assert pipeline.load_text(PLAIN.replace("uniform(0, 1)", law)).draws["t"].lines
    share = PLAIN.replace("times", "rows half ~ share(k)\ntimes")
    with pytest.raises(DiagnosticError, match="`p` of `share` is 2, and must be between 0 and 1"):
        pipeline.load_text(share)


PLAIN = """objective plain
constants k = 2
path z(t) = (1 - t) * data + t * noise
times t ~ uniform(0, 1)
network v(z, t)
target match v(z, t) to velocity
loss mse
"""
