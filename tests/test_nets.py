"""The bundled networks: derivatives in every mode, how they are called, and every refusal.

Derivatives are compared with finite differences and with reverse mode applied twice, which share
no forward rule with the network.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.func import functional_call, grad, jvp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.contract import NULL_LABEL, Argument, NetworkSignature
from flowdsl.runtime.nets import (
    SIZES,
    DiT,
    NetworkConfig,
    ScalarNetwork,
    Size,
    build_network,
    configure,
    dit,
    layers,
    network_from_config,
    norms,
)
from flowdsl.runtime.nets.attention import dual_attention
from flowdsl.runtime.nets.build import initialise
from flowdsl.runtime.nets.duals import join, split
from flowdsl.runtime.nets.layers import FEATURES, HIGHEST, LOWEST, Linear, time_features

TINY = Size("tiny", depth=2, width=16, heads=2)
SHAPE = (2, 4, 6)
STATE, TIME, SCALAR, LABEL, FEATURE = "state", "time", "scalar", "label", "features"


def arguments(text: str) -> tuple[Argument, ...]:
    """`z:state t:time` as arguments."""
    return tuple(Argument(*part.split(":")) for part in text.split())  # type: ignore[arg-type]


def config(
    call: str = "z:state t:time r:time",
    conditions: str = "label:label w:scalar",
    heads: str = "u:state",
    **changes: Any,
) -> NetworkConfig:
    base = NetworkConfig(
        "u", arguments(call), arguments(conditions), arguments(heads), SHAPE, 3, TINY, 2
    )
    return replace(base, **changes)


def stirred(settings: NetworkConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A network whose zeros are replaced, so that every part matters."""
    g = torch.Generator().manual_seed(seed)
    network = network_from_config(settings, generator=g)
    for p in network.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3, generator=g)
    return network.to(dtype)


def batch(rows: int = 3, shape: tuple[int, ...] = SHAPE, seed: int = 1, dtype: Any = torch.float64):
    g = torch.Generator().manual_seed(seed)
    z, dz = (torch.randn(rows, *shape, generator=g, dtype=torch.float64) for _ in range(2))
    t, r, w = (torch.rand(rows, generator=g, dtype=torch.float64) for _ in range(3))
    label = torch.tensor([NULL_LABEL, 0, 2, 1][:rows])
    return (*(x.to(dtype) for x in (z, t, r, w)), label, dz.to(dtype))


def gap(ours: Any, theirs: Any) -> float:
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(ours, theirs, strict=True)]
    assert pairs
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in pairs)


def closed(network: Any, label: Tensor, w: Tensor) -> Callable[..., Tensor]:
    return lambda z, t, r: network(z, t, r, label=label, w=w)


