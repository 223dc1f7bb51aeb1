"""Certificates: right objectives vanish at the truth, wrong ones stand out, on the reference
losses.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from flowdsl.exact import (
    Certificate,
    ExactNetwork,
    FlowMap,
    GaussianMixture,
    Guidance,
    MixtureField,
    Moment,
    Posterior,
    RandomDirections,
    Sampling,
    average_velocity,
    certify,
    linear_path,
    marginal_velocity,
    scaled_average_velocity,
    solved_map,
    trigonometric_path,
)
from flowdsl.exact.certificate import combined_score
from flowdsl.runtime.contract import Argument, NetworkSignature
from tests.reference import (
    alphaflow,
    draws,
    flow_matching,
    meanflow,
    shortcut,
    trajectory_flow_matching,
    tvm,
)
from tests.reference.adapter import LABEL, ReferenceLoss, W, network

torch.set_num_threads(1)

MIXTURE = GaussianMixture.random(seed=3, classes=2)
PLAIN = MixtureField(MIXTURE, linear_path())
DOUBLED = MixtureField(MIXTURE, linear_path(), Guidance(2.0))
U = network("u", "z t r")
QUICK = Sampling(rows=1024, batches=12)


def meanflow_loss(**constants: float) -> ReferenceLoss:
    """MeanFlow with the squared error, unless told otherwise."""
    return ReferenceLoss(meanflow.loss, draws.meanflow, (U,), {"power": 0.0, **constants})


def certificate(
    loss: ReferenceLoss, field: MixtureField = PLAIN, sampling: Sampling = QUICK, steps: int = 3
) -> Certificate:
    return certify(loss, field, {"u": average_velocity(FlowMap(field, steps))}, sampling=sampling)


# --- right ones vanish ---


def test_flow_matching_vanishes() -> None:
    loss = ReferenceLoss(flow_matching.loss, draws.flow_matching, (network("v", "z t"),))
    record = certify(loss, PLAIN, {"v": marginal_velocity(PLAIN)})
    assert record.vanishes()
    assert not record.stands_out()
    assert max(record.relative_error) < 0.02


def test_meanflow_with_guidance_vanishes_at_the_guided_flow_only() -> None:
    loss = meanflow_loss(omega=1.0, kappa=0.5)
    record = certificate(loss, DOUBLED)
    assert record.vanishes(), record
    assert max(record.relative_error) < 0.03
    unguided = certificate(loss, PLAIN)
    assert unguided.stands_out(), unguided


def test_meanflow_vanishes_with_guidance_on_an_interval() -> None:
    field = MixtureField(MIXTURE, linear_path(), Guidance(0.5 / (1 - 0.6), lo=0.2, hi=0.6))
    loss = meanflow_loss(omega=0.5, kappa=0.6, lo=0.2, hi=0.6)
    record = certificate(loss, field, Sampling(rows=1024, batches=8), steps=2)
    assert record.vanishes(), record


def test_alphaflow_vanishes_without_its_step() -> None:
    loss = ReferenceLoss(
        alphaflow.loss, draws.alphaflow, (U,), {"alpha": 0.0, "power": 0.0, "bound": 1e9}
    )
    record = certificate(loss, DOUBLED)
    assert record.vanishes(), record


def test_shortcut_and_tvm_terms_are_exactly_zero_at_the_truth() -> None:
    both = (U, network("slow", "z t r", average_of="u"))
    flow = FlowMap(PLAIN, 4)
    loss = ReferenceLoss(shortcut.loss, draws.shortcut, both, {"bound": 1e9})
    record = certify(loss, PLAIN, {"u": average_velocity(flow)}, sampling=QUICK)
    assert record.vanishes(), record
    assert record.metrics["target"] < 1e-6 < 0.1 < record.metrics["anchor"]

    roles = (
        network("F", "z t s", (LABEL, W)),
        network("slow", "z t s", (LABEL, W), average_of="F"),
    )
    loss = ReferenceLoss(tvm.loss, draws.tvm, roles)
    record = certify(loss, PLAIN, {"F": scaled_average_velocity(flow)}, sampling=QUICK)
    assert record.vanishes(), record
    assert record.metrics["target"] < 1e-6 < 0.1 < record.metrics["anchor"]


# --- wrong ones stand out ---


def test_meanflow_with_the_wrong_sign_stands_out() -> None:
    record = certificate(meanflow_loss(kappa=0.0, sign=1.0))
    assert record.stands_out(), record
    assert not record.vanishes()


def test_meanflow_with_an_adaptive_weight_is_biased() -> None:
    """The weight depends on the sample's own residual: about a tenth of the gradient is off."""
    record = certificate(meanflow_loss(kappa=0.0, power=1.0), sampling=Sampling(), steps=2)
    assert record.stands_out(), record


