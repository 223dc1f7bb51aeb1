"""Derivatives of the bundled networks in every mode, what they cost, and in which precision.

They are compared with finite differences and with reverse mode applied twice, which share no
forward rule with the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from net_support import TINY, batch, closed, config, gap, stirred
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.func import functional_call, grad, jvp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.nets import (
    layers,
    network_from_config,
    norms,
)
from flowdsl.runtime.nets.attention import dual_attention
from flowdsl.runtime.nets.duals import join, split
from flowdsl.runtime.nets.layers import FEATURES, HIGHEST, LOWEST, Linear, time_features


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
