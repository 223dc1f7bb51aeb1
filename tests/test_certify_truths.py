"""What certificates measure with: schedules, truths and places found from a spec's trees, against
those known otherwise.
"""

from __future__ import annotations

import math

import pytest
import torch
from certify_support import GOOD, SPECS, kept_of, setting_of
from torch import Tensor

from flowdsl.certify import certify
from flowdsl.certify.guided import strength_of
from flowdsl.certify.kept import DRAWN, Kept
from flowdsl.certify.linear import combination
from flowdsl.certify.means import MeanReader
from flowdsl.certify.numbers import Numbers
from flowdsl.certify.path import affine_path
from flowdsl.certify.places import Place, places, row_kinds
from flowdsl.certify.setting import Setting, mixture, setting, training
from flowdsl.certify.shape import MapShape
from flowdsl.certify.solution import Solution
from flowdsl.certify.variant import bare, weighs_squares
from flowdsl.checks import check
from flowdsl.checks.certificate import (
    agreement,
)
from flowdsl.exact import (
    AffinePath,
    FlowMap,
    Guidance,
    MixtureField,
    linear_path,
    scaled_average_velocity,
    solved_map,
    trigonometric_path,
    variance_exploding_path,
    variance_preserving_path,
)
from flowdsl.pipeline import compiled as compile_spec
from flowdsl.pipeline import load, load_text
from flowdsl.spec.core import Constant, Formal, Kind, number, sub
from flowdsl.spec.objective import Objective

#: Whole specs, again and again: line coverage is measured by the tests of each part.
pytestmark = pytest.mark.untraced

torch.set_num_threads(1)


def times(count: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, starts, ends and labels."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    start, end = 0.05 + 0.9 * torch.rand(2, count, generator=generator, dtype=torch.float64)
    return state, start, end, torch.randint(-1, 2, (count,), generator=generator)


# --- paths ---

PATHS = {
    "(1 - t) * data + t * noise": linear_path(),
    "t * data + (1 - t) * noise": linear_path().reversed(),
    "cos(t) * data + sin(t) * 0.5 * noise": trigonometric_path().scaled(0.5),
    "data + t * noise": variance_exploding_path(),
    "exp(-4.975 * t^2 - 0.05 * t) * data + sqrt(1 - exp(-9.95 * t^2 - 0.1 * t)) * noise": (
        variance_preserving_path()
    ),
}


@pytest.mark.parametrize("body", PATHS)
def test_schedules_are_read_off_the_path(body: str) -> None:
    text = (SPECS / "flow_matching.flow").read_text()
    objective = load_text(text.replace("(1 - t) * data + t * noise", body))
    found = affine_path(objective, objective.paths["z"], Numbers({}, training(1.0)))
    known: AffinePath = PATHS[body]
    time = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for name in ("alpha", "sigma", "alpha_dot", "sigma_dot"):
        torch.testing.assert_close(getattr(found, name)(time), getattr(known, name)(time))
    assert (found.clock is None) == (known.clock is None)


# --- truths against those that are known ---


def test_the_average_velocity_is_found_for_meanflow_with_its_guidance() -> None:
    _, where = setting_of("meanflow")
    field = MixtureField(mixture(), linear_path(), Guidance(2.0))  # omega / (1 - kappa)
    state, start, end, label = times()
    expected_ = FlowMap(field, 12).average_velocity(state, start, end, label)
    found = where.truths["u"](state, start, end, label=label)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected_, atol=2e-3, rtol=2e-3)
    on_border = where.truths["u"](state, start, start.clone(), label=label)
    torch.testing.assert_close(on_border, field.velocity(state, start, label))


def test_derivatives_of_a_truth_are_those_of_the_flow_on_the_border_too() -> None:
    _, where = setting_of("meanflow")
    flow = FlowMap(MixtureField(mixture(), linear_path(), Guidance(2.0)), 12)
    state, start, end, label = times(20)
    end = torch.where(torch.arange(20) < 10, start, end)  # half of them on the border
    moving = (torch.randn_like(state), torch.ones_like(start))

    def along(function):  # type: ignore[no-untyped-def]
        return torch.func.jvp(lambda z, t: function(z, t, end, label), (state, start), moving)[1]

    found = along(lambda z, t, r, label: where.truths["u"](z, t, r, label=label))
    torch.testing.assert_close(found, along(flow.average_velocity), atol=2e-2, rtol=2e-2)