def test_meanflow_on_the_labels_of_others_stands_out() -> None:
    def swapped(networks, data, given, label, progress=0.0, **constants):
        return meanflow.loss(networks, data, given, 1 - label, progress, **constants)

    record = certificate(ReferenceLoss(swapped, draws.meanflow, (U,), {"power": 0.0, "kappa": 0.0}))
    assert record.stands_out(), record


def test_trajectory_flow_matching_and_alphaflow_with_its_step_are_biased() -> None:
    squared = {"power": 0.0, "kappa": 0.0}
    record = certificate(
        ReferenceLoss(trajectory_flow_matching.loss, draws.trajectory_flow_matching, (U,), squared)
    )
    assert record.stands_out(), record
    loss = ReferenceLoss(
        alphaflow.loss, draws.alphaflow, (U,), {**squared, "alpha": 0.8, "bound": 1e9}
    )
    assert certificate(loss, sampling=Sampling(), steps=2).stands_out()


def test_terminal_velocity_read_at_the_wrong_point_stands_out() -> None:
    roles = (
        network("F", "z t s", (LABEL, W)),
        network("slow", "z t s", (LABEL, W), average_of="F"),
    )

    def misplaced(networks, data, given, label, progress=0.0, **constants):
        def at_start(z: Tensor, t: Tensor, s: Tensor, **conditions: Tensor) -> Tensor:
            return networks["slow"](z, 0.5 * t, 0.5 * s, **conditions)

        return tvm.loss({**networks, "slow": at_start}, data, given, label, progress, **constants)

    loss = ReferenceLoss(misplaced, draws.tvm, roles, {"w": 1.0})
    truth = {"F": scaled_average_velocity(FlowMap(PLAIN, 3))}
    assert certify(loss, PLAIN, truth, sampling=QUICK).stands_out()


# --- the estimator itself ---


def test_copies_of_a_state_estimate_the_same_gradient_with_less_noise() -> None:
    loss = ReferenceLoss(flow_matching.loss, draws.flow_matching, (network("v", "z t"),))
    wrong = ReferenceLoss(shifted_flow_matching, draws.flow_matching, (network("v", "z t"),))
    truth = {"v": marginal_velocity(PLAIN)}
    alone = Sampling(batches=64)
    copied = Sampling(batches=64, posterior=Posterior(at_t, copies=16))
    a, b = (certify(loss, PLAIN, truth, sampling=s) for s in (alone, copied))
    assert a.vanishes()
    assert b.vanishes()
    assert sum(b.standard_error) < 0.75 * sum(a.standard_error)
    a, b = (certify(wrong, PLAIN, truth, sampling=s) for s in (alone, copied))
    assert b.stands_out()
    for x, y, ex, ey in zip(a.mean, b.mean, a.standard_error, b.standard_error, strict=True):
        assert abs(x - y) < 4.5 * math.hypot(ex, ey)


def at_t(given: dict[str, Tensor], rows: int) -> Tensor:
    return given["t"]


def shifted_flow_matching(networks, data, given, label, progress=0.0):
    """Flow matching to the velocity of noise that is a quarter too large."""
    noisy = {**given, "noise": 1.25 * given["noise"]}
    return flow_matching.loss(networks, data, noisy, label, progress)


