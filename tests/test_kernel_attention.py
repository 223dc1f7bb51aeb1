"""The Triton kernels of attention, in Triton's interpreter against the plain reference in float64,
and compiled, without running, for graphics processors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_support import EXACT, Kernels, draw, gap, reference, tangent_by_reverse, weigh
from net_support import SHAPE, batch, closed, config, stirred
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.func import jvp

from flowdsl.runtime.bench.counting import FlopCounter
from flowdsl.runtime.nets import kernel_attention
from flowdsl.runtime.nets.attention import attention
from flowdsl.runtime.nets.kernel_attention import backward, blocks, chosen, forward, usable
from flowdsl.runtime.tangents.shared import value_and_derivative

pytest.importorskip("triton", reason="Triton is only made for Linux")

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def both(x: list[Tensor]) -> tuple[Tensor, Tensor]:
    with Kernels() as kernels:
        pair = jvp(attention, tuple(x[:3]), tuple(x[3:]))
    assert kernels.calls["dual_attention"] == 1
    return pair


def wanted(x: list[Tensor]) -> tuple[Tensor, Tensor]:
    return tangent_by_reverse(reference, tuple(x[:3]), tuple(x[3:]))


class TestDerivatives:
    """20 and 33 tokens are no multiple of a block of 16, 12 and 48 no power of two."""

    @pytest.mark.parametrize("shape", [(1, 2, 20, 12), (1, 1, 33, 48), (2, 1, 1, 64)])
    def test_value_tangent_and_all_gradients(self, shape: tuple[int, ...]) -> None:
        x = draw(shape)
        pair, expected = both(x), wanted(x)
        assert gap(pair, expected) < EXACT
        found = torch.autograd.grad(weigh(*pair), x)
        assert gap(found, torch.autograd.grad(weigh(*expected), x)) < EXACT

    def test_gradients_of_one_result_alone(self) -> None:
        x = draw((1, 2, 20, 12))
        (output, tangent), (plain, slope) = both(x), wanted(x)
        found = torch.autograd.grad((tangent**3).sum(), x, retain_graph=True)
        right = torch.autograd.grad((slope**3).sum(), x, retain_graph=True)
        assert gap(found, right) < EXACT
        found = torch.autograd.grad((output**3).sum(), x[:3])
        assert gap(found, torch.autograd.grad((plain**3).sum(), x[:3])) < EXACT

    def test_a_second_time(self) -> None:
        x = draw((1, 1, 5, 4))

        def penalty(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            slopes = torch.autograd.grad(weigh(*pair), x, create_graph=True)
            return torch.autograd.grad(sum((s**2).sum() for s in slopes), x)

        assert gap(penalty(both(x)), penalty(wanted(x))) < EXACT

    def test_views_and_one_tangent_for_all_rows(self) -> None:
        joint, moved = draw((2, 5, 3, 2, 4), 2)
        parts = list(joint.permute(2, 0, 3, 1, 4).unbind(0))
        spread = moved[:1, :1].expand_as(moved).permute(2, 0, 3, 1, 4).unbind(0)
        x = [*parts, *spread]
        pair, expected = both(x), wanted(x)
        assert gap(pair, expected) < EXACT
        found = torch.autograd.grad(weigh(*pair), (joint, moved))
        assert gap(found, torch.autograd.grad(weigh(*expected), (joint, moved))) < EXACT

    def test_queries_of_other_tokens_and_a_scale_of_its_own(self) -> None:
        q, dq = draw((1, 2, 19, 6), 2)
        k, v, dk, dv = draw((1, 2, 37, 6), 4, seed=1)
        x, scale = [q, k, v, dq, dk, dv], 0.7

        def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return reference(scale * q.shape[-1] ** 0.5 * q, k, v)

        found = forward(*x, scale)
        expected = tangent_by_reverse(scaled, (q, k, v), (dq, dk, dv))
        assert gap(found[:2], expected) < EXACT
        g, dg = draw((1, 2, 19, 6), 2, seed=2)
        grads = backward(*x, *found, g, dg, scale)
        assert gap(grads, torch.autograd.grad(expected, x, (g, dg))) < EXACT


class TestPrecision:
    @pytest.mark.parametrize(
        ("dtype", "close"),
        [(torch.float32, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.04)],
    )
    def test_types(self, dtype: torch.dtype, close: float) -> None:
        x = draw((1, 2, 20, 8), dtype=dtype)
        pair = both(x)
        found = torch.autograd.grad(weigh(*(y.double() for y in pair)), x)
        assert {y.dtype for y in (*pair, *found)} == {dtype}
        y = [z.detach().double().requires_grad_() for z in x]
        expected = wanted(y)
        assert gap(pair, expected) < close
        assert gap(found, torch.autograd.grad(weigh(*expected), y)) < close

    def test_what_all_scores_have_in_common_costs_no_digits(self) -> None:
        """A slope that all keys share leaves the tangent as it is; in bfloat16, too."""
        x = [y.detach() for y in draw((1, 1, 20, 8), dtype=torch.bfloat16)]
        x[1] = x[1] + 64  # and the scores with it
        y = [z.double().requires_grad_() for z in x]
        assert gap(both(x)[1:], wanted(y)[1:]) < 0.04

    def test_large_scores_do_not_overflow(self) -> None:
        x = [200 * y.detach() for y in draw((1, 1, 20, 4), dtype=torch.float32)]
        assert all(bool(y.isfinite().all()) for y in both(x))

    def test_scores_far_below_zero(self) -> None:
        """What lies beyond the last key would be exp(+200) there."""
        x = [y.detach() for y in draw((1, 1, 20, 4), dtype=torch.float32)]
        x = [x[0].abs() + 20, -x[1].abs() - 20, *x[2:]]
        x = [y.requires_grad_() for y in x]
        y = [z.detach().double().requires_grad_() for z in x]
        pair, expected = both(x), wanted(y)
        assert gap(pair, expected) < 1e-3
        found = torch.autograd.grad(weigh(*pair), x)
        assert gap(found, torch.autograd.grad(weigh(*expected), y)) < 1e-3


class TestWhereTheyRun:
    def test_beside_a_recorded_pass_and_within_a_network(self) -> None:
        """The bundled network: both ways to take a derivative, against PyTorch's products."""
        network = stirred(config())
        z, t, r, w, label, along = batch()
        ones = torch.ones_like(t)
        call: Callable[..., Tensor] = closed(network, label, w)
        with pytest.MonkeyPatch.context() as without:
            without.setenv("TRITON_INTERPRET", "0")
            expected = jvp(call, (z, t, r), (along, ones, ones))
            right = torch.autograd.grad(weigh(*expected), network.parameters())
        with Kernels() as kernels:
            live = jvp(call, (z, t, r), (along, ones, ones))
            found = torch.autograd.grad(weigh(*live), network.parameters())
        assert kernels.calls["dual_attention"] == kernels.calls["dual_attention_backward"] == 2
        assert gap(live, expected) < EXACT
        assert gap(found, right) < EXACT
        with Kernels() as kernels:
            value, derivative = value_and_derivative(call, (z, t, r), (along, 1.0, 1.0))
        assert kernels.calls["dual_attention"] == 2
        assert gap((value, derivative), expected) < EXACT
        assert tuple(value.shape[1:]) == SHAPE

    def test_compiled_code_keeps_to_products(self) -> None:
        torch._dynamo.reset()
        x = draw((1, 2, 5, 4))

        def pair(*x: Tensor) -> tuple[Tensor, Tensor]:
            return jvp(attention, x[:3], x[3:])

        seen: list[str] = []

        def look(graph: torch.fx.GraphModule, example: Any) -> Any:
            seen.extend(str(node.target) for node in graph.graph.nodes)
            return make_boxed_func(graph.forward)

        found = torch.compile(pair, backend=aot_autograd(fw_compiler=look), fullgraph=True)(*x)
        grads = torch.autograd.grad(weigh(*found), x)
        assert any("bmm" in name for name in seen)
        assert not any("dual_attention" in name for name in seen)
        expected = wanted(x)
        assert gap(found, expected) < EXACT
        assert gap(grads, torch.autograd.grad(weigh(*expected), x)) < EXACT

    def test_fake_tensors_and_schemas(self) -> None:
        x = [y.detach() for y in draw((1, 2, 5, 4))]
        found = forward(*x, 0.5)
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(forward, (*x, 0.5), test_utils=tests)
        for dg in (None, x[4]):
            arguments = (*x, *found, x[3], dg, 0.5)
            torch.library.opcheck(backward, arguments, test_utils=tests)

    def test_products_are_counted(self) -> None:
        x = draw((1, 2, 20, 12))
        one = 2 * 2 * 20 * 20 * 12
        with FlopCounter() as counter:
            pair = jvp(attention, tuple(x[:3]), tuple(x[3:]))
        assert counter.total == 6 * one
        for results, products in ((pair, 21), (pair[:1], 7)):
            with FlopCounter() as counter:
                torch.autograd.grad([y.sum() for y in results], x[:3], retain_graph=True)
            assert counter.total == products * one

    def test_what_they_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = torch.ones(1, 2, 5, 4)
        assert usable(x, x)
        assert not usable(x, x[0])
        assert not usable(x, x.double())
        assert not usable(x, x[..., :2])
        assert not usable(x[:, :, :0])
        assert blocks(64, torch.float32) is not None
        assert blocks(65, torch.float32) is None
        assert blocks(128, torch.bfloat16) is not None
        assert blocks(129, torch.float16) is None
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        assert not usable(x, x)

    def test_where_they_are_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert chosen(torch.device("cpu")) == "Triton kernels in the interpreter"
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        assert chosen(torch.device("cpu")) == "products of matrices"
        for installed, age, words, runs in (
            (True, (9, 0), "Triton kernels", True),
            (True, (7, 5), "products of matrices, for this device is older", False),
            (False, (9, 0), "products of matrices, for Triton is not installed", False),
        ):
            kernel_attention._fits.cache_clear()
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, age=age: age)
            monkeypatch.setattr(kernel_attention, "_installed", lambda found=installed: found)
            assert chosen(CUDA).startswith(words)
            shown: Any = SimpleNamespace(
                ndim=4, dtype=torch.float32, device=CUDA, shape=(1, 2, 5, 4), numel=lambda: 40
            )
            assert usable(shown, shown) == runs
            shown.dtype = torch.float64
            assert not usable(shown, shown)
        kernel_attention._fits.cache_clear()


def test_they_compile_for_graphics_processors(tmp_path: Path) -> None:
    """To machine code, which fits in shared memory and keeps its sums in registers."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    script = Path(__file__).parent / "compile_kernels.py"
    done = subprocess.run(
        [sys.executable, script, "90", "bfloat16", "64"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert set(found) == {"dual_forward", "backward_queries", "backward_keys"}
    for kernel in found.values():
        assert 0 < kernel["shared"] <= 99 * 1024
        assert kernel["stack"] <= 64