def test_the_scaled_velocity_is_found_for_tvm_at_each_scale() -> None:
    _, where = setting_of("tvm")
    known = scaled_average_velocity(FlowMap(MixtureField(mixture(), linear_path()), 12))
    state, start, end, label = times()
    scale = torch.where(torch.arange(40) % 2 == 0, 1.0, 2.0).double()
    found = where.truths["F"](state, start, end, label=label, w=scale)
    torch.testing.assert_close(
        found, known(state, start, end, label=label, w=scale), atol=2e-3, rtol=2e-3
    )
    assert where.truths["slow"](state, start, start, label=label, w=scale).shape == state.shape


def test_a_consistency_network_is_solved_for_through_its_border() -> None:
    objective = bare(load(str(GOOD / "scm.flow"))).objective
    where = setting(objective, compile_spec(objective))
    field = MixtureField(mixture(), trigonometric_path().scaled(0.5))
    known = solved_map(
        FlowMap(field, 12), torch.cos, lambda t: -0.5 * torch.sin(t), end=0.0, input_scale=0.5
    )
    state, start, _, label = times()
    torch.testing.assert_close(
        where.truths["F"](state / 0.5, start), known(state / 0.5, start, label=None),
        atol=1e-3, rtol=1e-3,
    )  # fmt: skip
    # -sd F is the velocity of a unit clock at the border: finite where the quotient is 0 / 0
    zero = torch.zeros_like(start)
    border = where.truths["F"](state / 0.5, zero)
    torch.testing.assert_close(-0.5 * border, -field.velocity(state, zero), atol=1e-6, rtol=1e-6)
    del label


@pytest.mark.parametrize("target", ["velocity", "noise", "data", "velocity - t * noise"])
def test_one_time_regression_learns_conditional_means(target: str) -> None:
    text = (SPECS / "flow_matching.flow").read_text()
    objective = bare(load_text(text.replace("to velocity", f"to {target}"))).objective
    where = setting(objective, compile_spec(objective))
    generator = torch.Generator().manual_seed(2)
    data, label = mixture().sample(30, generator)
    time = 0.1 + 0.8 * torch.rand(30, generator=generator, dtype=torch.float64)
    noise = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    state = linear_path().state(data, noise, time)
    found = where.truths["v"](state, time, label=label)
    many = 20000
    drawn = where.field.posterior_sample(state, time, label, generator, copies=many)
    ends = [d.reshape(30, many, 2) for d in drawn]
    wanted = {
        "velocity": ends[1] - ends[0],
        "noise": ends[1],
        "data": ends[0],
        "velocity - t * noise": ends[1] - ends[0] - time[:, None, None] * ends[1],
    }[target]
    error = 5 * wanted.std(1) / math.sqrt(many)
    assert bool(((found - wanted.mean(1)).abs() < error + 1e-3).all())


def test_guidance_is_solved_for_on_its_interval_and_jumps_there() -> None:
    text = (SPECS / "meanflow.flow").read_text().replace("lo = 0; hi = 1", "lo = 0.2; hi = 0.6")
    objective = bare(load_text(text)).objective
    solution = solution_of(objective)
    strength = strength_of(solution)
    assert strength.guided
    assert strength.steady
    assert strength.cuts == pytest.approx((0.2, 0.6), abs=1e-9)
    time = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
    torch.testing.assert_close(strength.at(time, {}), torch.tensor([1.0, 2.0, 2.0, 1.0]).double())


def solution_of(objective: Objective) -> Solution:
    numbers = Numbers({n: float(v) for n, v in objective.constants.items()}, training(1.0))
    data, _ = mixture().sample(256, torch.Generator().manual_seed(0))
    kinds = row_kinds(objective, compile_spec(objective), data)
    path = affine_path(objective, objective.paths["z"], numbers)
    shape = MapShape(objective, objective.maps["map"], numbers)
    found = tuple(places(objective, kinds, numbers))
    reader = MeanReader(objective, numbers, {"z": path})
    return Solution(objective, reader, {shape.network: shape}, found, (0.02, 0.98))