def by_hand(network: Any) -> Callable[..., Tensor]:
    """The network `u(z, t, r | label, w)` spelled out once more, from its weights."""
    weights, settings = dict(network.named_parameters()), network.config
    (channels, height, width), side = settings.shape, settings.patch
    corners = [(i, j) for i in range(0, height, side) for j in range(0, width, side)]

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    def norm(x: Tensor) -> Tensor:
        return unit(x - x.mean(-1, keepdim=True) if settings.norm == "layer" else x)

    def unit(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def embed(index: int, number: Tensor) -> Tensor:
        angles = torch.stack([number * f for f in frequencies()], dim=-1)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        hidden = linear(f"numbers.{index}.inner", features)
        return linear(f"numbers.{index}.outer", hidden * hidden.sigmoid())

    def mix(name: str, x: Tensor) -> Tensor:
        heads, rows = settings.size.heads, []
        query, key, value = linear(f"{name}.inputs", x).chunk(3, -1)
        size = query.shape[-1] // heads
        for h in range(heads):
            q, k, v = (y[..., h * size : (h + 1) * size] for y in (query, key, value))
            if settings.qk_norm:
                q, k = unit(q) * weights[f"{name}.gains"][0], unit(k) * weights[f"{name}.gains"][1]
            scores = (torch.einsum("bid,bjd->bij", q, k) / size**0.5).exp()
            rows.append(torch.einsum("bij,bjd->bid", scores / scores.sum(-1, keepdim=True), v))
        return linear(f"{name}.output", torch.cat(rows, dim=-1))

    def modulation(name: str, condition: Tensor, count: int) -> tuple[Tensor, ...]:
        if settings.conditioning == "in_context":
            return tuple(weights[f"{name}.modulation.vectors"])
        parts = linear(f"{name}.modulation", condition)[:, None].chunk(count, -1)
        if settings.modulation == "plain":
            return parts
        return tuple(unit(p) for p in parts)

    def block(name: str, x: Tensor, condition: Tensor) -> Tensor:
        parts = modulation(name, condition, 6)
        x = x + parts[2] * mix(f"{name}.attention", norm(x) * (1 + parts[1]) + parts[0])
        y = linear(f"{name}.inner", norm(x) * (1 + parts[4]) + parts[3])
        y = y / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
        return x + parts[5] * linear(f"{name}.outer", y)

    def forward(z: Tensor, t: Tensor, r: Tensor, *, label: Tensor, w: Tensor) -> Tensor:
        seen = [embed(0, t), embed(1, t - r), embed(2, w)]
        seen.append(weights["labels.table"][[int(i) for i in label]])  # -1: the last row
        total = seen[0] + seen[1] + seen[2] + seen[3]
        condition = total * total.sigmoid()
        cells = [z[:, :, i : i + side, j : j + side].permute(0, 2, 3, 1) for i, j in corners]
        x = torch.stack([linear("patches", c.reshape(len(z), -1)) for c in cells], dim=1)
        x = x + network.positions
        if settings.conditioning == "in_context":
            rows = [
                vector + weights[f"prefixes.{n}.tokens"][i]
                for n, (vector, count) in enumerate(zip(seen, (4, 4, 4, 8), strict=True))
                for i in range(count)
            ]
            x = torch.cat([torch.stack(rows, dim=1), x], dim=1)
        for i in range(settings.size.depth):
            x = block(f"blocks.{i}", x, condition)
        shift, scale = modulation("heads.0", condition, 2)
        y = linear("heads.0.output", norm(x[:, -len(corners) :]) * (1 + scale) + shift)
        output = torch.zeros_like(z)
        for n, (i, j) in enumerate(corners):
            cell = y[:, n].view(-1, side, side, channels).permute(0, 3, 1, 2)
            output = output + functional.pad(cell, (j, width - j - side, i, height - i - side))
        return output

    return forward


def frequencies() -> list[float]:
    count = FEATURES // 2
    return [LOWEST * (HIGHEST / LOWEST) ** (k / (count - 1)) for k in range(count)]


def by_reverse(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Output and tangent of elementary operations by reverse mode applied twice."""
    primals = tuple(p.detach().clone().requires_grad_() for p in primals)
    output = function(*primals)
    probe = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, primals, probe, create_graph=True, materialize_grads=True)
    paired = sum((p * t).sum() for p, t in zip(pulled, tangents, strict=True))
    (tangent,) = torch.autograd.grad(paired, probe, create_graph=True)
    return output, tangent


VARIANTS = {
    "usual": config(),
    "layer norm": config(norm="layer"),
    "normalised queries": config(qk_norm=True),
    "learned positions": config(positions="learned"),
    "single pixels": config(patch=1),
    "tokens in context": config(conditioning="in_context"),
    "context, layer norm, queries": config(conditioning="in_context", norm="layer", qk_norm=True),
    "normalised modulation": config(modulation="normalised", qk_norm=True, start="spectral"),
}


@pytest.fixture(params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def variant(request: pytest.FixtureRequest) -> Any:
    return stirred(VARIANTS[request.param])


class TestDerivatives:
    def test_forward_is_the_slope(self, variant: Any) -> None:
        z, t, r, w, label, dz = batch()
        dt, dr, h = torch.full_like(t, 0.7), torch.full_like(r, -0.4), 1e-5
        f = closed(variant, label, w)
        _, found = jvp(f, (z, t, r), (dz, dt, dr))
        with torch.no_grad():
            ahead = f(z + h * dz, t + h * dt, r + h * dr)
            behind = f(z - h * dz, t - h * dt, r - h * dr)
        assert gap([found], [(ahead - behind) / (2 * h)]) < 1e-7

    def test_gradients_of_output_and_derivative(self, variant: Any) -> None:
        z, t, r, w, label, dz = batch()
        primals, tangents = (z, t, r), (dz, torch.ones_like(t), torch.zeros_like(r))
        f, parameters = closed(variant, label, w), list(variant.parameters())
        spelled = closed(by_hand(variant), label, w)

        def gradients(pair: tuple[Tensor, Tensor]) -> list[Tensor]:
            value = pair[0].sin().sum() + (pair[1] ** 2 + pair[0] * pair[1]).mean()
            return list(torch.autograd.grad(value, parameters))

        pair, wanted = jvp(f, primals, tangents), by_reverse(spelled, primals, tangents)
        assert gap([f(*primals)], [wanted[0]]) < 1e-10
        assert gap(pair, wanted) < 1e-10
        assert gap(gradients(pair), gradients(wanted)) < 1e-10

    @pytest.mark.parametrize("moving", ["z", "t", "r", "tr", "zr"])
    def test_some_inputs_rest(self, moving: str) -> None:
        """A zero tangent, and an input outside the derivative, are the same."""
        network = stirred(config())
        z, t, r, w, label, dz = batch()
        given = {"z": (z, dz), "t": (t, torch.ones_like(t)), "r": (r, torch.ones_like(r))}
        zeros = tuple(
            dx if name in moving else torch.zeros_like(dx) for name, (_, dx) in given.items()
        )

        def some(*inputs: Tensor) -> Tensor:
            full = {n: x for n, (x, _) in given.items()} | dict(zip(moving, inputs, strict=True))
            return closed(network, label, w)(*full.values())

        moved = jvp(some, tuple(given[n][0] for n in moving), tuple(given[n][1] for n in moving))
        assert gap(moved, jvp(closed(network, label, w), (z, t, r), zeros)) < 1e-12
        assert gap(moved, by_reverse(closed(by_hand(network), label, w), (z, t, r), zeros)) < 1e-10

    def test_a_condition_can_move(self) -> None:
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        f = lambda w: network(z, t, r, label=label, w=w)  # noqa: E731
        pair = jvp(f, (w,), (torch.ones_like(w),))
        spelled = by_hand(network)
        g = lambda w: spelled(z, t, r, label=label, w=w)  # noqa: E731
        assert gap(pair, by_reverse(g, (w,), (torch.ones_like(w),))) < 1e-10
        assert float(pair[1].abs().max()) > 1e-3

    def test_second_derivative_forward(self) -> None:
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        f, one = closed(network, label, w), torch.ones_like(t)
        slope = lambda t: jvp(lambda t: f(z, t, r), (t,), (one,))[1]  # noqa: E731
        _, found = jvp(slope, (t,), (one,))
        h = 1e-4
        assert gap([found], [(slope(t + h) - slope(t - h)) / (2 * h)]) < 1e-5

    def test_gradient_with_respect_to_the_state_inside(self) -> None:
        """A derivative of a gradient (a score of a scalar head, moved in time)."""
        network = stirred(config(heads="e:scalar"))
        z, t, r, w, label, _ = batch()

        def slope(t: Tensor) -> Tensor:
            return grad(lambda z: network(z, t, r, label=label, w=w).sum())(z)

        h, one = 1e-5, torch.ones_like(t)
        _, found = jvp(slope, (t,), (one,))
        assert gap([found], [(slope(t + h) - slope(t - h)) / (2 * h)]) < 1e-6

    def test_derivative_with_respect_to_weights(self) -> None:
        """Where weights do move, the cheap rule of the linear layers must step aside."""
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        names, weights = zip(*network.named_parameters(), strict=True)

        def f(*values: Tensor) -> Tensor:
            state = dict(zip(names, values, strict=True))
            return functional_call(network, state, (z, t, r), {"label": label, "w": w})

        moves, h = tuple(torch.randn_like(p) for p in weights), 1e-6
        _, found = jvp(f, weights, moves)
        with torch.no_grad():
            ahead, behind = (
                f(*(p + s * h * m for p, m in zip(weights, moves, strict=True))) for s in (1, -1)
            )
        assert gap([found], [(ahead - behind) / (2 * h)]) < 1e-6

    def test_every_weight_learns_from_the_derivative(self) -> None:
        network = stirred(config(positions="learned", qk_norm=True, own_blocks=1))
        z, t, r, w, label, dz = batch(4)
        _, tangent = jvp(
            closed(network, label, w), (z, t, r), (dz, torch.ones_like(t), torch.zeros_like(r))
        )
        (tangent**2).sum().backward()
        still = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
        # A derivative doesn't see what is added to the output.
        assert still == {"heads.0.output.bias"}

    def test_time_derivative_stays_of_order_one(self) -> None:
        t = torch.linspace(0, 1, 50, dtype=torch.float64)
        features, slopes = jvp(time_features, (t,), (torch.ones_like(t),))
        assert features.shape == (50, FEATURES)
        assert float(slopes.abs().max()) <= HIGHEST + 1e-9
        assert float(slopes.square().mean().sqrt()) < 1


class Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def dense(self) -> int:
        return self.calls["mm"] + self.calls["addmm"]


class TestCost:
    def test_a_linear_layer_costs_two_products_forward(self) -> None:
        layer = Linear(4, 5)
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
        x, dx = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
        with Products() as ours:
            pair = jvp(layer, (x,), (dx,))
        plain = lambda x: functional.linear(x, layer.weight, layer.bias)  # noqa: E731
        with Products() as general:
            wanted = jvp(plain, (x,), (dx,))
        assert gap(pair, wanted) < 1e-6
        assert ours.dense == 2
        assert general.dense == 3

    def test_a_network_costs_twice_a_forward_pass(self) -> None:
        network = stirred(config())
        z, t, r, w, label, dz = batch()
        with Products() as once, torch.no_grad():
            network(z, t, r, label=label, w=w)
        with Products() as both, torch.no_grad():
            moves = (dz, torch.ones_like(t), torch.zeros_like(r))
            jvp(closed(network, label, w), (z, t, r), moves)
        # Every linear layer twice, but for the embedding of w, which doesn't move.
        assert both.dense == 2 * once.dense - 2

    def test_no_graph_is_left_without_gradients(self) -> None:
        network = stirred(config())
        z, t, r, w, label, dz = batch()
        with torch.no_grad():
            pair = jvp(closed(network, label, w), (z, t, r), (dz, torch.ones_like(t), 0 * r))
        assert not any(x.requires_grad for x in pair)


class TestShapes:
    @given(
        channels=st.integers(1, 3),
        grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
        patch=st.integers(1, 3),
        rows=st.integers(1, 3),
        seed=st.integers(0, 99),
    )
    @settings(max_examples=20)
    def test_any_picture_any_patch(
        self, channels: int, grid: tuple[int, int], patch: int, rows: int, seed: int
    ) -> None:
        shape = (channels, grid[0] * patch, grid[1] * patch)
        network = stirred(config(shape=shape, patch=patch, size=replace(TINY, depth=1)), seed=seed)
        z, t, r, w, label, dz = batch(rows, shape, seed)
        f, h = closed(network, label, w), 1e-5
        pair = jvp(f, (z, t, r), (dz, torch.ones_like(t), 0 * r))
        assert pair[0].shape == z.shape
        with torch.no_grad():
            slope = (f(z + h * dz, t + h, r) - f(z - h * dz, t - h, r)) / (2 * h)
        assert gap([pair[1]], [slope]) < 1e-6

    def test_patches_go_back_where_they_came_from(self) -> None:
        network = network_from_config(config())
        z = torch.randn(2, *SHAPE)
        cut = network._cut((z,))
        assert cut.shape == (2, 6, 8)
        assert torch.equal(network._paste(cut, "state"), z)
        corner = z[:, :, :2, 2:4].permute(0, 2, 3, 1).reshape(2, -1)
        assert torch.equal(cut[:, 1], corner)

    def test_positions_are_all_different(self) -> None:
        positions = dit.grid_positions(5, 7, 32)
        distances = torch.cdist(positions, positions) + 10 * torch.eye(35)
        assert positions.shape == (35, 32)
        assert float(distances.min()) > 0.1

    def test_several_states_are_joined(self) -> None:
        network = stirred(config("y:state s:time z:state", ""))
        y, s, *_, z = batch()
        changed = network(y, s, z + 1) - network(y, s, z)
        assert network(y, s, z).shape == y.shape
        assert float(changed.abs().max()) > 1e-3

    def test_without_times(self) -> None:
        network = stirred(config("z:state", "", "score:scalar"))
        assert network(batch()[0]).shape == (3,)

    @pytest.mark.parametrize("own", [0, 1, 2])
    def test_several_heads(self, own: int) -> None:
        network = stirred(config(heads="u:state v:state p:scalar", own_blocks=own))
        z, t, r, w, label, dz = batch()
        u, v, p = network(z, t, r, label=label, w=w)
        assert u.shape == v.shape == z.shape
        assert p.shape == (3,)
        outputs, tangents = jvp(closed(network, label, w), (z, t, r), (dz, 1 + 0 * t, 0 * r))
        assert gap(outputs, (u, v, p)) < 1e-12
        h = 1e-5
        f = closed(network, label, w)
        with torch.no_grad():
            ahead, behind = f(z + h * dz, t + h, r), f(z - h * dz, t - h, r)
        slopes = [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]
        assert gap(tangents, slopes) < 1e-7

    def test_heads_share_the_trunk_and_nothing_else(self) -> None:
        network = stirred(config(heads="u:state v:state", own_blocks=1))
        z, t, r, w, label, _ = batch()
        network(z, t, r, label=label, w=w)[0].sum().backward()
        with_grad = {n.split(".")[0] for n, p in network.named_parameters() if p.grad is not None}
        assert "blocks" in with_grad
        assert all(p.grad is None for p in network.heads[1].parameters())
        assert len(network.blocks) == 1
        assert len(network.heads[0].blocks) == 1


class TestConditions:
    def test_further_times_are_seen_as_gaps(self) -> None:
        network = stirred(config())
        seen: dict[int, Tensor] = {}
        for i, part in enumerate(network.numbers):
            part.register_forward_pre_hook(lambda m, inputs, i=i: seen.update({i: inputs[0]}))
        z, t, r, w, label, _ = batch()
        network(z, t, r, label=label, w=w)
        assert list(network.config.numbers) == ["t", "r", "w"]
        assert torch.equal(seen[0], t)
        assert torch.equal(seen[1], t - r)
        assert torch.equal(seen[2], w)

    def test_times_that_are_conditions_are_seen_as_they_are(self) -> None:
        network = stirred(config("z:state t:time", "lo:time hi:time"))
        seen: dict[int, Tensor] = {}
        for i, part in enumerate(network.numbers):
            part.register_forward_pre_hook(lambda m, inputs, i=i: seen.update({i: inputs[0]}))
        z, t, r, w, _, _ = batch()
        network(z, t, hi=w, lo=r)
        assert torch.equal(seen[1], r)
        assert torch.equal(seen[2], w)

    def test_no_label_is_the_null_label(self) -> None:
        network = stirred(config())
        z, t, r, w, _, _ = batch()
        null = torch.full((3,), NULL_LABEL)
        without = network(z, t, r, w=w)
        assert torch.equal(without, network(z, t, r, w=w, label=None))
        assert torch.equal(without, network(z, t, r, w=w, label=null))
        labelled = network(z, t, r, w=w, label=torch.tensor([0, 1, 2]))
        assert float((labelled - without).abs().amax((1, 2, 3)).min()) > 1e-4

    def test_rows_are_independent(self) -> None:
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        whole = network(z, t, r, label=label, w=w)
        rows = [
            network(*(x[i : i + 1] for x in (z, t, r)), label=label[i : i + 1], w=w[i : i + 1])
            for i in range(3)
        ]
        assert gap([torch.cat(rows)], [whole]) < 1e-12

    def test_data_without_labels(self) -> None:
        network = stirred(config(classes=None))
        z, t, r, w, _, _ = batch()
        assert network.labels is None
        null = torch.full((3,), NULL_LABEL)
        assert torch.equal(network(z, t, r, w=w), network(z, t, r, w=w, label=null))

    def test_single_numbers_stand_for_all_rows(self) -> None:
        network = stirred(config(), torch.float32)
        z, t, r, _, label, _ = batch(dtype=torch.float32)
        wanted = network(z, t, r, label=label, w=torch.full((3,), 2.0))
        assert torch.equal(network(z, t, r, label=label, w=2), wanted)
        assert torch.equal(network(z, t, r, label=label, w=torch.tensor(2.0)), wanted)

    def test_every_condition_matters(self) -> None:
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        base = network(z, t, r, label=label, w=w)
        for other in (
            network(z, t + 0.1, r, label=label, w=w),
            network(z, t, r - 0.1, label=label, w=w),
            network(z, t, r, label=label, w=w + 0.1),
        ):
            assert float((other - base).abs().max()) > 1e-4


class TestNumbersAlone:
    phi = NetworkSignature("phi", arguments("t:time r:time"), (), arguments("phi:scalar"))

    def test_starts_at_zero_and_learns(self) -> None:
        network = build_network(self.phi, shape=SHAPE)
        t, r = torch.rand(5), torch.rand(5)
        assert isinstance(network, ScalarNetwork)
        assert torch.equal(network(t, r), torch.zeros(5))
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            loss = (network(t, r) - (t - 2 * r)).square().mean()
            loss.backward()
            optimiser.step()
        assert float(loss) < 1e-2

    def test_derivative(self) -> None:
        network = stirred(configure(self.phi, shape=SHAPE))
        _, t, r, *_ = batch()
        _, found = jvp(network, (t, r), (torch.ones_like(t), torch.zeros_like(r)))
        h = 1e-5
        assert gap([found], [(network(t + h, r) - network(t - h, r)) / (2 * h)]) < 1e-7

    def test_several(self) -> None:
        network = stirred(config("t:time", "", "a:scalar b:scalar"))
        a, b = network(batch()[1])
        assert a.shape == b.shape == (3,)
        assert not torch.equal(a, b)


class TestTokensInContext:
    """Conditions as tokens before those of the picture."""

    context = config(conditioning="in_context")

    def test_how_many_there_are(self) -> None:
        assert self.context.prefixes == (4, 4, 4, 8)
        assert replace(self.context, classes=None).prefixes == (4, 4, 4)
        assert config().prefix == 0
        seen: list[Tensor] = []
        network = stirred(self.context)
        network.blocks[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
        z, t, r, w, label, _ = batch()
        network(z, t, r, label=label, w=w)
        assert seen[0].shape == (3, 20 + 6, 16)

    def test_they_are_cheaper_than_modulation(self) -> None:
        """A third of a transformer block modulates it; tokens need no such weights."""
        size = Size("wide", depth=12, width=192, heads=3)
        counts = [
            network_from_config(config(size=size, conditioning=kind)).parameter_count
            for kind in ("in_context", "adaptive")
        ]
        assert counts[0] < 0.7 * counts[1]

    def test_every_condition_matters_and_rows_are_independent(self) -> None:
        network = stirred(self.context)
        z, t, r, w, label, _ = batch()
        base = network(z, t, r, label=label, w=w)
        for other in (
            network(z, t + 0.1, r, label=label, w=w),
            network(z, t, r - 0.1, label=label, w=w),
            network(z, t, r, label=label, w=w + 0.1),
            network(z, t, r, label=(label + 2) % 3, w=w),
        ):
            assert float((other - base).abs().amax((1, 2, 3)).min()) > 1e-5
        alone = network(z[1:2], t[1:2], r[1:2], label=label[1:2], w=w[1:2])
        assert gap([alone], [base[1:2]]) < 1e-12

    def test_features_are_tokens_of_the_picture_alone(self) -> None:
        inside = config(heads="u:state f:features", conditioning="in_context", own_blocks=1)
        z, t, r, w, label, _ = batch()
        output, features = stirred(inside)(z, t, r, label=label, w=w)
        assert output.shape == z.shape
        assert features.shape == (3, 6, 16)
        head = config("y:state s:time", "f:features", conditioning="in_context")
        assert stirred(head)(z, t, f=features).shape == z.shape

    def test_recomputed_blocks_give_the_same_gradients(self) -> None:
        z, t, r, w, label, _ = batch()
        found = []
        for again in (False, True):
            network = stirred(self.context)
            network.recompute = again
            output = network(z, t, r, label=label, w=w)
            found.append(torch.autograd.grad(output.square().sum(), list(network.parameters())))
        assert gap(*found) < 1e-12

    def test_under_autocast(self) -> None:
        z, t, r, w, label, dz = batch(dtype=torch.float32)
        network, double = stirred(self.context, torch.float32), stirred(self.context)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = jvp(closed(network, label, w), (z, t, r), (dz, 1 + 0 * t, 0 * r))
        wide = (x.double() for x in (z, t, r, dz))
        z, t, r, dz = wide
        wanted = jvp(closed(double, label, w.double()), (z, t, r), (dz, 1 + 0 * t, 0 * r))
        for mine, right in zip(found, wanted, strict=True):
            assert mine.dtype == torch.float32
            assert float((mine - right).norm() / right.norm()) < 0.03

    def test_it_starts_with_weights_of_a_network_that_sees_the_same(self) -> None:
        other = config("z:state b:time a:time", "label:label w:scalar", conditioning="in_context")
        teacher, network = stirred(other, seed=1), stirred(self.context)
        network.adopt(teacher.state_dict(), teacher.config.as_dict())
        z, t, r, w, label, _ = batch()
        found, wanted = (n(z, t, r, label=label, w=w) for n in (network, teacher))
        assert torch.equal(found, wanted)

    def test_scalars_keep_their_names_when_they_change_places(self) -> None:
        call = "z:state t:time"
        source = config(call, "a:scalar label:label b:scalar", conditioning="in_context")
        target = config(call, "b:scalar a:scalar label:label", conditioning="in_context")
        teacher, network = stirred(source, seed=1), stirred(target)
        network.adopt(teacher.state_dict(), source.as_dict())
        z, t, r, w, label, _ = batch()
        found, wanted = (n(z, t, a=r, b=w, label=label) for n in (network, teacher))
        assert gap([found], [wanted]) < 1e-12

    def test_it_does_not_start_with_weights_of_one_that_sees_less(self) -> None:
        less = config("z:state t:time", conditioning="in_context")
        network = stirred(self.context)
        with pytest.raises(DiagnosticError, match="further tokens in context"):
            network.adopt(stirred(less).state_dict(), less.as_dict())
        with pytest.raises(DiagnosticError, match="conditioning"):
            network.adopt(stirred(config()).state_dict(), config().as_dict())


class TestNormalisedModulation:
    """How far a condition moves a network doesn't depend on the size of the modulation."""

    def test_only_its_direction_counts(self) -> None:
        z, t, r, w, label, _ = batch()
        for kind, same in (("normalised", True), ("plain", False)):
            network = stirred(config(modulation=kind))
            before = network(z, t, r, label=label, w=w)
            with torch.no_grad():
                for part in network.modules():
                    if isinstance(part, layers.Modulation):
                        part.weight *= 1e3
                        part.bias *= 1e3
            after = network(z, t, r, label=label, w=w)
            assert (gap([after], [before]) < 1e-3) == same

    def test_each_vector_has_size_one(self) -> None:
        part = layers.Modulation(16, 6, normal=True)
        torch.nn.init.normal_(part.weight)
        torch.nn.init.zeros_(part.bias)
        vectors = part(torch.randn(5, 16))
        assert vectors.shape == (5, 1, 6, 16)
        assert float((vectors.square().mean(-1) - 1).abs().max()) < 1e-3

    def test_spectral_start(self) -> None:
        network = network_from_config(config(start="spectral"))
        for name, part in network.named_modules():
            if isinstance(part, Linear) and part.weight.any() and not name.startswith("numbers"):
                assert float(torch.linalg.svdvals(part.weight)[0]) == pytest.approx(1, abs=1e-4)


class TestStart:
    @pytest.mark.parametrize("heads", ["u:state", "u:state v:state p:scalar"])
    def test_outputs_are_zero(self, heads: str) -> None:
        network = network_from_config(config(heads=heads))
        z, t, r, w, label, _ = batch(dtype=torch.float32)
        outputs = network(z, t, r, label=label, w=w)
        for x in outputs if isinstance(outputs, tuple) else (outputs,):
            assert not x.any()

    @pytest.mark.parametrize("width", [16, 256])
    def test_conditions_have_size_one(self, width: int) -> None:
        size = Size("wide", depth=1, width=width, heads=2)
        network = network_from_config(config(size=size), generator=torch.Generator().manual_seed(0))
        t = torch.linspace(0, 1, 500)
        for embed in network.numbers:
            assert 0.5 < float(embed(t).square().mean().sqrt()) < 2
        assert 0.7 < float(network.labels.table.square().mean().sqrt()) < 1.4

    def test_blocks_are_the_identity(self) -> None:
        network = network_from_config(config())
        tokens, condition = torch.randn(2, 6, 16), torch.randn(2, 16)
        assert torch.equal(network.blocks[0](tokens, condition), tokens)

    def test_a_seed_or_a_generator_decides_the_weights(self) -> None:
        def build(seed: int) -> list[Tensor]:
            return list(
                network_from_config(
                    config(), generator=torch.Generator().manual_seed(seed)
                ).parameters()
            )

        before = torch.get_rng_state()
        first, again, other = build(1), build(1), build(2)
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        seeded = []
        for _ in range(2):
            torch.manual_seed(3)
            seeded.append(network_from_config(config()).state_dict())
        assert all(torch.equal(seeded[0][k], seeded[1][k]) for k in seeded[0])

    def test_nothing_is_left_unset(self) -> None:
        """Weights are made of uninitialised memory; `initialise` must reach them all."""
        with torch.device("meta"):
            count = len(list(network_from_config(config()).parameters()))
        network = network_from_config(config(positions="learned"))
        for p in network.parameters():
            p.data.fill_(torch.nan)
        network.positions.data.zero_()  # filled where it is made, from the grid
        initialise(network)
        assert all(bool(p.isfinite().all()) for p in network.parameters())
        assert count == len(list(network.parameters())) - 1


class TestPrecision:
    def test_autocast_keeps_the_time_precise(self) -> None:
        network = stirred(config(), torch.float32)
        z, t, r, w, label, dz = batch(dtype=torch.float32)
        moves = (dz, torch.ones_like(t), torch.zeros_like(r))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, tangent = jvp(closed(network, label, w), (z, t, r), moves)
            features = time_features(t)
        double = stirred(config())
        wanted = jvp(
            closed(double, label, w.double()),
            (z.double(), t.double(), r.double()),
            tuple(m.double() for m in moves),
        )
        assert features.dtype == output.dtype == tangent.dtype == torch.float32
        assert float((tangent - wanted[1]).norm() / wanted[1].norm()) < 0.03
        assert float((output - wanted[0]).norm() / wanted[0].norm()) < 0.03

    def test_gradients_under_autocast(self) -> None:
        network = stirred(config(), torch.float32)
        z, t, r, w, label, dz = batch(dtype=torch.float32)
        moves = (dz, torch.ones_like(t), torch.zeros_like(r))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, tangent = jvp(closed(network, label, w), (z, t, r), moves)
        found = torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    (tangent**2).sum(),
                    list(network.parameters()),
                    allow_unused=True,
                    materialize_grads=True,
                )
            ]
        )
        double = stirred(config())
        _, tangent = jvp(
            closed(double, label, w.double()),
            (z.double(), t.double(), r.double()),
            tuple(m.double() for m in moves),
        )
        wanted = torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    (tangent**2).sum(),
                    list(double.parameters()),
                    allow_unused=True,
                    materialize_grads=True,
                )
            ]
        )
        assert float((found - wanted).norm() / wanted.norm()) < 0.05

    def test_weights_in_bfloat16_with_times_in_float32(self) -> None:
        network = stirred(config(), torch.bfloat16)
        z, t, r, w, label, dz = batch(dtype=torch.float32)
        z, dz = z.bfloat16(), dz.bfloat16()
        output, tangent = jvp(closed(network, label, w), (z, t, r), (dz, 1 + 0 * t, 0 * r))
        assert output.dtype == tangent.dtype == torch.bfloat16
        assert bool(tangent.isfinite().all())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_times_in_half_precision_are_refused(self, dtype: torch.dtype) -> None:
        network = network_from_config(config())
        z, t, r, w, label, _ = batch(dtype=torch.float32)
        with pytest.raises(DiagnosticError, match="too coarse"):
            network(z, t.to(dtype), r.to(dtype), label=label, w=w)


