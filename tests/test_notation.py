"""The printer of core expressions: what it writes reads back, and everything can be written."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowdsl import pipeline, sources
from flowdsl.spec.core import (
    COMPARISONS,
    FALSE,
    ONE,
    TRUE,
    Apply,
    Constant,
    Direction,
    Draw,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Level,
    Null,
    Number,
    PathState,
    PathVelocity,
    Stop,
    Training,
    add,
    children,
    div,
    mul,
    neg,
    number,
    select,
    sub,
)
from flowdsl.spec.notation import Notation
from flowdsl.spec.objective import Objective
from flowdsl.spec.operations import OPERATIONS

SPEC = """objective x
constants c = 0.5
path z(t) = (1 - t) * data + t * noise
     y(s) = (1 - s) * data + s * noise
times t, r ~ sorted(uniform(0, 1)); s ~ uniform(0, 1)
conditions w ~ uniform(0, 1); label = null on t > 0.9
network u(a, t, r | w, label)
let h = t - r; along = u(z, t, t)
differentiate t along along
target match u(z, t, r) to {target}
"""
BASE = pipeline.load_text(SPEC.format(target="velocity"))
NOTATION = Notation.of(BASE)


def read_back(text: str) -> Expr:
    found = pipeline.load_text(SPEC.format(target=text)).terms[0].target
    assert found is not None
    return found


# random trees of the language

TIMES = [BASE.definitions[name] for name in ("t", "r", "s")]
DATA, NOISE, LABEL = Given("data"), Given("noise"), BASE.definitions["label"]
NUMBERS = st.one_of(
    st.integers(0, 10**6), st.decimals(0, 1000, places=3), st.sampled_from(["1e-9", "0.00002"])
).map(lambda value: Number(Fraction(value)))
SCALAR_LEAVES = st.one_of(
    NUMBERS,
    st.sampled_from([*TIMES, BASE.definitions["w"], BASE.definitions["h"]]),
    st.sampled_from([Constant("c"), Training("progress"), Training("steps")]),
)
_UNARY = [name for name, row in OPERATIONS.items() if row.shape == "elementwise" and row.arity == 1]


def scalars_of(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(
            lambda op, a, b: Apply(op, (a, b)), st.sampled_from(["add", "sub", "mul", "div"]),
            inner, inner,
        ),
        st.builds(neg, inner),
        st.builds(lambda a, k: Apply("pow", (a, k)), inner, st.integers(0, 4).map(number)),
        st.builds(lambda a, k: Apply("pow", (a, neg(k))), inner, st.integers(1, 4).map(number)),
        st.builds(lambda op, a: Apply(op, (a,)), st.sampled_from(_UNARY), inner),
        st.builds(lambda a, b: Apply("max", (a, b)), inner, inner),
        st.builds(Stop, inner),
    )  # fmt: skip


SCALARS = st.recursive(SCALAR_LEAVES, scalars_of, max_leaves=6)


@st.composite
def points(draw: st.DrawFn) -> Expr:
    path = draw(st.sampled_from("zy"))
    own = {"z": TIMES[0], "y": TIMES[2]}[path]
    time = draw(st.one_of(st.just(own), SCALARS))
    noise = draw(st.sampled_from([NOISE, NOISE, DATA]))
    kind = draw(st.sampled_from([PathState, PathVelocity]))
    return kind(path, time, DATA, noise)


@st.composite
def calls(draw: st.DrawFn, states: st.SearchStrategy[Expr]) -> Expr:
    state = draw(st.one_of(st.just(PathState("z", TIMES[0], DATA, NOISE)), states))
    args = (state, draw(st.one_of(st.just(TIMES[0]), SCALARS)), draw(SCALARS))
    label = draw(st.sampled_from([LABEL, Null()]))
    weight = draw(st.one_of(st.just(BASE.definitions["w"]), SCALARS))
    tangent = st.tuples(
        st.one_of(st.none(), states, st.just(BASE.definitions["along"])),
        st.sampled_from([ONE, ONE, None, number(2)]), st.sampled_from([None, None, ONE]),
    )  # fmt: skip
    directions: tuple[Direction, ...] = draw(st.one_of(st.just(()), st.tuples(tangent)))
    if directions and not any(directions[0]):
        directions = ()
    return Evaluate("u", "u", args, (("label", label), ("w", weight)), directions)


def states_of(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    return st.one_of(
        st.builds(add, inner, inner),
        st.builds(sub, inner, inner),
        st.builds(mul, SCALARS, inner),
        st.builds(mul, inner, SCALARS),
        st.builds(div, inner, SCALARS),
        st.builds(neg, inner),
        st.builds(Stop, inner),
        calls(inner),
    )


STATES = st.recursive(st.one_of(st.sampled_from([DATA, NOISE]), points()), states_of, max_leaves=6)


def legal(expr: Expr) -> bool:
    """Has the language a text for it? All but tangents that no derivative moves so."""
    text = NOTATION.text(expr)
    return "J " not in text


@given(STATES)
@settings(max_examples=150)
def test_what_is_written_reads_back(expr: Expr) -> None:
    if legal(expr):
        assert read_back(NOTATION.text(expr)) == expr
    assert NOTATION.latex(expr).count("{") == NOTATION.latex(expr).count("}")


@given(SCALARS, SCALARS, st.sampled_from(sorted(COMPARISONS)), st.booleans())
@settings(max_examples=40)
def test_conditions_read_back(a: Expr, b: Expr, op: str, both: bool) -> None:
    one = Apply(op, (a, b))
    other = Apply("not", (Apply("or", (one, Apply("lt", (b, a)))),))
    condition = Apply("and", (one, other)) if both else other
    text = f"velocity\n  on {NOTATION.text(condition)}"
    assert pipeline.load_text(SPEC.format(target=text)).terms[0].rows == condition


DERIVATIVES = [
    "d/dt[u(z, t, r)]",
    "d/dt[u(z, t, r) along none]",
    "d/dt[u(z, t, r) along velocity]",
    "d/dt[u(z / c, t, t - r)]",
    "d/dr[u(z, t, r)]",
    "d/ds[u(y, s, r)]",
    "d/dt[u(y, t, r)]",
    "d/dt[u(z(t + c), t, r | label = null, w = 2)]",
    "d/dz[u(z, t, r) along noise]",
    "d/dt[u(z - (t - r) * u(z, t, r), r, r)]",
]


@pytest.mark.parametrize("text", DERIVATIVES)
def test_derivatives_are_written_as_derivatives(text: str) -> None:
    assert NOTATION.text(read_back(text)) == text


def test_a_direction_that_is_the_usual_one_goes_without_saying() -> None:
    assert NOTATION.text(read_back("d/dt[u(z, t, r) along along]")) == "d/dt[u(z, t, r)]"
    plain = Notation(NOTATION.names, NOTATION.paths)
    assert plain.text(read_back("d/dt[u(z, t, r)]")) == "d/dt[u(z, t, r) along along]"


def test_tangents_that_no_derivative_has_are_written_out() -> None:
    state, (t, r, _) = PathState("z", TIMES[0], DATA, NOISE), TIMES
    shown = (("label", LABEL), ("w", BASE.definitions["w"]))
    one = Evaluate("u", "u", (state, t, r), shown, ((NOISE, number(2), None),))
    assert NOTATION.text(one) == "J u(z, t, r)[noise, 2, 0]"
    assert NOTATION.latex(one) == r"J \, u(z, t, r)\left[\mathrm{noise}, 2, 0\right]"
    twice = Evaluate("u", "u", (state, t, r), shown, ((NOISE, None, None), (None, ONE, None)))
    assert NOTATION.text(twice) == "D2 u(z, t, r)[(noise, 0, 0), (0, 1, 0)]"


# names

SHIPPED = [name for name in sources.shipped_names() if pipeline.load(name).maps]


@pytest.mark.parametrize("name", SHIPPED)
def test_targets_of_shipped_specs_read_back_under_their_own_names(name: str) -> None:
    """Each is written in place of the target that the spec has, and resolves to the same."""
    objective = pipeline.load(name)
    notation = Notation.of(_with_target(name, objective, "noise", "noise"))
    count = 0
    for term in objective.terms:
        if term.target is None:
            continue
        texts = notation.text(term.prediction), notation.text(term.target)
        if any(mark in text for text in texts for mark in (", else ", "J ", "D2 ")):
            continue
        again = _with_target(name, objective, *texts).terms[0]
        assert (again.prediction, again.target) == (term.prediction, term.target)
        count += 1
    assert (count == 0) == (name in UNWRITABLE)


#: All of their terms select by row in the target, or move along tangents through functions.
UNWRITABLE = (
    "alphaflow", "alphaflow_plain", "alphaflow_squared", "alphaflow_xl",
    "continuous_consistency_training", "decoupled_meanflow", "decoupled_meanflow_released",
    "easy_consistency_tuning",
)  # fmt: skip


def _with_target(name: str, objective: Objective, prediction: str, target: str) -> Objective:
    """The spec with one term in place of all, and without the names bound under `target`."""
    dropped = "\n".join(t.group for t in objective.terms if t.group != "target")
    text = f"objective again extends {name}\nclaims\nplayers\nloss error\n{dropped}\n"
    return pipeline.load_text(f"{text}target match {prediction} to {target}")


def test_a_name_that_means_something_else_is_not_left_out() -> None:
    """The given label is not the spec's own once the spec says more about it."""
    given_label = Evaluate("u", "u", (DATA, *TIMES[:2]), (("label", Given("label")),))
    own = Evaluate("u", "u", (DATA, *TIMES[:2]), (("label", LABEL),))
    assert NOTATION.text(own) == "u(data, t, r)"
    assert NOTATION.text(given_label) == "u(data, t, r | label = label)"


