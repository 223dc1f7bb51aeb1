"""Times that networks are shown in disguise, or not at all; guides that another stage taught."""

from __future__ import annotations

import math

import pytest
import torch
from certify_support import SPECS, setting_of
from torch import Tensor

from flowdsl.certify import certify
from flowdsl.certify.guided import strength_of
from flowdsl.certify.inverse import SHOWN, inverted, readings
from flowdsl.certify.numbers import Numbers
from flowdsl.certify.setting import made, mixture, training
from flowdsl.certify.variant import bare
from flowdsl.checks import check
from flowdsl.checks.certificate import agreement
from flowdsl.exact import FlowMap, Guidance, MixtureField, linear_path, variance_exploding_path
from flowdsl.pipeline import compiled as compile_spec
from flowdsl.pipeline import load, load_text
from flowdsl.spec.core import Expr, Formal, Kind, apply, number, sub

torch.set_num_threads(1)

T, S = Formal("t", Kind.TIME), Formal("s", Kind.TIME)
QUICK = {"rows": 256, "batches": 8}


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- functions of time, turned around ---


DISGUISES = {
    "log(t) / 4": apply("div", apply("log", T), number(4)),
    "1 - t": sub(number(1), T),
    "exp(-t)": apply("exp", apply("neg", T)),
    "1 / (2 * t)": apply("div", number(1), apply("mul", number(2), T)),
    "sqrt(t) + 3": apply("add", apply("sqrt", T), number(3)),
    "t^3": apply("pow", T, number(3)),
    "sin(t)": apply("sin", T),
    "cos(t)": apply("cos", T),
    "atan(t / 2)": apply("atan", apply("div", T, number(2))),
    "tan(t)": apply("tan", T),
    "sigmoid(t)": apply("sigmoid", T),
}


@pytest.mark.parametrize("name", DISGUISES)
def test_a_time_is_read_off_an_invertible_function_of_it(name: str) -> None:
    numbers, time = Numbers({}, training(1.0)), rows(0.05, 0.4, 0.93)
    tree = inverted(DISGUISES[name], T)
    assert tree is not None
    shown = numbers.rows(DISGUISES[name], {T: time}, time)
    torch.testing.assert_close(numbers.rows(tree, {SHOWN: shown}, shown), time)


@pytest.mark.parametrize("expr", [apply("mul", T, T), apply("abs", T), number(2)])
def test_what_does_not_tell_a_time_is_not_turned_around(expr: Expr) -> None:
    assert inverted(expr, T) is None


def test_times_follow_from_another_where_one_is_known() -> None:
    gap, level = sub(T, S), DISGUISES["log(t) / 4"]
    found = readings((gap, level), [T, S])
    assert found is not None
    assert [(one.time, one.place) for one in found] == [(T, 1), (S, 0)]
    assert readings((gap,), [T, S]) is None
    assert readings((gap,), [S], [T]) is not None


# --- networks that tell the time from their state ---


LENGTH = """objective length "t" arXiv:1
path z(t) = PATH
times t, r ~ sorted(uniform(0.05, 0.95))
network u(z, h)
map z(t) -> z(r) = z - (t - r) * u(z, t - r)
differentiate t along velocity
target match u(z, t - r) to stop(velocity SIGN (t - r) * d/dt[u(z, t - r)])
loss mse
"""


@pytest.mark.parametrize("path", ["(1 - t) * data + t * noise", "cos(t) * data + sin(t) * noise"])
@pytest.mark.parametrize(("sign", "outcome"), [("-", "zero"), ("+", "nonzero")])
def test_a_network_that_sees_a_length_tells_the_time_itself(
    path: str, sign: str, outcome: str
) -> None:
    objective = load_text(LENGTH.replace("PATH", path).replace("SIGN", sign))
    found = certify(objective, compile_spec, **QUICK)
    assert [t.outcome for t in found.terms] == [outcome], found.render()
    assert agreement(check(objective, find=load), found.terms[0]) == "agrees"


