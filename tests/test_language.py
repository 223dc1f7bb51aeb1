"""The language: corpora of right and wrong specs, the printer's round trip, hostile input."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowdsl import pipeline, sources
from flowdsl.diagnostics import DiagnosticError, Source, Span, render
from flowdsl.spec.constants import constant_value
from flowdsl.spec.core import Evaluate, Kind, Level, Number, PathVelocity, transform, walk
from flowdsl.spec.notation import Notation
from flowdsl.spec.objective import Objective
from flowdsl.syntax.format import format_expression, format_tree
from flowdsl.syntax.layout import MAX_BYTES, read_source
from flowdsl.syntax.tree import (
    Binary,
    Call,
    Comparison,
    Derivative,
    Expression,
    Name,
    NumberLiteral,
    Replacement,
    Unary,
)

#: Whole specs, again and again: line coverage is measured by the tests of each part.
pytestmark = pytest.mark.untraced

HERE = Path(__file__).parent
GOOD = [p for p in sorted((HERE / "good").glob("*.flow")) if p.stem not in sources.shipped_names()]
BAD = sorted((HERE / "bad").glob("*.flow"))
SHIPPED = [sources.shipped_folder() / f"{name}.flow" for name in sources.shipped_names()]


def compare_with(expected: Path, text: str, accept: bool) -> None:
    if accept:
        expected.write_text(text)
    assert text == expected.read_text(), f"accept a wanted change with --accept ({expected.name})"


def summary(objective: Objective) -> str:
    """What resolution made of a spec, one fact a line."""
    notation = Notation.of(objective)
    own = Notation(paths=notation.paths)  # in a path or a map, names are those of its formals
    out = [f"constants {', '.join(f'{k} = {v}' for k, v in objective.constants.items())}".rstrip()]
    out += [
        f"path {p.state}({p.time}): velocity {own.text(p.velocity)}"
        for p in objective.paths.values()
    ]
    for draw in objective.draws.values():
        out.append(f"draw {draw.name}: {draw.kind.value}, {draw.level.name.lower()}")
    for network in objective.networks.values():
        arguments = ", ".join(f"{name} {kind.value}" for name, kind in network.arguments)
        out.append(f"network {network.name}({arguments} | {', '.join(network.conditions)})")
    for flow_map in objective.maps.values():
        out.append(f"{flow_map.name} {own.text(flow_map.start)} -> {own.text(flow_map.end)}")
    for name, value in objective.definitions.items():
        if value.size > 1:
            out.append(f"let {name} = {Notation.of(objective, name).text(value)}")
    for term in objective.terms:
        out.append(f"term {term.name}")
        out.append(f"  prediction {notation.text(term.prediction)}")
        if term.target is not None:
            out.append(f"  target     {notation.text(term.target)}")
            residual = {**notation.names, term.prediction: "prediction", term.target: "target"}
            out.append(f"  loss       {replace(notation, names=residual).text(term.loss)}")
        if term.rows is not None:
            out.append(f"  rows       {notation.text(term.rows)}")
    return "\n".join(out) + "\n"


@pytest.mark.parametrize("path", [*GOOD, *SHIPPED], ids=lambda p: p.stem)
def test_good_specs_resolve_as_expected(path: Path, accept: bool) -> None:
    tree = pipeline.parse(sources.read_file(path))
    text = f"{format_tree(tree)}\n{summary(pipeline.load(path))}"
    compare_with(HERE / "good" / f"{path.stem}.expected", text, accept)


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_bad_specs_are_explained(path: Path, accept: bool) -> None:
    with pytest.raises(DiagnosticError) as caught:
        pipeline.load(path)
    text = "\n\n".join(render(d) for d in caught.value.diagnostics) + "\n"
    text = text.replace(str(path.parent) + "/", "").replace(str(sources.shipped_folder()), "specs")
    compare_with(path.with_suffix(".expected"), text, accept)


@pytest.mark.parametrize("path", [*GOOD, *SHIPPED], ids=lambda p: p.stem)
def test_printing_and_parsing_is_the_identity(path: Path) -> None:
    tree = pipeline.parse(sources.read_file(path))
    text = format_tree(tree)
    again = pipeline.parse(read_source(text, "printed"))
    assert again == tree
    assert format_tree(again) == text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_merged_spec_can_be_printed_and_means_the_same(path: Path) -> None:
    merged = pipeline.merged(pipeline.parse(sources.read_file(path)))
    alone = format_tree(merged).replace(f" extends {merged.extends}", "")
    objective, printed = pipeline.load(path), pipeline.load_text(alone)
    for one, other in zip(objective.terms, printed.terms, strict=True):
        assert (one.prediction, one.target, one.loss) == (
            other.prediction,
            other.target,
            other.loss,
        )


_SPAN = Span(Source("", ""), 0, 0)
_NAMES = st.sampled_from(["t", "r", "z", "noise'", "τ", "alpha", "data", "match_", "paths"])


def _expressions() -> st.SearchStrategy[Expression]:
    leaf = st.one_of(
        _NAMES.map(lambda n: Name(_SPAN, n)),
        st.sampled_from(["0", "1", "2.5", "1e-2"]).map(lambda n: NumberLiteral(_SPAN, n)),
    )

    def grow(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        pair = st.tuples(inner, inner)
        replaced = st.lists(st.builds(Replacement, st.just(_SPAN), _NAMES, inner), max_size=2)
        return st.one_of(
            st.builds(Unary, st.just(_SPAN), st.sampled_from(["-", "not"]), inner),
            st.builds(
                Binary,
                st.just(_SPAN),
                st.sampled_from(["+", "-", "*", "/", "^", "and", "or"]),
                inner,
                inner,
            ),
            st.builds(
                Comparison, st.just(_SPAN), pair, st.tuples(st.sampled_from(["<", "<=", "=="]))
            ),
            st.builds(Derivative, st.just(_SPAN), _NAMES, inner, st.one_of(st.none(), inner)),
            st.builds(
                Call,
                st.just(_SPAN),
                _NAMES,
                st.lists(inner, max_size=2).map(tuple),
                st.lists(st.builds(Replacement, st.just(_SPAN), _NAMES, inner), max_size=1).map(
                    tuple
                ),
                replaced.map(tuple),
            ),
        )

    return st.recursive(leaf, grow, max_leaves=12)


@given(_expressions())
def test_any_expression_survives_printing(expression: Expression) -> None:
    if isinstance(expression, Call) and not expression.arguments and not expression.keywords:
        expression = Unary(_SPAN, "-", expression)
    text = format_expression(expression)
    assert pipeline.parse_expression(text, pipeline.parser()) == expression, text


def read_or_explained(text: str) -> None:
    try:
        pipeline.load_text(text)
    except DiagnosticError as error:
        explained = [d.message for d in error.diagnostics]
    else:
        explained = ["read"]
    assert all(explained)


@given(st.text(max_size=200))
def test_any_text_is_read_or_explained(text: str) -> None:
    read_or_explained(f"objective x\n{text}")


@given(st.data())
def test_a_damaged_spec_is_read_or_explained(data: st.DataObject) -> None:
    """One character of a real spec removed, doubled or replaced: an answer, never a traceback."""
    text = sources.find_source("meanflow").text
    at = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.sampled_from(["", "(", ")", "|", "~", "'", "\n", "on ", "0", "d/dt[", ";"]))
    read_or_explained(text[:at] + new + text[at + 1 :])


HOSTILE = {
    "empty": "",
    "only a comment": "# nothing",
    "deep brackets": "objective x\nloss " + "(" * 20_000 + "1" + ")" * 20_000,
    "deep minus": "objective x\nloss " + "-" * 60_000 + "1",
    "deep power": "objective x\nloss " + "2^" * 20_000 + "2",
    "long sum": "objective x\nloss " + "1 + " * 15_000 + "1",
    "long not": "objective x\nrows a ~ share(0.5) on " + "not " * 15_000 + "a",
    "many headings": "objective x\n" + "loss 1\n" * 9_000,
    "many unknown headings": "objective x\n" + "loos 1\n" * 9_000,
    "many names": "objective x\nconstants\n" + "".join(f" a{i} = {i}\n" for i in range(3_000)),
    "doubling": "objective x\nlet a0 = 1\n"
    + "".join(f" a{i + 1} = a{i} + a{i}\n" for i in range(800)),
    "chain": "objective x\nlet a0 = 1\n" + "".join(f" a{i + 1} = a{i} + 1\n" for i in range(2_000)),
    "doubling calls": "objective x\nlet f0(x) = x\n"
    + "".join(f" f{i + 1}(x) = f{i}(x) + f{i}(x)\n" for i in range(200))
    + " y = f199(1)\n",
    "huge power": "objective x\nconstants a = 9^9^9^9",
    "huge constant": "objective x\nconstants a = 9^64; b = a^64; c = b^64; d = c^64; e = d^64",
    "long digits": "objective x\nconstants a = " + "9" * 60_000,
    "nul": "objective x\nloss \0",
    "quotes": 'objective x "' + "a" * 10_000 + '"',
    "derivatives": "objective x\npath z(t) = (1 - t) * data + t * noise\ntimes t ~ uniform(0, 1)\n"
    "network u(z, t)\ntarget match " + "d/dt[" * 60 + "u(z, t)" + "]" * 60 + " to velocity",
    "unrolled": "objective x\npath z(t) = (1 - t) * data + t * noise\ntimes t ~ uniform(0, 1)\n"
    "network u(z, t)\ntarget match flow(u, flow(u, flow(u, flow(u, z, 1, 0, steps = 64), 1, 0, "
    "steps = 64), 1, 0, steps = 64), 1, 0, steps = 64) to velocity",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_ends_soon_with_a_message(text: str) -> None:
    pipeline.parser()
    begin = time.process_time()
    with pytest.raises(DiagnosticError):
        pipeline.load_text(text)
    assert time.process_time() - begin < 3


def test_a_file_of_any_size_or_encoding_is_refused_in_words(tmp_path: Path) -> None:
    large = tmp_path / "large.flow"
    large.write_bytes(b"x" * (MAX_BYTES * 100))
    with pytest.raises(DiagnosticError, match="at most"):
        pipeline.load(large)
    odd = tmp_path / "odd.flow"
    odd.write_bytes("objective ü".encode("utf-16"))
    with pytest.raises(DiagnosticError, match="UTF-8"):
        pipeline.load(odd)
    with pytest.raises(DiagnosticError, match="cannot be read"):
        pipeline.load(tmp_path / "missing.flow")
    with pytest.raises(DiagnosticError, match="cannot be read"):
        pipeline.load(f"{tmp_path}/")


BODY = """
path z(t) = (1 - t) * data + t * noise
network u(z, t, r)
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
"""


def _term(text: str) -> Objective:
    times = "times t, r ~ sorted(uniform(0, 1)); s ~ uniform(0, 1)"
    return pipeline.load_text(f"objective x\n{times}{BODY}target {text}")


def _derivatives(objective: Objective) -> list[Evaluate]:
    found = walk(objective.terms[0].target or objective.terms[0].prediction)
    return [node for node in found if isinstance(node, Evaluate) and node.directions]


def test_a_derivative_moves_the_state_along_the_path() -> None:
    (jvp,) = _derivatives(_term("match velocity to d/dt[u(z, t, r)]"))
    state, time, end = jvp.directions[0]
    assert isinstance(state, PathVelocity)
    assert time is not None
    assert end is None


def test_a_derivative_in_the_end_leaves_the_state_alone() -> None:
    (jvp,) = _derivatives(_term("match velocity to d/dr[map(z, t, r)]"))
    state, time, end = jvp.directions[0]
    assert state is None
    assert time is None
    assert end is not None


def test_along_none_and_along_another_direction() -> None:
    (fixed,) = _derivatives(_term("match velocity to d/dt[u(z, t, r) along none]"))
    assert fixed.directions[0][0] is None
    (other,) = _derivatives(_term("match velocity to d/dt[u(z, t, r) along u(z, t, t)]"))
    assert isinstance(other.directions[0][0], Evaluate)


def test_derived_times_stay_fixed_inside_a_derivative() -> None:
    """TVM's `t = s + gap` does not move in d/ds, although it is made from s."""
    tvm = pipeline.load("tvm")
    jvps = [n for n in walk(tvm.terms[0].prediction) if isinstance(n, Evaluate) and n.directions]
    assert [[d is None for d in jvp.directions[0]] for jvp in jvps] == [[True, True, False]]