class TestCompiled:
    def test_network_and_derivative_equal_eager(self) -> None:
        torch._dynamo.reset()
        network = stirred(config(size=replace(TINY, depth=1)))
        z, t, r, w, label, dz = batch()
        parameters = list(network.parameters())

        def both(z: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            f = closed(network, label, w)
            output, tangent = jvp(f, (z, t, r), (dz, torch.ones_like(t), torch.zeros_like(r)))
            return output, tangent, f(z, r, r)

        products: list[int] = []

        def look(graph: torch.fx.GraphModule, example: Any) -> Any:
            names = [str(n.target) for n in graph.graph.nodes]
            products.append(sum("mm.default" in n and "bmm" not in n for n in names))
            return make_boxed_func(graph.forward)

        compiled = torch.compile(both, backend=aot_autograd(fw_compiler=look), fullgraph=True)
        found, wanted = compiled(z, t, r), both(z, t, r)
        assert gap(found, wanted) < 1e-10
        ours, theirs = (
            torch.autograd.grad((x[0].sin() * x[1] + x[2] ** 2).sum(), parameters)
            for x in (found, wanted)
        )
        assert gap(ours, theirs) < 1e-10
        with Products() as once, torch.no_grad():
            closed(network, label, w)(z, t, r)
        # Two passes for the pair and one for the plain call: the zero products are gone here too.
        assert products[0] <= 3 * once.dense

    def test_the_network_alone(self) -> None:
        torch._dynamo.reset()
        network = stirred(config(size=replace(TINY, depth=1)))
        z, t, r, w, label, _ = batch()
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        found, wanted = (f(z, t, r, label=label, w=w) for f in (compiled, network))
        assert gap([found], [wanted]) < 1e-12


class TestTraced:
    def test_loss_and_gradients_of_a_recorded_derivative(self) -> None:
        """A graph of elementary operations, as a compiler of losses records it once."""
        network = stirred(config(size=replace(TINY, depth=1)))
        z, t, r, w, label, dz = batch()
        names, weights = zip(*network.named_parameters(), strict=True)

        def both(weights: tuple[Tensor, ...], z: Tensor, t: Tensor, r: Tensor) -> Any:
            state = dict(zip(names, weights, strict=True))
            rest = {"label": label, "w": w}
            f = lambda *x: functional_call(network, state, x, rest)  # noqa: E731
            return jvp(f, (z, t, r), (dz, torch.ones_like(t), torch.zeros_like(r)))

        recorded = make_fx(both)(weights, z, t, r)
        pairs = [f(weights, z, t, r) for f in (recorded, both)]
        assert gap(*pairs) < 1e-12
        found, wanted = (
            torch.autograd.grad((u.sin() * du + du**2).sum(), weights) for u, du in pairs
        )
        assert gap(found, wanted) < 1e-10


class TestTheTestsCanFail:
    """Mistakes that leave outputs and derivatives as they were must show in the comparisons."""

    def through_the_derivative(self) -> float:
        network = stirred(config())
        z, t, r, w, label, dz = batch()
        moves, weights = (dz, torch.ones_like(t), 0 * r), list(network.parameters())
        pair = jvp(closed(network, label, w), (z, t, r), moves)
        wanted = by_reverse(closed(by_hand(network), label, w), (z, t, r), moves)
        assert gap(pair, wanted) < 1e-10
        found, right = (
            torch.autograd.grad(
                (x[1] ** 2).sum(), weights, allow_unused=True, materialize_grads=True
            )
            for x in (pair, wanted)
        )
        return gap(found, right)

    def test_as_it_is(self) -> None:
        assert self.through_the_derivative() < 1e-10

    def test_a_norm_whose_scale_is_a_constant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What PyTorch's layer norm does."""
        unit = norms._unit

        def frozen(x: Tensor) -> tuple[Tensor, Tensor]:
            normal, scale = unit(x)
            return normal, scale.detach()

        monkeypatch.setattr(norms, "_unit", frozen)
        assert self.through_the_derivative() > 0.01

    def test_an_attention_matrix_that_is_a_constant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A forward rule that keeps its softmax without the graph behind it."""

        def frozen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            values, tangents = split(q, k, v)
            output, _ = dual_attention(*values, *tangents)
            with torch.no_grad():
                _, tangent = dual_attention(*values, *tangents)
            return join(output, tangent)

        monkeypatch.setattr(layers, "attention", frozen)
        assert self.through_the_derivative() > 0.01


class TestRebuilding:
    def test_through_json(self) -> None:
        first = stirred(config(heads="u:state v:state", own_blocks=1, qk_norm=True), torch.float32)
        plain = json.loads(json.dumps(first.config.as_dict()))
        again = network_from_config(NetworkConfig.from_dict(plain))
        assert again.config == first.config
        again.load_state_dict(first.state_dict())
        z, t, r, w, label, _ = batch(dtype=torch.float32)
        for a, b in zip(*(n(z, t, r, label=label, w=w) for n in (first, again)), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"nrom": "rms"}, 'did you mean "norm"'),
            ({"size": {"name": "S"}}, "broken"),
            ({"norm": "batch"}, 'unknown norm "batch"'),
        ],
    )
    def test_a_broken_description(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(DiagnosticError, match=message):
            NetworkConfig.from_dict(config().as_dict() | change)

    def test_a_missing_part(self) -> None:
        plain = config().as_dict()
        del plain["patch"]
        with pytest.raises(DiagnosticError, match="patch"):
            NetworkConfig.from_dict(plain)


class TestSizes:
    signature = NetworkSignature("v", arguments("z:state t:time"), arguments("label:label"))

    @pytest.mark.parametrize(("name", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
    def test_published_sizes_have_the_published_weights(self, name: str, millions: int) -> None:
        with torch.device("meta"):
            network = build_network(self.signature, shape=(4, 32, 32), classes=1000, size=name)
        assert network.config.patch == 2
        assert network.parameter_count / 1e6 == pytest.approx(millions, rel=0.015)
        assert f"DiT {name}" in network.describe()

    def test_smaller_ones_are_smaller(self) -> None:
        with torch.device("meta"):
            counts = [
                build_network(self.signature, shape=(1, 8, 8), size=name).parameter_count
                for name in SIZES
            ]
        assert all(a < b for a, b in pairwise(counts))

    @pytest.mark.parametrize(
        ("size", "height", "width", "patch"),
        [
            ("nano", 4, 4, 1),
            ("nano", 8, 8, 2),
            ("nano", 8, 7, 1),
            ("nano", 16, 16, 2),
            ("nano", 28, 28, 4),
            ("nano", 32, 32, 4),
            ("nano", 7, 7, 1),
            ("nano", 30, 30, 2),
            ("XL", 32, 32, 2),
            ("XL", 64, 64, 4),
        ],
    )
    def test_patch_by_default(self, size: str, height: int, width: int, patch: int) -> None:
        settings = configure(self.signature, shape=(1, height, width), size=size)
        assert settings.patch == patch

    @pytest.mark.parametrize(
        ("asked", "meant"), [("namo", "nano"), ("xl", "XL"), ("b", "B"), ("mikro", "micro")]
    )
    def test_unknown(self, asked: str, meant: str) -> None:
        with pytest.raises(DiagnosticError, match=f'did you mean "{meant}"'):
            build_network(self.signature, shape=(1, 8, 8), size=asked)

    def test_records_are_frozen(self) -> None:
        with pytest.raises(AttributeError):
            SIZES["nano"].depth = 3  # type: ignore[misc]
        assert asdict(SIZES["S"]) == {
            "name": "S",
            "depth": 12,
            "width": 384,
            "heads": 6,
            "tokens": 256,
        }


class TestRefusals:
    """Every mistake ends in a diagnostic with its cause, and a remedy where there is one."""

    def refused(self, call: Callable[[], Any]) -> str:
        with pytest.raises(DiagnosticError) as caught:
            call()
        return str(caught.value)

    def test_a_patch_that_does_not_fit(self) -> None:
        signature = TestSizes.signature
        text = self.refused(lambda: build_network(signature, shape=(1, 28, 28), patch=8))
        assert "28 x 28" in text
        assert "1, 2, 4, 7, 14, 28" in text
        assert "32 x 32" in text

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"conditions": "text:features more:features"}, "features of several networks"),
            ({"conditioning": "prefix"}, 'unknown conditioning "prefix"'),
            ({"modulation": "rms"}, 'unknown modulation "rms"'),
            ({"start": "zero"}, 'unknown start "zero"'),
            ({"conditioning": "in_context", "times": "decoupled"}, "decoupled times are not"),
            ({"conditioning": "in_context", "modulation": "normalised"}, "no condition modulates"),
            ({"heads": "v:time"}, "returns a time"),
            ({"call": "t:time", "conditions": ""}, "returns a state but sees none"),
            ({"conditions": "a:label b:label"}, "several labels"),
            ({"shape": (8, 8)}, "(channels, height, width)"),
            ({"classes": 0}, "number of classes"),
            ({"own_blocks": 3}, "3 own blocks"),
            ({"size": replace(TINY, heads=3)}, "multiple of 4"),
            ({"positions": "rotary"}, 'unknown positions "rotary"'),
        ],
    )
    def test_what_cannot_be_built(self, changes: dict[str, Any], message: str) -> None:
        assert message in self.refused(lambda: config(**changes))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.update(z=c["z"][:, :1]), "(batch, 2, 4, 6), not (3, 1, 4, 6)"),
            (lambda c: c.update(z=c["z"][0]), "not (2, 4, 6)"),
            (lambda c: c.update(t=c["t"][:2]), "(3,), not (2,)"),
            (lambda c: c.update(t=c["t"][:, None]), "not (3, 1)"),
            (lambda c: c.update(t=torch.ones(3, dtype=torch.long)), "of int64"),
            (lambda c: c.update(z=c["z"].float()), "float64 weights"),
        ],
    )
    def test_wrong_arguments(self, change: Callable[[dict[str, Any]], None], message: str) -> None:
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        given = {"z": z, "t": t, "r": r}
        change(given)
        assert message in self.refused(lambda: network(*given.values(), label=label, w=w))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("w"), 'misses the condition "w"'),
            (lambda c: c.update(lable=c.pop("label")), 'did you mean "label"'),
            (lambda c: c.update(omega=c["w"]), 'has no condition "omega"'),
            (lambda c: c.update(label=torch.tensor([0, 3, 1])), "the label 3"),
            (lambda c: c.update(label=torch.tensor([0, -2, 1])), "the label -2"),
            (lambda c: c.update(label=torch.tensor([0, 1])), "not (2,)"),
            (lambda c: c.update(label=torch.ones(3)), "of float32"),
        ],
    )
    def test_wrong_conditions(self, change: Callable[[dict[str, Any]], Any], message: str) -> None:
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        given = {"label": label, "w": w}
        change(given)
        assert message in self.refused(lambda: network(z, t, r, **given))

    def test_too_few_arguments(self) -> None:
        network = stirred(config())
        z, t, *_ = batch()
        text = self.refused(lambda: network(z, t))
        assert "2 positional arguments, not 3" in text
        assert "u(z, t, r | label, w)" in text

    def test_labels_for_a_network_without_classes(self) -> None:
        network = stirred(config(classes=None))
        z, t, r, w, label, _ = batch()
        assert "number of classes" in self.refused(lambda: network(z, t, r, label=label, w=w))

    def test_labels_are_read_once_where_that_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reads: list[str] = []
        monkeypatch.setattr(dit, "check_labels", lambda _, label: reads.append(label.device.type))
        network = network_from_config(config())
        for device in ("meta", "meta", "cpu", "cpu", "meta"):
            network._check_labels(torch.zeros(3, dtype=torch.long, device=device))
        assert reads == ["meta", "cpu", "cpu"]

    def test_labels_are_checked_inside_a_derivative(self) -> None:
        network = stirred(config())
        z, t, r, w, _, dz = batch()
        f = closed(network, torch.tensor([0, 9, 1]), w)
        assert "the label 9" in self.refused(lambda: jvp(f, (z, t, r), (dz, t, r)))


def test_is_a_plain_module() -> None:
    network = build_network(TestSizes.signature, shape=(1, 8, 8), classes=10)
    assert isinstance(network, DiT)
    assert not any("positions" in name for name in network.state_dict())
    assert network.config.classes == 10