def test_a_combination_that_is_no_guidance_leaves_the_data_s_own_field() -> None:
    text = (SPECS / "meanflow.flow").read_text().replace("(1 - omega - kappa)", "(1 - omega)")
    assert solution_of(bare(load_text(text)).objective).equation(False) is None


def test_a_row_kind_is_one_that_the_loss_draws() -> None:
    objective = load("meanflow")
    data, _ = mixture().sample(512, torch.Generator().manual_seed(0))
    kinds = row_kinds(objective, compile_spec(objective), data)
    drawn = {tuple(kind.facts.values()): kind.share for kind in kinds}
    # dropped only on the diagonal
    assert set(drawn) == {(True, True), (True, False), (False, False)}
    assert drawn[False, False] == pytest.approx(0.25)
    assert drawn[True, True] == pytest.approx(0.1, abs=0.01)


# --- trees ---


def test_a_state_tree_is_a_combination_of_its_leaves() -> None:
    objective = load("meanflow")
    body = objective.maps["map"].body
    terms = combination(body, objective.networks)
    assert len(terms) == 2
    numbers = Numbers({}, training(1.0))
    t, r = torch.tensor([0.7, 0.5]).double(), torch.tensor([0.2, 0.5]).double()
    bound = {Formal("t", Kind.TIME): t, Formal("r", Kind.TIME): r}
    values = [numbers.rows(c, bound, t) for c in terms.values()]
    torch.testing.assert_close(values[0], torch.ones(2).double())
    torch.testing.assert_close(values[1], -(t - r))


def test_numbers_know_constants_and_training_and_refuse_what_is_unknown() -> None:
    from flowdsl.certify.errors import Uncertified

    numbers = Numbers({"w": 2.0}, training(0.25))
    assert float(numbers(Constant("w"))) == 2.0
    assert float(numbers(number("0.1"))) == 0.1
    with pytest.raises(Uncertified, match="`t` has no value"):
        numbers(Formal("t", Kind.TIME))
    with pytest.raises(Uncertified, match="no number"):
        numbers(load("meanflow").terms[0].prediction)


def test_a_robust_loss_is_replaced_and_a_plain_one_kept() -> None:
    robust, plain = bare(load("meanflow")), bare(load("tvm"))
    assert robust.replaced == {"target": ("the plain squared error in place of its loss",)}
    assert plain.replaced == {"target": (), "anchor": ()}
    assert plain.objective.terms == load("tvm").terms
    clipped = bare(load("alphaflow")).replaced["target"]
    assert clipped[0] == "clip taken as the identity"
    scaled = bare(load(str(GOOD / "scm.flow"))).replaced["target"]
    assert "norm(g) held at 1" in scaled


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        ("mse", True),
        ("error / 3", True),
        ("t * mse / (1 + t)^2", True),
        ("adaptive(error, power = 1, offset = 1)", False),
        ("log(1 + mse)", False),
        ("mse^2", False),
        ("mse + t", False),
    ],
)
def test_plain_losses_are_told_from_robust_ones(loss: str, plain: bool) -> None:
    text = (SPECS / "flow_matching.flow").read_text()
    (term,) = load_text(text.replace("loss          mse", f"loss {loss}")).terms
    assert term.target is not None
    assert weighs_squares(term.loss, sub(term.prediction, term.target)) == plain


# --- velocities at other times than the row's ---

STRAIGHT = "(1 - t) * data + t * noise"


CURVED = "cos(t) * data + sin(t) * noise"


def anchored(velocity: str, path: str = STRAIGHT) -> Objective:
    """TVM, its border tied to a velocity of the row's data and noise at some time."""
    text = (SPECS / "tvm.flow").read_text()
    assert STRAIGHT in text
    assert "velocity(z(q))" in text
    return load_text(text.replace(STRAIGHT, path).replace("velocity(z(q))", velocity))


@pytest.mark.parametrize("velocity", ["velocity", "velocity(z(s))", "(noise - data)"])
def test_the_velocity_of_a_straight_path_is_the_same_at_every_time(velocity: str) -> None:
    objective = anchored(velocity)
    strength = strength_of(solution_of(bare(objective).objective))
    assert strength.guided
    found = certify(objective, compile_spec, rows=256, batches=8)
    assert [t.outcome for t in found.terms] == ["zero", "zero"], found.render()
    assert max(m.relative for t in found.terms for m in t.measurements) < 1e-3
    report = check(objective, find=load)
    assert {agreement(report, t) for t in found.terms} == {"agrees"}