def test_second_derivatives_carry_two_directions() -> None:
    found = _derivatives(_term("match velocity to d/dt[d/dt[u(z, t, r)]]"))
    assert {len(node.directions) for node in found} == {2}


def test_product_rule_and_chain_rule_match_finite_differences() -> None:
    """d/dt of a scalar expression, evaluated in plain floats, against central differences."""
    objective = _term("match z to d/dt[(t^3 * r / (1 + t) - t * (t - r)^2) * data]")
    (scaled,) = [
        n for n in walk(objective.terms[0].target) if getattr(n, "op", "") == "mul"
    ][-1:]  # fmt: skip
    factor = scaled.args[0]

    def at(t: Fraction, r: Fraction) -> Fraction:
        values = {"t": Number(t), "r": Number(r)}
        found = constant_value(
            transform(factor, lambda e: values.get(getattr(e, "name", ""), e)), {}
        )
        assert found is not None
        return found

    def body(t: float, r: float) -> float:
        return t**3 * r / (1 + t) - t * (t - r) ** 2

    t, r, h = 0.7, 0.2, 1e-5
    slope = (body(t + h, r) - body(t - h, r)) / (2 * h)
    assert abs(float(at(Fraction(7, 10), Fraction(1, 5))) - slope) < 1e-9


def test_later_lines_override_on_their_rows() -> None:
    meanflow = pipeline.load("meanflow")
    r = meanflow.definitions["r"]
    assert Notation().text(r) == "(t on diagonal, else r)"
    assert meanflow.draws["diagonal"].kind is Kind.TRUTH
    assert meanflow.draws["t"].level is Level.ROW


