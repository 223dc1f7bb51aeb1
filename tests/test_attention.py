"""Attention and its derivatives against a plain reference in float64, in every mode of derivation
(see attention_support).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_support import EXACT, Kernels, draw, gap, reference, tangent_by_reverse, weigh
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jvp, vmap

from flowdsl.runtime.nets import attention as module
from flowdsl.runtime.nets.attention import attention, dual_attention, plain_attention

shapes = st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 9), st.integers(1, 8))


class TestValues:
    @given(shape=shapes, seed=st.integers(0, 99))
    @settings(max_examples=25)
    def test_equals_the_formula(self, shape: tuple[int, ...], seed: int) -> None:
        q, k, v = draw(shape, 3, seed)
        assert gap([attention(q, k, v)], [reference(q, k, v)]) < EXACT
        assert gap([plain_attention(q, k, v)], [reference(q, k, v)]) < EXACT

    def test_without_tangents_runs_the_fused_kernel_both_ways(self) -> None:
        q, k, v = draw(count=3)
        with Kernels() as kernels:
            output = attention(q, k, v)
            found = torch.autograd.grad(output.sin().sum(), (q, k, v))
        fused = [name for name in kernels.calls if "scaled_dot_product" in name]
        assert len(fused) == 2
        assert kernels.products == 0
        assert gap(found, torch.autograd.grad(reference(q, k, v).sin().sum(), (q, k, v))) < EXACT

    def test_views_of_a_joint_projection(self) -> None:
        (joint, moved) = draw((2, 5, 3, 3, 4), 2)
        parts = tuple(joint.permute(2, 0, 3, 1, 4).unbind(0))
        tangents = tuple(moved.permute(2, 0, 3, 1, 4).unbind(0))
        found = jvp(attention, parts, tangents)
        assert gap(found, tangent_by_reverse(reference, parts, tangents)) < EXACT


class TestForward:
    @given(shape=shapes, seed=st.integers(0, 99))
    @settings(max_examples=25)
    def test_tangents_are_exact(self, shape: tuple[int, ...], seed: int) -> None:
        x = draw(shape, seed=seed)
        found = jvp(attention, tuple(x[:3]), tuple(x[3:]))
        assert gap(found, tangent_by_reverse(reference, tuple(x[:3]), tuple(x[3:]))) < EXACT

    def test_tangents_are_slopes(self) -> None:
        x = [y.detach() for y in draw()]
        _, found = jvp(attention, tuple(x[:3]), tuple(x[3:]))
        h = 1e-5
        ahead, behind = (
            reference(*(a + s * h * b for a, b in zip(x[:3], x[3:], strict=True))) for s in (1, -1)
        )
        assert gap([found], [(ahead - behind) / (2 * h)]) < 1e-8

    @pytest.mark.parametrize("moving", [(0,), (1,), (2,), (0, 2), (1, 2)])
    def test_only_some_inputs_move(self, moving: tuple[int, ...]) -> None:
        x = draw()

        def function(*some: Tensor) -> Tensor:
            full = list(x[:3])
            for i, y in zip(moving, some, strict=True):
                full[i] = y
            return attention(*full)

        found = jvp(function, tuple(x[i] for i in moving), tuple(x[3 + i] for i in moving))
        tangents = tuple(x[3 + i] if i in moving else torch.zeros_like(x[i]) for i in range(3))
        assert gap(found, tangent_by_reverse(reference, tuple(x[:3]), tangents)) < EXACT

    def test_six_products_and_fewer_buffers_than_the_general_rule(self) -> None:
        x = [y.detach() for y in draw((2, 3, 7, 4))]
        with Kernels(tokens=7) as ours:
            jvp(attention, tuple(x[:3]), tuple(x[3:]))
        with Kernels(tokens=7) as general:
            jvp(plain_attention, tuple(x[:3]), tuple(x[3:]))
        assert ours.products == 6  # q kᵀ, P v; q̇ kᵀ, q k̇ᵀ, Ṗ v, P v̇
        assert general.products == 6
        assert ours.square <= 5  # S, P, two for Ṡ, Ṗ
        assert general.square >= 2 * ours.square

    def test_leaves_no_graph_without_gradients(self) -> None:
        x = draw()
        with torch.no_grad():
            output, tangent = jvp(attention, tuple(x[:3]), tuple(x[3:]))
        assert not output.requires_grad
        assert not tangent.requires_grad


class TestReverseThroughForward:
    @given(shape=shapes, seed=st.integers(0, 99))
    @settings(max_examples=25)
    def test_gradients_of_output_and_tangent_are_exact(
        self, shape: tuple[int, ...], seed: int
    ) -> None:
        x = draw(shape, seed=seed)
        pair = jvp(attention, tuple(x[:3]), tuple(x[3:]))
        wanted = tangent_by_reverse(reference, tuple(x[:3]), tuple(x[3:]))
        found = torch.autograd.grad(weigh(*pair), x)
        assert gap(found, torch.autograd.grad(weigh(*wanted), x)) < EXACT

    def test_of_the_tangent_alone_or_the_output_alone(self) -> None:
        x = draw()
        _, tangent = jvp(attention, tuple(x[:3]), tuple(x[3:]))
        plain, slope = tangent_by_reverse(reference, tuple(x[:3]), tuple(x[3:]))
        found = torch.autograd.grad((tangent**3).sum(), x)
        assert gap(found, torch.autograd.grad((slope**3).sum(), x, retain_graph=True)) < EXACT
        output, _ = jvp(attention, tuple(x[:3]), tuple(x[3:]))
        found = torch.autograd.grad((output**3).sum(), x[:3])
        assert gap(found, torch.autograd.grad((plain**3).sum(), x[:3])) < EXACT

    def test_a_stopped_tangent_costs_an_ordinary_backward(self) -> None:
        x = draw()
        output, _ = jvp(attention, tuple(x[:3]), tuple(x[3:]))
        with Kernels() as kernels:
            torch.autograd.grad(output.sum(), x[:3])
        assert kernels.products == 4

    def test_twelve_products_and_fewer_buffers_than_the_general_rule(self) -> None:
        x = draw((2, 3, 7, 4))

        def backward(function: Callable[..., Tensor]) -> Kernels:
            pair = jvp(function, tuple(x[:3]), tuple(x[3:]))
            with Kernels(tokens=7) as kernels:
                torch.autograd.grad(pair, x, [torch.ones_like(y) for y in pair])
            return kernels

        ours, general = backward(attention), backward(plain_attention)
        assert ours.products == 12
        assert general.products >= 12
        assert ours.square < general.square

    def test_a_second_time(self) -> None:
        x = draw((1, 2, 4, 3))

        def penalty(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            slopes = torch.autograd.grad(weigh(*pair), x, create_graph=True)
            return torch.autograd.grad(sum((s**2).sum() for s in slopes), x)

        found = penalty(jvp(attention, tuple(x[:3]), tuple(x[3:])))
        wanted = penalty(tangent_by_reverse(reference, tuple(x[:3]), tuple(x[3:])))
        assert gap(found, wanted) < EXACT

    def test_through_parameters_alone(self) -> None:
        """As in a network: the inputs are functions of weights that have no tangent."""
        weight = draw((4, 12), 1)[0]
        x, dx = (y.detach() for y in draw((2, 3, 5, 4), 2, seed=1))

        def network(function: Callable[..., Tensor], y: Tensor) -> Tensor:
            return function(*(y @ weight).chunk(3, -1))

        pair = jvp(lambda y: network(attention, y), (x,), (dx,))
        found = torch.autograd.grad(weigh(*pair), weight)
        y = x.clone().requires_grad_()
        pair = tangent_by_reverse(lambda y: network(reference, y), (y,), (dx,))
        assert gap(found, torch.autograd.grad(weigh(*pair), weight)) < EXACT


class TestOtherTransforms:
    """Whatever surrounds the call, the numbers are those of the reference under the same."""

    @pytest.mark.parametrize("name", ["grad", "jvp jvp", "jvp grad", "grad jvp", "vmap", "jacfwd"])
    def test_equal_the_reference(self, name: str) -> None:
        q, k, v, dq, dk, dv = (x.detach() for x in draw((2, 2, 3, 2)))

        def inside(function: Callable[..., Tensor]) -> Any:
            def first(q: Tensor) -> Tensor:
                return jvp(lambda q, k: function(q, k, v), (q, k), (dq, dk))[1]

            def slope(q: Tensor) -> Tensor:
                return grad(lambda q: function(q, k, v).sin().sum())(q)

            return {
                "grad": lambda: slope(q),
                "jvp jvp": lambda: jvp(first, (q,), (dv,))[1],
                "jvp grad": lambda: jvp(slope, (q,), (dq,))[1],
                "grad jvp": lambda: grad(lambda q: first(q).sin().sum())(q),
                "vmap": lambda: vmap(lambda d: jvp(lambda q: function(q, k, v), (q,), (d,))[1])(
                    torch.stack([dq, dv])
                ),
                "jacfwd": lambda: jacfwd(lambda q: function(q, k, v))(q),
            }[name]()

        assert gap([inside(attention)], [inside(reference)]) < EXACT

    def test_forward_over_reverse_with_dual_numbers(self) -> None:
        """A Hessian-vector product, where reverse mode runs inside the forward derivative."""
        q, k, v, dq, dk, dv = draw()

        def product(function: Callable[..., Tensor]) -> list[Tensor]:
            with forward_ad.dual_level():
                inputs = [
                    forward_ad.make_dual(x.detach().clone().requires_grad_(), t.detach())
                    for x, t in ((q, dq), (k, dk), (v, dv))
                ]
                output = function(*inputs).sin().sum()
                found = torch.autograd.grad(output, inputs, create_graph=True)
                return [forward_ad.unpack_dual(x).tangent for x in found]

        assert gap(product(attention), product(reference)) < EXACT


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype: torch.dtype) -> None:
        x = draw((2, 3, 16, 8), dtype=torch.float32)
        with torch.autocast("cpu", dtype=dtype):
            pair = jvp(attention, tuple(x[:3]), tuple(x[3:]))
            alone = attention(*x[:3])
        assert {y.dtype for y in (*pair, alone)} == {dtype}
        found = torch.autograd.grad(weigh(*(y.float() for y in pair)), x)
        assert {g.dtype for g in found} == {torch.float32}
        y = [z.detach().double().requires_grad_() for z in x]
        wanted = tangent_by_reverse(reference, tuple(y[:3]), tuple(y[3:]))
        assert gap([*pair, alone], [*wanted, wanted[0]]) < 0.02
        assert gap(found, torch.autograd.grad(weigh(*wanted), y)) < 0.04

    def test_autocast_leaves_float64_alone(self) -> None:
        x = draw()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = jvp(attention, tuple(x[:3]), tuple(x[3:]))
        assert gap(found, tangent_by_reverse(reference, tuple(x[:3]), tuple(x[3:]))) < EXACT

    def test_a_tangent_of_another_type(self) -> None:
        """PyTorch's norms give float32 tangents to bfloat16 values."""
        x = draw((2, 3, 16, 8), dtype=torch.bfloat16)
        plain = tangent_by_reverse(
            reference,
            *(tuple(y.detach().double().requires_grad_() for y in z) for z in (x[:3], x[3:])),
        )

        def widened(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            normal = torch.nn.functional.layer_norm(q, q.shape[-1:])
            return attention(q + 0 * normal, k, v)

        assert gap(jvp(attention, tuple(x[:3]), tuple(x[3:])), plain) < 0.03
        assert gap(jvp(widened, tuple(x[:3]), tuple(x[3:])), plain) < 0.03

    def test_large_scores_do_not_overflow(self) -> None:
        x = [200 * y.detach() for y in draw(dtype=torch.float32)]
        for y in jvp(attention, tuple(x[:3]), tuple(x[3:])):
            assert bool(y.isfinite().all())


class TestCompiled:
    """Dynamo ignores the rules of `autograd.Function.jvp`; it must not ignore these."""

    def both(self, *x: Tensor) -> tuple[Tensor, Tensor]:
        output, tangent = jvp(attention, x[:3], x[3:])
        return output, tangent

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_tangents_and_gradients(self, backend: str) -> None:
        torch._dynamo.reset()
        x = draw()
        pair = torch.compile(self.both, backend=backend, fullgraph=True)(*x)
        assert gap(pair, self.both(*x)) < EXACT
        wanted = tangent_by_reverse(reference, tuple(x[:3]), tuple(x[3:]))
        found = torch.autograd.grad(weigh(*pair), x)
        assert gap(pair, wanted) < EXACT
        assert gap(found, torch.autograd.grad(weigh(*wanted), x)) < EXACT

    def test_one_function_with_and_without_tangents(self) -> None:
        """The same compiled attention inside and outside a derivative, in either order."""
        torch._dynamo.reset()
        x = [y.detach() for y in draw()]

        def mixed(*x: Tensor) -> Tensor:
            alone = attention(*x[:3])
            _, tangent = jvp(attention, x[:3], x[3:])
            return alone + tangent + attention(*x[3:])

        found = torch.compile(mixed, backend="eager", fullgraph=True)(*x)
        assert gap([found], [mixed(*x)]) < EXACT

    def test_runs_the_fused_kernel_where_nothing_is_derived_forward(self) -> None:
        torch._dynamo.reset()
        seen: list[str] = []

        def look(graph: torch.fx.GraphModule, example: Any) -> Any:
            seen.extend(str(node.target) for node in graph.graph.nodes)
            return make_boxed_func(graph.forward)

        x = [y.detach() for y in draw(count=3)]
        compiled = torch.compile(attention, backend=aot_autograd(fw_compiler=look), fullgraph=True)
        assert gap([compiled(*x)], [reference(*x)]) < EXACT
        assert any("scaled_dot_product" in name for name in seen)
        assert not any("bmm" in name for name in seen)


class TestTheTestsCanFail:
    """Wrong rules that look right; each must be far outside the tolerance above."""

    def test_a_softmax_without_its_normalisation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_jacobian", lambda y, p: p * y)
        x = draw()
        _, tangent = jvp(attention, tuple(x[:3]), tuple(x[3:]))
        _, wanted = tangent_by_reverse(reference, tuple(x[:3]), tuple(x[3:]))
        assert gap([tangent], [wanted]) > 0.01

    def test_a_matrix_that_is_not_a_function_of_the_input(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The trap of saving P without its graph: the gradient through the tangent goes wrong."""

        def frozen(*x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                p = torch.softmax(x[0] @ x[1].mT / x[0].shape[-1] ** 0.5, -1)
                slope = (x[3] @ x[1].mT + x[0] @ x[4].mT) / x[0].shape[-1] ** 0.5
                dp = p * (slope - (p * slope).sum(-1, keepdim=True))
            return p @ x[2], dp @ x[2] + p @ x[5]

        x = draw()
        rows = [y.reshape(-1, 5, 4) for y in x]
        assert gap(frozen(*rows), dual_attention(*rows)) < EXACT
        found = torch.autograd.grad(weigh(*frozen(*rows)), x, allow_unused=True)
        wanted = tangent_by_reverse(reference, tuple(x[:3]), tuple(x[3:]))
        right = torch.autograd.grad(weigh(*wanted), x)
        missing = [
            torch.zeros_like(r) if f is None else f for f, r in zip(found, right, strict=True)
        ]
        assert gap(missing, right) > 0.1
