"""Named noise levels, steps between them, functions of time that networks see, limits written out.

What consistency models need of the checker, each in the smallest spec that needs it.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowdsl
from flowdsl.calculus.curriculum import Curricula
from flowdsl.calculus.enclosure import Enclosures
from flowdsl.calculus.numbers import evaluate
from flowdsl.calculus.preimage import preimage
from flowdsl.calculus.scalars import Scalars
from flowdsl.checks import Report
from flowdsl.spec.core import Draw, Evaluate, Kind, Level, walk

TIMES = (
    "i ~ choice(grid(17)); t = karras_time(i, 0.002, 80, 7); "
    "s = karras_time(i - 1 / 17, 0.002, 80, 7)"
)
TARGET = "match map(z, t, 0.002) to stop(map(z(s), s, 0.002))"


def spec(times: str = TIMES, target: str = TARGET, shown: str = "log(t) / 4", **more: str) -> str:
    lines = [
        "objective levels",
        "constants sd = 0.5",
        "path z(t) = data + t * noise",
        *(f"{name} {line}" for name, line in more.items()),
        f"times {times}",
        "network F(x, c)",
        "map z(t) -> z(0.002) = sd^2 / ((t - 0.002)^2 + sd^2) * z"
        f" + sd * (t - 0.002) / sqrt(t^2 + sd^2) * F(z / sqrt(t^2 + sd^2), {shown})",
        f"target {target}",
        "loss mse",
    ]
    return "\n".join(lines)


def checked(text: str, only: str) -> Report:
    return flowdsl.loads(text).check(only=[only])


def statuses(text: str, only: str) -> set[str]:
    return {v.status for v in checked(text, only).verdicts} - {"note", "not applicable"}


@pytest.mark.parametrize("shown", ["t", "log(t) / 4", "atan(t)", "2 * sqrt(1 + log(1 + t))"])
def test_a_network_may_see_a_function_of_the_time(shown: str) -> None:
    """Whatever tells the time, the step between two named levels is what is small."""
    (verdict,) = checked(spec(shown=shown), "identity").verdicts
    assert (verdict.status, verdict.order) == ("order", 2)
    assert "in (t - s)" in verdict.message


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (TARGET, "order"),
        ("match map(z, t, 0.002) to stop(map(z(s), t, 0.002))", "refuted"),  # the wrong time
        ("match map(z, t, 0.002) to stop(2 * map(z(s), s, 0.002))", "refuted"),
        ("match map(z, t, 0.002) to stop(data)", "biased"),  # the denoiser, not the map
        ("match map(z, t, 0.002) to stop(map(z(t), s, 0.002))", "refuted"),  # as off as any flow
    ],
)
def test_targets_between_levels(target: str, status: str) -> None:
    found = checked(spec(target=target), "identity")
    assert {v.status for v in found.verdicts} == {status}, found.render()


@pytest.mark.parametrize(
    ("times", "status"),
    [
        (TIMES, "proved"),
        (TIMES.replace("i - 1 / 17", "i - 8 / 17"), "undecided"),  # it would be below 0
        ("i ~ uniform(0, 1); t = 80 * i^0.3; s = t * (1 - exp(-i)) / 2", "proved"),
        ("i ~ uniform(0, 1); t = 80 * i^0.3; s = t - 2 * i", "undecided"),
        (
            "level ~ truncated(log_normal(0, 1), 0.002, 80); "
            "i = max(1, ceil(17 * karras_index(level, 0.002, 80, 7))) / 17; "
            "t = karras_time(i, 0.002, 80, 7); s = karras_time(i - 1 / 17, 0.002, 80, 7)",
            "proved",
        ),
    ],
)
def test_levels_stay_in_the_path(times: str, status: str) -> None:
    assert statuses(spec(times), "times") == {status}


def test_levels_on_a_grid_that_refines_stay_in_the_path() -> None:
    """The index and its step are known together, at each moment of training."""
    grid = TIMES.replace("17", "n")
    assert statuses(spec(grid, curriculum="n = 2 + ceil(98 * progress)"), "times") == {"proved"}
    off = grid.replace("1 / n", "2 / n")  # at the start a step reaches below 0
    assert statuses(spec(off, curriculum="n = 2 + ceil(98 * progress)"), "times") == {"undecided"}


EASY = """
objective easy
constants sd = 0.5
path z(t) = data + t * noise
curriculum part = exp(-floor(1 + 7 * progress))
times t ~ log_normal(-1.1, 2.0); s = max(0, t * (1 - part * (1 + 8 * sigmoid(-t))))
network F(x, c)
map z(t) -> z(0) = sd^2 / (t^2 + sd^2) * z
                   + t * sd / sqrt(t^2 + sd^2) * F(z / sqrt(t^2 + sd^2), log(t))
target goal = map(z(s), s, 0); goal = {special} on s == 0
       match map(z, t, 0) to stop(goal)