def test_certificates_are_reproducible_and_depend_on_their_seed() -> None:
    loss = ReferenceLoss(flow_matching.loss, draws.flow_matching, (network("v", "z t"),))
    first, again, other = (
        certify(loss, PLAIN, {"v": marginal_velocity(PLAIN)}, sampling=Sampling(seed=seed))
        for seed in (0, 0, 1)
    )
    assert first.mean == again.mean
    assert first.mean != other.mean
    assert first.rows == 1024 * 32
    record = first.as_dict()
    assert record["directions"] == tuple(f"v[{i}]" for i in range(8))
    assert len(record["z_scores"]) == 8


def test_scale_is_the_curvature_of_the_loss() -> None:
    """For v(z, t) regressed on the velocity: twice the mean square of the direction, per entry."""
    loss = ReferenceLoss(flow_matching.loss, draws.flow_matching, (network("v", "z t"),))
    sampling = Sampling(rows=4096, batches=4)
    record = certify(loss, PLAIN, {"v": marginal_velocity(PLAIN)}, sampling=sampling)
    generator = torch.Generator().manual_seed(0)
    data, label = MIXTURE.sample(4096, generator)
    given = draws.flow_matching(data, generator)
    state = PLAIN.path.state(data, given["noise"], given["t"])
    shown = torch.where(given["dropped"], -1, label)
    directions = RandomDirections(network("v", "z t"), 8, seed=0, width=24)
    size = 2 * directions(state, (given["t"],), {"label": shown}).pow(2).mean((1, 2))
    torch.testing.assert_close(torch.tensor(record.scale, dtype=torch.float64), size)


def test_the_combined_score_sees_what_no_single_direction_shows() -> None:
    generator = torch.Generator().manual_seed(0)
    floor = torch.full((40,), 1e-6, dtype=torch.float64)
    noise = torch.randn(64, 40, generator=generator, dtype=torch.float64)
    assert abs(combined_score(noise, floor)) < 4
    shifted = noise + 0.25  # two standard errors in each direction
    assert float(shifted.mean(0).abs().max() / 0.125) < 6
    assert combined_score(shifted, floor) > 8


def test_what_is_below_the_resolution_counts_as_zero() -> None:
    record = Certificate(("u[0]",), (1e-6,), (1e-9,), (1.0,), 1e-4, 100, 10, 0.1, 1.0)
    assert record.vanishes()
    assert abs(record.z_scores[0]) < 0.02
    sharp = Certificate(("u[0]",), (1e-2,), (1e-9,), (1.0,), 1e-4, 100, 10, 0.1, 1.0)
    assert not sharp.vanishes()
    assert sharp.stands_out(relative=0.005)


def test_sampling_refuses_what_makes_no_estimate() -> None:
    with pytest.raises(ValueError, match="batches"):
        Sampling(batches=2)
    with pytest.raises(KeyError):
        certify(meanflow_loss(), PLAIN, {})


def test_the_moment_of_training_reaches_the_loss() -> None:
    """AlphaFlow at the start of training is biased, and at its end it is not."""
    squared = {"power": 0.0, "kappa": 0.0, "bound": 1e9}
    loss = ReferenceLoss(alphaflow.loss, draws.alphaflow, (U,), squared)
    truth = {"u": average_velocity(FlowMap(PLAIN, 2))}
    early = certify(loss, PLAIN, truth, sampling=QUICK, moment=Moment(progress=0.0))
    late = certify(loss, PLAIN, truth, sampling=QUICK, moment=Moment(progress=1.0))
    assert early.stands_out()
    assert late.vanishes()


# --- exact networks ---


def example_inputs(rows: int = 20) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    t, r = torch.rand(2, rows, generator=generator, dtype=torch.float64)
    return state, t, r, torch.randint(-1, 2, (rows,), generator=generator)