def test_the_average_velocity_of_a_blind_network_is_that_at_the_time_it_is_told() -> None:
    _, where = setting_of("imf_boundary")
    flow = FlowMap(MixtureField(mixture(), linear_path(), Guidance(2.0, 0.3, 0.6)), 12)
    generator = torch.Generator().manual_seed(3)
    state = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    start, end = 0.1 + 0.8 * torch.rand(2, 20, generator=generator, dtype=torch.float64)
    label, like = torch.arange(20) % 2, torch.ones(20, dtype=torch.float64)
    shown = {"label": label, "omega": 2 * like, "lo": 0.3 * like, "hi": 0.6 * like}
    told = torch.cat([state, start[:, None]], 1)  # the noise's factor is the time itself
    found = where.truths["net"](told, start - end, **shown)
    assert isinstance(found, Tensor)
    known = flow.average_velocity(state, start, end, label)
    torch.testing.assert_close(found[:, :2], known, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found[:, 2], like)


def test_guidance_begins_and_ends_where_each_row_s_conditions_say() -> None:
    objective = bare(load("imf_boundary")).objective
    strength = strength_of(made(objective, compile_spec(objective)).truths.solution)
    like = torch.zeros(2, dtype=torch.float64)
    scalars = {"omega": rows(3, 5), "lo": rows(0.1, 0.3), "hi": rows(0.6, 0.9)}
    cuts = strength.cut(scalars, like)
    torch.testing.assert_close(torch.stack(list(cuts)), torch.stack([scalars["lo"], scalars["hi"]]))
    levels = torch.stack(strength.pieces(scalars, cuts, like))
    torch.testing.assert_close(levels, torch.stack([rows(1, 1), rows(3, 5), rows(1, 1)]))


# --- denoisers, and guides ---


def denoised(state: Tensor, time: Tensor, output: Tensor, sd: float = 0.5) -> Tensor:
    square = time**2 + sd**2
    return (sd**2 / square)[:, None] * state + (time * sd / square.sqrt())[:, None] * output


def test_a_preconditioned_denoiser_learns_the_mean_of_the_data_and_guides_with_it() -> None:
    field = MixtureField(mixture(), variance_exploding_path())
    state = torch.randn(20, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    time = torch.linspace(0.1, 4, 20, dtype=torch.float64)
    wanted = state - time[:, None] * field.velocity(state, time)  # E[data | z]
    _, alone = setting_of("denoiser")
    seen = state / (time**2 + 0.25).sqrt()[:, None], time.log() / 4
    for network in (alone.truths["F"], taught("consistency_distillation", "teacher")):
        output = network(*seen)
        assert isinstance(output, Tensor)
        torch.testing.assert_close(denoised(state, time, output), wanted)


def taught(spec: str, network: str):  # type: ignore[no-untyped-def]
    """What a network given from outside computes there."""
    from flowdsl.certify.lessons import lessons

    objective = load(spec)

    def ready(other):  # type: ignore[no-untyped-def]
        own = bare(other).objective
        return made(own, compile_spec(own)).truths

    return lessons(objective, load, ready, variance_exploding_path())[network].truth(None)


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [("", "", "zero"), ("to data", "to noise", "zero"), ("log(t) / 4", "t", "zero")],
)
def test_other_forms_of_a_denoiser_are_measured(old: str, new: str, outcome: str) -> None:
    text = (SPECS / "denoiser.flow").read_text()
    assert old in text
    found = certify(load_text(text.replace(old, new)), compile_spec, **QUICK)
    assert [t.outcome for t in found.terms] == [outcome], found.render()


def test_distillation_by_steps_falls_with_them() -> None:
    """The levels are fixed, so their distance is scaled down: a Heun step errs in third order."""
    objective = load("consistency_distillation")
    found = certify(objective, compile_spec, rows=256, batches=8, find=load)
    (term,) = found.terms
    assert term.outcome == "decays", found.render()
    assert term.decay is not None
    assert term.decay.small == "(t - s)"
    assert agreement(check(objective, find=load), term) == "agrees"
    assert math.isfinite(term.decay.error)