loss mse
"""


@pytest.mark.parametrize(
    ("special", "statuses"),
    [
        ("data", {("all", "order")}),  # what the first line says where s tends to 0
        ("data / 2", {("s == 0", "biased"), ("s != 0", "order")}),
        ("noise", {("s == 0", "biased"), ("s != 0", "order")}),
        ("z", {("s == 0", "biased"), ("s != 0", "order")}),
    ],
)
def test_a_limit_written_out_is_no_kind_of_rows(
    special: str, statuses: set[tuple[str, str]]
) -> None:
    found = checked(EASY.format(special=special), "identity")
    assert {(v.case, v.status) for v in found.verdicts} == statuses, found.render()


def test_what_a_call_of_a_map_replaces_is_replaced_in_its_functions() -> None:
    """`map(… | F = slow)` asks the average also where the map's line calls a function of F."""
    whole = spec().replace("network F(x, c)", "network F(x, c); slow = ema(F, decay = 0.9)")
    asked = whole.replace("map(z(s), s, 0.002)", "map(z(s), s, 0.002 | F = slow)")
    inner = "F(z / sqrt(t^2 + sd^2), log(t) / 4)"
    apart = asked.replace(inner, "asked(z, t)").replace(
        "target ", "let asked(x, t) = F(x / sqrt(t^2 + sd^2), log(t) / 4)\ntarget "
    )
    terms = [flowdsl.loads(text).typed.terms for text in (asked, apart)]
    assert terms[0] == terms[1]
    networks = {n.network for n in walk(terms[1][0].target) if isinstance(n, Evaluate)}
    assert networks == {"slow"}


def test_functions_of_one_time_are_undone() -> None:
    scalars = Scalars(["t", "s"])
    t, s, index = scalars.symbol("t"), scalars.symbol("s"), scalars.index("t")
    four = scalars.number(Fraction(1, 4))
    for read in (
        scalars.log(t) * four,
        scalars.sqrt(scalars.one + scalars.log(t)),
        scalars.exp(scalars.atan(t) * four) - four,
    ):
        assert preimage(scalars, read, index, scalars.substitute(read, index, s)) == s
        assert preimage(scalars, read, index, read) == t
    squares = t * t
    assert preimage(scalars, squares, index, s * s) is None  # of two it is not known which
    assert preimage(scalars, squares, index, s * s, [t, s]) == s
    assert scalars.exp(scalars.log(t) + scalars.log(s)) == t * s


@given(st.lists(st.floats(1e-6, 1 - 1e-6), min_size=3, max_size=3), st.floats(0, 1))
def test_intervals_hold_every_value(shares: list[float], progress: float) -> None:
    objective = flowdsl.loads(
        spec(
            "i ~ choice(grid(n)); level ~ truncated(log_normal(-1, 2), 0.002, 80); "
            "u ~ uniform(-1, 2); t = karras_time(i, 0.002, 80, 7); "
            "s = max(0.002, min(t, level * sigmoid(u) + abs(u)^0.3 - tanh(u) / (1 + level)))",
            curriculum="n = 1 + floor(30 * progress)",
        )
    ).typed
    k = round(400 * progress)
    n = 1 + math.floor(30 * k / 400)
    values = {"i": math.ceil(shares[0] * n) / n, "level": 0.002 * 40000 ** shares[1],
              "u": 3 * shares[2] - 1, "sd": 0.5, "progress": k / 400}  # fmt: skip
    enclosures = Enclosures(objective, Curricula(objective))
    for name in ("t", "s"):
        expr = objective.definitions[name]
        value = evaluate(expr, values)
        intervals = enclosures.of(expr)
        assert any(low - 1e-9 <= value <= high + 1e-9 for low, high in intervals)
        assert all(math.isfinite(low) for low, _ in intervals)
    unknown = Draw("unheard of", Kind.TIME, Level.ROW)
    assert enclosures.of(unknown) == [(-math.inf, math.inf)]


@pytest.mark.parametrize(("step", "small"), [
    ("i - 1 / 17", True), ("(17 * i - 1) / 17", True), ("i / 2", False), ("i^2", False),
    ("j", False),
])  # fmt: skip
def test_levels_are_near_each_other_only_if_a_step_makes_them(step: str, small: bool) -> None:
    """Two functions of one draw are as far apart as they are: nothing is expanded in that."""
    times = (f"i ~ uniform(0.1, 1); j ~ uniform(0, 1); t = karras_time(i, 0.002, 80, 7); "
             f"s = karras_time({step}, 0.002, 80, 7)")  # fmt: skip
    (found,) = checked(spec(times), "identity").verdicts
    assert (found.status == "order") == small
    assert small or found.status == "refuted"


def test_two_levels_of_one_draw_do_not_reach_all_pairs() -> None:
    """A map of two times that is trained on a curve of them only."""
    text = "\n".join([
        "objective curve", "path z(t) = (1 - t) * data + t * noise",
        "times i ~ uniform(0, 1); j ~ uniform(0, 1); t = karras_time(i, 0, 1, 7)",
        "      r = karras_time(j * i, 0, 1, 7); m = karras_time(j * i / 2, 0, 1, 7)",
        "      q ~ uniform(0, 1)",
        "network u(z, t, r)", "map z(t) -> z(r) = z - (t - r) * u(z, t, r)",
        "target match map(z, t, m) to stop(map(map(z, t, r), r, m))",
        "anchor match u(z(q), q, q) to velocity(z(q))", "loss mse",
    ])  # fmt: skip
    assert not any("no row trains" in v.message for v in checked(text, "anchored").verdicts)
    (curve,) = (v for v in checked(text.replace("j * i", "i / 3"), "anchored").verdicts
                if v.status == "unanchored")  # fmt: skip
    assert "no row trains the map from times about 0.9" in curve.message