def test_extends_replaces_names_and_whole_headings() -> None:
    alphaflow, base = pipeline.load("alphaflow"), pipeline.load("meanflow")
    assert alphaflow.constants == base.constants
    assert alphaflow.paths == base.paths
    assert set(alphaflow.draws) == {"diagonal", "dropped", "t", "r"}
    assert alphaflow.moving is not None
    assert pipeline.load("trajectory_flow_matching").claims == ()  # claims are never inherited


def test_a_heading_alone_drops_what_is_inherited_under_it() -> None:
    changed = pipeline.load_text(
        "objective x extends meanflow\nconditions\nguidance\nconstants\n"
        "rows\nrows diagonal ~ bernoulli(0.5)\nnetwork u(z, t, r)\n"
        "differentiate t along velocity\ntarget match u(z, t, r) to velocity"
    )
    assert set(changed.draws) == {"diagonal", "t", "r"}
    assert changed.constants == {}
    assert "guided" not in changed.definitions
    kept = pipeline.load_text("objective x extends meanflow\nrows diagonal ~ bernoulli(0.5)")
    assert set(kept.draws) == {"diagonal", "dropped", "t", "r"}


def test_a_call_with_a_bar_replaces_networks_states_and_conditions() -> None:
    tvm = pipeline.load_text(
        "objective x extends tvm\n"
        "target match map(z, t, s | F = slow) to stop(z(q | noise = velocity))"
    )
    prediction = tvm.terms[0].prediction
    assert [n.network for n in walk(prediction) if isinstance(n, Evaluate)] == ["slow"]
    assert Notation().text(tvm.terms[0].target) == "stop(z(q | noise = velocity(z(s + gap))))"