@pytest.mark.parametrize(
    ("velocity", "outcome"),
    [("velocity(z(q))", "zero"), ("velocity", "nonzero"), ("velocity(z(s))", "nonzero")],
)
def test_the_velocity_of_a_curved_path_is_not(velocity: str, outcome: str) -> None:
    objective = anchored(velocity, CURVED)
    found = certify(objective, compile_spec, rows=256, batches=8)
    term = found.of("anchor")
    assert term is not None
    assert term.outcome == outcome, found.render()
    assert agreement(check(objective, find=load), term) == "agrees"


@pytest.mark.parametrize(
    ("target", "outcome"),
    [("velocity(z(r))", "zero"), ("2 * velocity - velocity(z(r))", "zero"),
     ("z + (1 - t) * velocity(z(r))", "zero"), ("z(r)", "not measured")],
)  # fmt: skip
def test_a_regression_on_another_time_is_measured_where_its_mean_is_known(
    target: str, outcome: str
) -> None:
    text = (SPECS / "flow_matching.flow").read_text()
    text = text.replace("t ~ uniform(0, 1)", "t ~ uniform(0, 1); r ~ uniform(0, 1)")
    text = text.replace("to velocity", f"to {target}")
    found = certify(load_text(text), compile_spec, rows=256, batches=8)
    assert [t.outcome for t in found.terms] == [outcome], found.render()


@pytest.mark.parametrize("path", [linear_path(), trigonometric_path()])
def test_points_given_one_state_have_the_mean_velocity_of_another(path: AffinePath) -> None:
    field, generator = MixtureField(mixture(), path), torch.Generator().manual_seed(4)
    data, label = mixture().sample(20, generator)
    noise = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    here, there = (torch.full((20,), t, dtype=torch.float64) for t in (0.7, 0.3))
    state = path.state(data, noise, here)
    many = 20000
    points = field.posterior_points(state, here, label)
    drawn = field.posterior_sample(state, here, label, generator, copies=many)

    def moved(ends: tuple[Tensor, Tensor]) -> Tensor:
        """Velocities at the other time, (20, copies, 2)."""
        times = there.repeat_interleave(len(ends[0]) // 20)[:, None]
        return (path.alpha_dot(times) * ends[0] + path.sigma_dot(times) * ends[1]).reshape(
            20, -1, 2
        )

    sampled = moved(drawn)
    error = 5 * sampled.std(1) / math.sqrt(many)
    assert bool(((moved(points).mean(1) - sampled.mean(1)).abs() < error + 1e-9).all())


# --- what is kept of a row ---


def test_moments_are_enough_where_no_network_sees_the_velocity() -> None:
    assert kept_of("meanflow", "target").copies is None
    assert kept_of("tvm", "target").copies is None
    assert kept_of("shortcut", "target").copies is None
    plain, where = setting_of("alphaflow")  # steps along the velocity, before the end of training
    early = row_places(plain, where, progress=0.0)
    assert Kept(plain, early, where.numbers).posterior(exact=True).copies == DRAWN


def row_places(plain: Objective, where: Setting, progress: float) -> tuple[Place, ...]:
    constants = {n: float(v) for n, v in plain.constants.items()}
    numbers = Numbers(constants, training(progress))
    return tuple(places(plain, list(where.kinds), numbers))


def test_states_are_kept_at_the_times_at_which_networks_see_them() -> None:
    draws = {"gap": torch.tensor([0.2, 0.3]), "s": torch.tensor([0.1, 0.5]),
             "q": torch.tensor([0.4, 0.9]), "dropped": torch.tensor([False, True])}  # fmt: skip
    draws = {n: v if v.dtype == torch.bool else v.double() for n, v in draws.items()}
    target, anchor = kept_of("tvm", "target"), kept_of("tvm", "anchor")
    torch.testing.assert_close(target.state_time(draws, 2), torch.tensor([0.3, 0.8]).double())
    torch.testing.assert_close(anchor.state_time(draws, 2), draws["q"])
    assert target.shown is not None
    assert target.shown(draws, torch.tensor([1, 1])).tolist() == [1, -1]