def test_an_exact_network_is_the_truth_and_moves_along_its_directions() -> None:
    state, t, r, label = example_inputs()
    flow = FlowMap(PLAIN, 2)
    net = ExactNetwork(U, average_velocity(flow), directions=5)
    truth = flow.average_velocity(state, t, r, label)
    torch.testing.assert_close(net(state, t, r, label=label), truth)
    rows = net.functions[0](state, (t, r), {"label": label})
    assert rows.shape == (5, 20, 2)
    weights = torch.randn(20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    value = (weights * net(state, t, r, label=label)).sum()
    gradient = torch.autograd.grad(value, net.eps)[0]
    torch.testing.assert_close(gradient, (weights * rows).sum((1, 2)))
    with torch.no_grad():
        net.eps += torch.arange(5.0)
    moved = truth + torch.einsum("c,cbo->bo", torch.arange(5.0).double(), rows)
    torch.testing.assert_close(net(state, t, r, label=label), moved)


def test_directions_depend_on_every_input_and_are_of_size_one() -> None:
    state, t, r, label = example_inputs(500)
    signature = network("F", "z t s", (LABEL, W))
    functions = RandomDirections(signature, 16, seed=0, width=24)
    base = functions(state, (t, r), {"label": label, "w": t})
    assert 0.4 < float(base.pow(2).mean().sqrt()) < 2.5
    changes = [
        functions(state + 0.5, (t, r), {"label": label, "w": t}),
        functions(state, (t + 0.2, r), {"label": label, "w": t}),
        functions(state, (t, r + 0.2), {"label": label, "w": t}),
        functions(state, (t, r), {"label": (label + 2) % 3 - 1, "w": t}),
        functions(state, (t, r), {"label": label, "w": t + 1}),
    ]
    for changed in changes:
        assert ((changed - base).pow(2).mean((1, 2)).sqrt() > 0.03).all()
    gram = torch.einsum("cbo,dbo->cd", base, base)
    assert float(torch.linalg.cond(gram)) < 1e4  # sixteen different functions
    torch.testing.assert_close(
        functions(state, (t, r), {"w": t}),
        functions(state, (t, r), {"label": torch.full_like(label, -1), "w": t}),
    )


def test_frozen_copies_and_several_heads() -> None:
    state, t, r, label = example_inputs()
    still = ExactNetwork(U, average_velocity(FlowMap(PLAIN, 2)), directions=0)
    assert not list(still.parameters())
    copied = copy.deepcopy(still).requires_grad_(False)
    torch.testing.assert_close(copied(state, t, r, label=label), still(state, t, r, label=label))

    heads = (Argument("u", "state"), Argument("phi", "scalar"))
    signature = NetworkSignature("net", U.arguments, (LABEL,), heads)
    net = ExactNetwork(signature, lambda z, t, r, *, label: (2 * z, t + r), directions=3, seed=4)
    with torch.no_grad():
        net.eps += 1.0
    u, phi = net(state, t, r, label=label)
    assert u.shape == (20, 2)
    assert phi.shape == (20,)
    torch.testing.assert_close(phi, t + r)
    assert (u - 2 * state).abs().max() > 0.1


def test_solved_maps_land_where_the_flow_does() -> None:
    """TrigFlow: cos(t) z - sin(t) sd F(z / sd, t) with sd = 0.5 lands at time 0."""
    path = trigonometric_path().scaled(0.5)
    field = MixtureField(MIXTURE, path)
    flow = FlowMap(field, 8)
    F = solved_map(flow, torch.cos, lambda t: -0.5 * torch.sin(t), end=0.0, input_scale=0.5)
    state, t, _, label = example_inputs()
    t = 0.2 + t
    landed = torch.cos(t)[:, None] * state - 0.5 * torch.sin(t)[:, None] * F(
        state / 0.5, t, label=label
    )
    torch.testing.assert_close(landed, flow(state, t, torch.zeros_like(t), label))
    # a network of states of any rank is moved too
    signature = network("F", "z t")
    net = ExactNetwork(signature, lambda z, t, *, label: z, directions=2)
    images = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    assert net(images, t[:4], label=label[:4]).shape == images.shape