def test_the_bare_word_velocity_is_that_of_the_first_path_at_its_own_time() -> None:
    z, y = (PathVelocity(p, t, DATA, NOISE) for p, t in (("z", TIMES[0]), ("y", TIMES[2])))
    assert NOTATION.text(z) == "velocity"
    assert NOTATION.text(y) == "velocity(y)"
    assert Notation().text(z) == "velocity(z(t))"
    state = PathState("z", TIMES[1], DATA, NOISE)
    named = Notation({state: "x"}, NOTATION.paths)
    assert named.text(PathVelocity("z", TIMES[1], DATA, NOISE)) == "velocity(x)"


# every kind of node, every operation

SAMPLES: dict[type[Expr], Expr] = {
    type(sample): sample
    for sample in (
        number("0.5"), Constant("c"), Training("step"), TIMES[0], DATA, Null(),
        Formal("q", Kind.TIME), PathState("z", ONE, DATA, NOISE),
        PathVelocity("z", ONE, DATA, DATA),
        add(ONE, ONE), Evaluate("u", "u", (DATA, ONE, ONE)), Stop(DATA),
    )
}  # fmt: skip


@pytest.mark.parametrize("kind", Expr.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_kind_of_node_has_text_and_latex(kind: type[Expr]) -> None:
    sample = SAMPLES[kind]
    for text in (Notation().text(sample), Notation().latex(sample)):
        assert text
        assert kind.__name__ not in text
    if children(sample):
        assert len(Notation().text(sample)) > 3


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_operation_has_text_and_latex(op: str) -> None:
    names = ["alpha", "b", "c"][: OPERATIONS[op].arity]
    shown = Apply(op, tuple(Draw(n, Kind.TIME, Level.ROW) for n in names))
    text, latex = Notation().text(shown), Notation().latex(shown)
    assert all(name in text for name in names)
    assert all(name in latex for name in names)
    assert ("\\alpha" in latex) == bool(names)
    assert latex.count(r"\left") == latex.count(r"\right")


def _s(name: str) -> Expr:
    return Draw(name, Kind.SCALAR, Level.ROW)


A, B, C = _s("a"), _s("b"), _s("c")
WRITTEN: list[tuple[Expr, str, str]] = [
    (sub(A, sub(B, C)), "a - (b - c)", r"a - \left(b - c\right)"),
    (sub(sub(A, B), C), "a - b - c", "a - b - c"),
    (neg(mul(A, B)), "-(a * b)", r"-\left(a \, b\right)"),
    (mul(neg(A), B), "-a * b", r"-a \, b"),
    (mul(A, number(2)), "a * 2", r"a \cdot 2"),
    (mul(A, neg(B)), "a * -b", r"a \, \left(-b\right)"),
    (div(A, div(B, C)), "a / (b / c)", r"\frac{a}{\frac{b}{c}}"),
    (Apply("pow", (div(A, B), number(2))), "(a / b)^2", r"\left(\frac{a}{b}\right)^{2}"),
    (Apply("pow", (neg(A), number(2))), "(-a)^2", r"\left(-a\right)^{2}"),
    (Apply("pow", (A, neg(B))), "a^-b", "a^{-b}"),
    (Apply("sqrt", (add(A, B),)), "sqrt(a + b)", r"\mathrm{sqrt}(a + b)"),
    (Apply("sin", (_s("omega'"),)), "sin(omega')", r"\sin(\omega')"),
    (Number(Fraction(-1, 3)), "-(1 / 3)", r"-\frac{1}{3}"),
    (number("1e-9"), "1e-09", r"1 \cdot 10^{-9}"),
    (_s("long_name"), "long_name", r"\mathrm{long\_name}"),
    (TRUE, "true", r"\mathrm{true}"),
    (
        Apply("and", (Apply("or", (FALSE, Apply("le", (A, B)))), Apply("ne", (A, C)))),
        "(false or a <= b) and a != c",
        r"\left(\mathrm{false} \lor a \le b\right) \land a \ne c",
    ),
    (
        select(Apply("lt", (A, B)), A, select(TRUE, B, C)),
        "(a on a < b, b on true, else c)",
        r"\begin{cases} a & \text{if } a < b \\ b & \text{if } \mathrm{true} \\ "
        r"c & \text{otherwise} \end{cases}",
    ),
]


@pytest.mark.parametrize(("expr", "text", "latex"), WRITTEN, ids=[w[1] for w in WRITTEN])
def test_brackets_stand_where_they_are_needed(expr: Expr, text: str, latex: str) -> None:
    assert Notation().text(expr) == text
    assert Notation().latex(expr) == latex