def test_functions_are_inlined_with_keywords() -> None:
    x = _term("match u(z, t, r) to velocity\nloss huber(error, c = 3)").terms[0].loss
    show = Notation().text
    assert show(x) == show(
        _term("match u(z, t, r) to velocity\nloss sqrt(error + 9 / 3 * 3^1 - 0 + 0)").terms[0].loss
    ).replace("sqrt(", "sqrt(").replace(" + 9 / 3 * 3^1 - 0 + 0)", " + 3^2) - 3")


def test_a_flow_is_unrolled() -> None:
    objective = _term("match flow(map, z, t, r, steps = 3) to velocity")
    calls = [n for n in walk(objective.terms[0].prediction) if isinstance(n, Evaluate)]
    assert len(calls) == 3


def test_every_clause_explains_itself_with_an_example_that_parses() -> None:
    for clause in pipeline.all_clauses():
        assert clause.summary.endswith(".")
        text = f"objective x\n{clause.keyword} {clause.example}"
        tree = pipeline.parse(read_source(text, clause.keyword))
        assert tree.lines(clause.keyword)


def test_an_objective_read_in_another_process_is_equal() -> None:
    """Cached hashes must not travel: hashes of strings differ from process to process."""
    code = (
        "import pickle, sys; from flowdsl import pipeline;"
        "sys.stdout.buffer.write(pickle.dumps(pipeline.load('meanflow').terms))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=environment
    )
    terms, here = pickle.loads(done.stdout), pipeline.load("meanflow").terms
    assert terms[0].target == here[0].target
    assert hash(terms[0].target) == hash(here[0].target)
