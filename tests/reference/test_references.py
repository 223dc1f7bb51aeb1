"""The references against finite differences, against each other, and at their special cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.reference import (
    alphaflow,
    draws,
    flow_matching,
    meanflow,
    shortcut,
    trajectory_flow_matching,
    tvm,
)
from tests.reference.networks import (
    SmoothNetwork,
    average_network,
    lagging_copy,
    terminal_network,
)
from tests.reference.plain import pad

torch.set_num_threads(1)

SHAPES = [(3,), (2, 4, 4)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["vector", "image"])


def batch(shape: tuple[int, ...], rows: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    return data, torch.randint(0, 5, (rows,), generator=generator)


def drawn(law, data: Tensor, seed: int = 1) -> dict[str, Tensor]:
    return law(data, torch.Generator().manual_seed(seed))


def gradients(value: Tensor, network: nn.Module) -> Tensor:
    parameters = list(network.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    pairs = zip(parameters, found, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])


def rate(function, at: Tensor, h: float = 1e-3) -> Tensor:
    """d function / d at by central differences of order four."""
    near, far = function(at + h) - function(at - h), function(at + 2 * h) - function(at - 2 * h)
    return (8 * near - far) / (12 * h)


@every_shape
def test_networks_depend_smoothly_on_every_input(shape: tuple[int, ...]) -> None:
    data, label = batch(shape)
    net = terminal_network(shape)
    t, s, w = torch.rand(3, len(data), generator=torch.Generator().manual_seed(2)).double()
    base = net(data, t, s, label=label, w=w)
    assert base.shape == data.shape
    for other in (
        net(data + 0.1, t, s, label=label, w=w),
        net(data, t + 0.1, s, label=label, w=w),
        net(data, t, s + 0.1, label=label, w=w),
        net(data, t, s, label=(label + 1) % 5, w=w),
        net(data, t, s, label=torch.full_like(label, -1), w=w),
        net(data, t, s, label=label, w=w + 0.1),
    ):
        assert ((other - base).flatten(1).norm(dim=1) > 1e-3).all()
    with pytest.raises(AssertionError, match="expected"):
        net(data, t, s, label=label)
    two = SmoothNetwork(shape, 1, heads=2)(data, t, label=label)
    assert len(two) == 2
    assert two[1].shape == data.shape
    slope = torch.func.jvp(lambda t: net(data, t, s, label=label, w=w), (t,), (t * 0 + 1,))[1]
    torch.testing.assert_close(slope, rate(lambda t: net(data, t, s, label=label, w=w), t))


@every_shape
def test_meanflow_is_its_formula_with_a_finite_difference(shape: tuple[int, ...]) -> None:
    data, label = batch(shape)
    given = drawn(draws.meanflow, data)
    u = average_network(shape)
    value, metrics = meanflow.loss(
        {"u": u}, data, given, label, omega=0.7, kappa=0.4, lo=0.2, hi=0.7
    )

    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(data)):
        t = given["t"][i : i + 1]
        r = t if given["diagonal"][i] else given["r"][i : i + 1]
        dropped = bool(given["dropped"][i])
        x, n, y, null = (
            data[i : i + 1],
            given["noise"][i : i + 1],
            label[i : i + 1],
            torch.tensor([-1]),
        )
        shown = null if dropped else y
        z, velocity = (1 - t) * x + t * n, n - x
        if dropped or not 0.2 <= float(t) <= 0.7:
            guided = velocity
        else:
            guided = 0.7 * velocity + 0.4 * u(z, t, t, label=y) - 0.1 * u(z, t, t, label=null)
        moving = lambda h: u(z + h * guided, t + h, r, label=shown)  # noqa: B023, E731
        target = guided - (t - r) * rate(moving, torch.zeros(1, dtype=torch.float64))
        error = ((u(z, t, r, label=shown) - target.detach()) ** 2).sum()
        total = total + error / (error + 1e-2).detach() / len(data)
    torch.testing.assert_close(value, total, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(gradients(value, u), gradients(total, u), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(metrics["target"], value.detach())


@every_shape
def test_meanflow_on_the_diagonal_is_flow_matching(shape: tuple[int, ...]) -> None:
    data, label = batch(shape)
    given = drawn(draws.meanflow, data)
    given["diagonal"] = torch.ones_like(given["diagonal"])
    u = average_network(shape)

    class Diagonal(nn.Module):
        def forward(self, z: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
            return u(z, t, t, label=label)

    ours, _ = meanflow.loss({"u": u}, data, given, label, omega=1.0, kappa=0.0, power=0.0)
    theirs, _ = flow_matching.loss({"v": Diagonal()}, data, given, label)
    entries = data[0].numel()
    torch.testing.assert_close(ours, entries * theirs)
    torch.testing.assert_close(gradients(ours, u), entries * gradients(theirs, u))


def test_no_label_is_the_null_label() -> None:
    data, label = batch((3,))
    given = drawn(draws.meanflow, data)
    u = average_network((3,))
    without, _ = meanflow.loss({"u": u}, data, given, None)
    null, _ = meanflow.loss({"u": u}, data, given, torch.full_like(label, -1))
    torch.testing.assert_close(without, null)
    with_label, _ = meanflow.loss({"u": u}, data, given, label)
    assert (with_label - null).abs() > 1e-4
    everything = {**given, "dropped": torch.ones_like(given["dropped"])}
    used = gradients(meanflow.loss({"u": u}, data, everything, label)[0], u)
    table = sum(p.numel() for name, p in u.named_parameters() if name == "classes")
    start = 0
    for name, parameter in u.named_parameters():
        if name == "classes":
            rows = used[start : start + table].reshape(parameter.shape)
            assert rows[:-1].abs().max() == 0
            assert rows[-1].abs().max() > 0
        start += parameter.numel()


@every_shape
def test_tvm_is_its_formula_with_a_finite_difference(shape: tuple[int, ...]) -> None:
    data, label = batch(shape)
    given = drawn(draws.tvm, data)
    given["dropped"][:3] = True
    F = terminal_network(shape)
    slow = lagging_copy(F)
    value, metrics = tvm.loss({"F": F, "slow": slow}, data, given, label, w=1.7)
    noise, s, q, dropped = given["noise"], given["s"], given["q"], given["dropped"]
    t = s + given["gap"]
    w = torch.where(dropped, 1.0, 1.7).double()
    shown = torch.where(dropped, -1, label)
    z = (1 - pad(t, data)) * data + pad(t, data) * noise
    jump = lambda s: z + pad((s - t) * w, data) * F(z, t, s, label=shown, w=w)  # noqa: E731
    terminal = pad(w, data) * slow(jump(s), s, s, label=shown, w=w)
    rows = ((rate(jump, s) - terminal.detach()) ** 2).flatten(1).mean(1) / w**2
    torch.testing.assert_close(metrics["target"], rows.mean().detach(), rtol=1e-7, atol=1e-9)
    z_q = (1 - pad(q, data)) * data + pad(q, data) * noise
    null = torch.full_like(label, -1)
    goal = pad(w, data) * (noise - data)
    goal = goal + pad(1 - w, data) * slow(z_q, q, q, label=null, w=torch.ones_like(w))
    anchor = ((pad(w, data) * F(z_q, q, q, label=shown, w=w) - goal) ** 2).flatten(1).mean(1)
    total = (rows + anchor / w**2).mean()
    torch.testing.assert_close(value, total, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gradients(value, F), gradients(total, F), rtol=1e-5, atol=1e-7)
    assert not any(p.requires_grad for p in slow.parameters())
    # no gap: the first term has no rows
    still = {**given, "gap": torch.zeros_like(t)}
    assert tvm.loss({"F": F, "slow": slow}, data, still, label)[1]["target"] == 0


def test_the_schedule_of_alphaflow() -> None:
    stated = {0.35: 0.9770, 0.4: 0.9241, 0.45: 0.7773, 0.5: 0.5, 0.6: 0.0759, 0.7: 0.0067}
    for progress, alpha in stated.items():
        assert abs(alphaflow.schedule(progress) - alpha) < 6e-5
    assert alphaflow.schedule(0.28) == 1.0
    assert alphaflow.schedule(0.29) < 1.0
    assert alphaflow.schedule(0.71) > 0.0
    assert alphaflow.schedule(0.72) == 0.0


@every_shape
def test_alphaflow_runs_from_trajectory_flow_matching_to_meanflow(shape: tuple[int, ...]) -> None:
    data, label = batch(shape)
    given = drawn(draws.alphaflow, data)
    u = average_network(shape)
    wide = {"bound": 1e9}
    first, _ = alphaflow.loss({"u": u}, data, given, label, progress=0.1, **wide)
    trajectory, _ = trajectory_flow_matching.loss({"u": u}, data, given, label)
    torch.testing.assert_close(first, trajectory)
    torch.testing.assert_close(gradients(first, u), gradients(trajectory, u))

    # alpha -> 0 with the squared error: the gradient over alpha^2 (the weight and the residual are
    # each of the order of alpha) is MeanFlow's, up to the order of alpha
    moving = {**given, "diagonal": given["diagonal"] & False, "dropped": given["dropped"] & False}
    squared = {"power": 0.0, "bound": 1e9}
    last, _ = alphaflow.loss({"u": u}, data, moving, label, progress=1.0, **squared)
    limit, _ = meanflow.loss({"u": u}, data, moving, label, power=0.0)
    goal = gradients(limit, u) / data[0].numel()
    torch.testing.assert_close(gradients(last, u), goal)

    near = [float(alphaflow_residual(u, data, moving, label, alpha)) for alpha in (0.02, 0.01)]
    assert 1.8 < near[0] / near[1] < 2.2


def alphaflow_residual(u, data: Tensor, given, label: Tensor, alpha: float) -> Tensor:
    """Distance between AlphaFlow's gradient over alpha, residual over alpha, and MeanFlow's."""
    value, _ = alphaflow.loss({"u": u}, data, given, label, alpha=alpha, power=0.0, bound=1e9)
    # the loss weighs rows by alpha, and the residual itself is of the order of alpha
    scaled = gradients(value, u) / alpha**2
    limit, _ = meanflow.loss({"u": u}, data, given, label, power=0.0)
    return (scaled - gradients(limit, u) / data[0].numel()).norm()


def test_alphaflow_clips_off_the_diagonal_only_and_weighs_rows() -> None:
    data, label = batch((3,))
    given = drawn(draws.alphaflow, data)
    u = average_network((3,))
    options = {"alpha": 0.3, "power": 0.0}
    wide, _ = alphaflow.loss({"u": u}, data, given, label, bound=1e9, **options)
    tight, _ = alphaflow.loss({"u": u}, data, given, label, bound=0.5, **options)
    assert (wide - tight).abs() > 1e-3
    fixed = {**given, "diagonal": given["diagonal"] | True}
    a, _ = alphaflow.loss({"u": u}, data, fixed, label, bound=1e9, **options)
    b, _ = alphaflow.loss({"u": u}, data, fixed, label, bound=0.5, **options)
    torch.testing.assert_close(a, b)
    plain, _ = meanflow.loss({"u": u}, data, fixed | {"dropped": given["dropped"] & False}, label,
                             power=0.0)  # fmt: skip
    kept, _ = alphaflow.loss({"u": u}, data, fixed | {"dropped": given["dropped"] & False}, label,
                             bound=1e9, **options)  # fmt: skip
    torch.testing.assert_close(3 * kept, plain)


@every_shape
def test_shortcut_is_two_half_steps(shape: tuple[int, ...]) -> None:
    data, label = batch(shape)
    given = drawn(draws.shortcut, data)
    u = average_network(shape)
    slow = lagging_copy(u)
    value, metrics = shortcut.loss({"u": u, "slow": slow}, data, given, label, bound=1.0)
    target = anchor = 0.0
    for i in range(len(data)):
        t = given["t"][i : i + 1]
        x, n = data[i : i + 1], given["noise"][i : i + 1]
        shown = torch.tensor([-1]) if given["dropped"][i] else label[i : i + 1]
        z = (1 - t) * x + t * n
        if given["diagonal"][i]:
            anchor = anchor + ((u(z, t, t, label=shown) - (n - x)) ** 2).mean() / len(data)
            continue
        r = given["r"][i : i + 1]
        half = (t - r) / 2
        first = slow(z, t, t - half, label=shown)
        second = slow((z - half * first).clamp(-1, 1), t - half, r, label=shown)
        goal = ((first + second) / 2).clamp(-1, 1)
        target = target + ((u(z, t, r, label=shown) - goal) ** 2).mean() / len(data)
    torch.testing.assert_close(metrics["target"], target.detach())
    torch.testing.assert_close(metrics["anchor"], anchor.detach())
    torch.testing.assert_close(gradients(value, u), gradients(target + anchor, u))


def test_shares_are_exact_and_may_fall_anywhere() -> None:
    data = torch.zeros(50, 2, dtype=torch.float64)
    for seed in range(5):
        given = drawn(draws.meanflow, data, seed)
        assert int(given["diagonal"].sum()) == 37
        assert int(given["dropped"].sum()) == 4
        assert not (given["dropped"] & ~given["diagonal"]).any()
        assert (given["t"] >= given["r"]).all()
        later = drawn(draws.tvm, data, seed)
        assert ((later["s"] + later["gap"]) < 1).all()
    assert drawn(draws.meanflow, data, 0)["diagonal"][:37].sum() < 37
