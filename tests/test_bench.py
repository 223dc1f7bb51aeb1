"""`flowdsl bench`: its counts equal counts by hand, and a wrong gradient does not pass."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import flowdsl
from flowdsl import pipeline
from flowdsl.cli import app
from flowdsl.cli.phases import phase_points
from flowdsl.diagnostics import DiagnosticError
from flowdsl.emit.load import load as load_source
from flowdsl.passes.options import Options
from flowdsl.runtime.agreement import Outcome, compare, outcome
from flowdsl.runtime.bench import BenchOptions, BenchResult, Setting, bench, resized, table
from flowdsl.runtime.bench.compiling import verify_compiled
from flowdsl.runtime.bench.counting import FlopCounter, LiveBytes, allocator_peak, count
from flowdsl.runtime.bench.timing import interleaved, median_ratio, spread
from flowdsl.runtime.loss import Loss
from flowdsl.runtime.nets import SIZES, Size, build_network
from flowdsl.runtime.nets.attention import attention
from flowdsl.runtime.nets.layers import Linear
from flowdsl.runtime.weights import wake

CPU = torch.device("cpu")
TINY = Setting(Size("tiny", depth=1, width=24, heads=1), (1, 4, 4))
QUICK = BenchOptions(batch=8, repeats=1, warmup=0)


@cache
def ways(name: str) -> dict[str, Loss]:
    objective = flowdsl.load(name)
    return {"plain": objective.compile(optimize=False), "optimised": objective.compile()}


class Plain(nn.Module):
    """Three products on vectors (rows, 5), called as v(z, t | label) or u(z, t, r | label)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 7), nn.Linear(7, 11), nn.Linear(11, 5)

    def forward(self, z: Tensor, t: Tensor, r: Tensor | None = None, *, label: Tensor) -> Tensor:
        gap = t if r is None else t + r
        hidden = self.first(torch.cat([z, gap[:, None]], 1)).tanh()
        return self.third(self.second(hidden).tanh())


#: Floating-point operations of one forward pass per row, and of its backward pass: two products
#: per layer, but one for the first, whose input needs no gradient.
FORWARD = 2 * (6 * 7 + 7 * 11 + 11 * 5)
BACKWARD = 2 * FORWARD - 2 * 6 * 7
VECTORS = Setting(SIZES["nano"], (5,))


def bench_plain(name: str, losses: dict[str, Loss], options: BenchOptions = QUICK) -> BenchResult:
    return bench({name: losses}, [VECTORS], options, make=lambda role, shape: Plain())


# Counting


def test_flow_matching_on_a_plain_network_costs_what_it_does_by_hand() -> None:
    group = bench_plain("flow_matching", ways("flow_matching")).groups[0]
    assert group.forward == 8 * FORWARD
    for row in group.rows:
        assert row.flops * group.forward == pytest.approx(8 * (FORWARD + BACKWARD), rel=1e-12)
        assert row.calls == {"v": 1}


def test_a_forward_derivative_on_a_plain_network_is_counted() -> None:
    """Plain: three evaluations, a derivative of its own, a backward pass, all on all rows. PyTorch
    takes a linear layer's derivative in three products (2.13: the weight's zero tangent counts), or
    in two."""
    group = bench_plain("meanflow", ways("meanflow")).groups[0]
    plain, optimised = group.row("plain"), group.row("optimised")
    derivative = plain.flops * group.forward / 8 - 3 * FORWARD - BACKWARD
    assert derivative / FORWARD in (pytest.approx(3), pytest.approx(2))
    assert plain.calls == {"u": 4}
    # 8 rows, of which 6 on the diagonal: u(z, t, t) on 2 rows, and the derivative, which takes one
    # product per layer beside the prediction; none is dropped.
    by_hand = 8 * FORWARD + 2 * FORWARD + 8 * FORWARD + 2 * FORWARD + 8 * BACKWARD
    assert optimised.flops * group.forward == pytest.approx(by_hand, rel=1e-12)


def test_the_insides_of_a_hand_written_rule_are_counted() -> None:
    batch, heads, tokens, width = 2, 3, 8, 4
    product = 2 * batch * heads * tokens * tokens * width
    q, k, v = (torch.randn(batch, heads, tokens, width, requires_grad=True) for _ in range(3))
    with FlopCounter() as plain:
        attention(q, k, v).sum().backward()
    assert plain.total == (2 + 5) * product  # the fused kernels: the backward pass recomputes one
    tangents = tuple(torch.randn_like(x) for x in (q, k, v))
    with FlopCounter() as flops:
        value, tangent = torch.func.jvp(attention, (q, k, v), tangents)
    assert flops.total == 6 * product
    with FlopCounter() as flops:
        (value * tangent).sum().backward()
    assert flops.total == 12 * product


def test_a_bundled_layer_needs_two_products_for_its_derivative() -> None:
    layer = Linear(5, 3)
    wake(layer)
    x = torch.randn(7, 5)
    with FlopCounter() as flops:
        torch.func.jvp(layer, (x,), (torch.randn_like(x),))
    assert flops.total == 2 * 2 * 7 * 5 * 3


def test_live_bytes_of_a_chain_are_those_by_hand() -> None:
    x = torch.randn(1000)

    def chain() -> Tensor:
        a = x.exp()
        b = a.exp()
        del a
        c = b[:10].exp()  # a view takes nothing
        del b
        return c.double()

    memory = LiveBytes([x])
    with memory:
        chain()
    assert memory.peak == 8000  # a and b; b and c are less
    with LiveBytes([x]) as nothing:
        x.add_(1)
        x.view(10, 100)
    assert nothing.peak == 0


def test_live_bytes_are_those_of_the_allocator() -> None:
    loss = ways("tvm")["optimised"]
    network = build_network(loss.signature.learned[0], shape=(1, 8, 8), classes=10)
    wake(network)
    module = loss.bind(network)
    data = torch.randn(8, 1, 8, 8)
    draws = loss.draw(data)

    def step() -> None:
        module.zero_grad()
        module(data, draws=draws)[0].backward()

    step()
    module.zero_grad()
    known = [*module.parameters(), *module.buffers(), data, *draws.values()]
    counted = count(step, dict(module.networks.items()), known, CPU).peak
    module.zero_grad()
    assert counted == pytest.approx(allocator_peak(step), rel=0.02)


def test_the_calls_of_several_networks_are_counted_each() -> None:
    loss = flowdsl.load(Path(__file__).parent / "good" / "free_flow.flow")
    both = {"plain": loss.compile(optimize=False), "optimised": loss.compile()}
    rows = bench({"free_flow": both}, [TINY], QUICK).groups[0].rows
    assert set(rows[0].calls) == {"F", "teacher", "fake"}
    assert all(n > 0 for n in rows[1].calls.values())
    assert sum(rows[1].calls.values()) < sum(rows[0].calls.values())
    assert rows[2].calls == {"F": 1, "teacher": 0, "fake": 0}


# Equality


def test_plain_and_optimised_agree_and_cost_less() -> None:
    result = bench({"meanflow": ways("meanflow")}, [TINY], QUICK)
    plain, optimised, unit = result.groups[0].rows
    assert [row.name for row in result.groups[0].rows] == ["plain", "optimised", "FM step"]
    assert optimised.agreement.ok
    assert optimised.agreement.gradient < 1e-6
    assert optimised.flops < 0.75 * plain.flops
    assert optimised.peak_of_first < 0.5
    assert unit.flops == pytest.approx(3, abs=0.1)
    assert unit.of_unit == 1
    assert plain.of_first == 1


def test_double_precision_agrees_to_double_precision() -> None:
    options = replace(QUICK, dtype=torch.float64)
    result = bench({"tvm": ways("tvm")}, [TINY], options)
    agreement = result.groups[0].row("optimised").agreement
    assert agreement.tolerance == 1e-11
    assert agreement.gradient < 1e-14
    assert result.dtype == "float64"


MUTATIONS = [
    ("meanflow", "du_dt).detach()", "du_dt)"),  # gradient through the target; same value
    ("meanflow", "0.01) ** 1).detach()", "0.01) ** 1)"),  # gradient through the weight; same value
    ("meanflow", "guided - lift(t - r)", "guided + lift(t - r)"),
    ("tvm", "(s - t) * w) * dF_ds", "(s - t) * w) * dF_ds.detach()"),  # same value
    ("tvm", "anchor_mse / w**2", "1.001 * anchor_mse / w**2"),
]


@pytest.mark.parametrize(("name", "right", "wrong"), MUTATIONS, ids=[w for _, _, w in MUTATIONS])
def test_a_planted_wrong_gradient_is_refused(name: str, right: str, wrong: str) -> None:
    plain = ways(name)["plain"]
    assert plain.source.count(right) == 1
    changed = load_source(plain.source.replace(right, wrong), plain.signature)
    with pytest.raises(DiagnosticError, match="does not compute what the plain step does"):
        bench({name: {"plain": plain, "changed": changed}}, [TINY], QUICK)


def test_networks_that_draw_random_numbers_are_pointed_to_the_doctor() -> None:
    class Noisy(Plain):
        def forward(self, z, t, r=None, *, label):
            return super().forward(z + torch.randn_like(z), t, r, label=label)

    with pytest.raises(DiagnosticError, match="flowdsl doctor"):
        bench({"meanflow": ways("meanflow")}, [VECTORS], QUICK, make=lambda role, shape: Noisy())


def test_without_any_gradient_nothing_is_compared() -> None:
    with pytest.raises(DiagnosticError, match="no gradient: nothing can be compared"):
        bench(
            {"flow_matching": ways("flow_matching")}, [VECTORS], QUICK,
            make=lambda role, shape: _Stopped(),
        )  # fmt: skip


class _Stopped(Plain):
    def forward(self, z, t, r=None, *, label):
        return super().forward(z, t, r, label=label).detach() + 0 * self.third.bias


@given(st.floats(1e-3, 10), st.integers(0, 2))
def test_an_error_counts_wherever_it_is(error: float, place: int) -> None:
    right = {"a": torch.ones(3), "b": torch.zeros(2), "c": torch.full((2, 2), 5.0)}
    wrong = {name: x.clone() for name, x in right.items()}
    wrong["abc"[place]].flatten()[0] += error
    found = compare(Outcome(1.0, wrong), Outcome(1.0, right), torch.float32)
    assert not found.ok
    assert found.parameter == "abc"[place]
    size = math.sqrt(3 + 4 * 25)
    assert found.gradient == pytest.approx(error / size, rel=1e-3)
    assert not compare(Outcome(1 + error, right), Outcome(1.0, right), torch.float32).ok
    assert compare(Outcome(1.0, right), Outcome(1.0, right), torch.float64).ok


def test_missing_and_infinite_gradients_count() -> None:
    right = Outcome(1.0, {"a": torch.ones(3), "b": torch.ones(3)})
    missing = compare(Outcome(1.0, {"a": torch.ones(3)}), right, torch.float32)
    assert not missing.ok
    assert missing.parameter == "b"
    assert missing.gradient == pytest.approx(math.sqrt(0.5))
    bad = Outcome(1.0, {"a": torch.ones(3), "b": torch.full((3,), math.nan)})
    assert not compare(bad, right, torch.float32).ok
    assert compare(bad, right, torch.float32).parameter == "b"
    zero = Outcome(1.0, {"a": torch.ones(3), "b": torch.ones(3), "c": torch.zeros(2)})
    assert compare(zero, right, torch.float32).ok  # none and zero are the same gradient


# torch.compile


def test_a_compiled_step_is_compared_with_the_same_uncompiled() -> None:
    options = replace(QUICK, compile="eager")
    result = bench({"meanflow": ways("meanflow")}, [TINY], options)
    names = [row.name for row in result.groups[0].rows]
    assert names == ["plain", "optimised", "FM step", "optimised, compiled", "FM step, compiled"]
    row = result.groups[0].row("optimised, compiled")
    assert row.compared_with == "optimised"
    assert row.agreement.ok
    assert row.ms is not None
    assert row.of_unit is not None
    assert row.flops is None
    assert row.peak > 0
    assert result.ok


def test_a_compiler_that_changes_gradients_is_refused() -> None:
    from torch._dynamo import register_backend

    def shifted(graph, inputs):
        return lambda *a: [x + 0.01 if torch.is_floating_point(x) else x for x in graph(*a)]

    register_backend(shifted, name="shifted_by_a_hundredth")
    options = replace(QUICK, compile="shifted_by_a_hundredth")
    result = bench_plain("flow_matching", ways("flow_matching"), options)
    row = result.groups[0].row("optimised, compiled")
    assert "computes something else" in row.refused
    assert row.ms is None
    assert not result.ok
    assert row.refused in _text(result)


def test_a_compiler_that_does_nothing_or_fails_is_refused() -> None:
    network = nn.Linear(2, 1)
    parameters = dict(network.named_parameters())

    def step() -> Tensor:
        value = network(torch.ones(3, 2)).sum()
        value.backward()
        return value

    reference = outcome(parameters, step)
    agreement, refused = verify_compiled(step, parameters, reference, torch.float32)
    assert agreement.ok
    assert "compiled nothing" in refused

    def fails() -> Tensor:
        raise NotImplementedError("no such kernel\nand much more")

    agreement, refused = verify_compiled(fails, parameters, reference, torch.float32)
    assert agreement is None
    assert refused == "torch.compile fails: NotImplementedError: no such kernel"


def test_an_unknown_compiler_is_a_message() -> None:
    with pytest.raises(DiagnosticError, match='did you mean "inductor"'):
        bench({"meanflow": ways("meanflow")}, [TINY], replace(QUICK, compile="inducter"))


# Timing


def test_rounds_run_every_step_once_in_changing_order() -> None:
    seen: list[str] = []
    steps = {name: lambda name=name: seen.append(name) for name in "abcd"}
    samples = interleaved(steps, repeats=12, device=CPU, seed=1)
    rounds = ["".join(seen[i : i + 4]) for i in range(0, len(seen), 4)]
    assert len(rounds) == 12
    assert all(sorted(r) == list("abcd") for r in rounds)
    assert len(set(rounds)) > 6
    assert all(len(s.wall) == len(s.cpu) == 12 for s in samples.values())
    assert gc.isenabled()


def test_garbage_collection_is_on_again_after_an_error() -> None:
    def fails() -> None:
        raise ValueError("a step that fails")

    with pytest.raises(ValueError, match="a step that fails"):
        interleaved({"a": fails}, repeats=1, device=CPU)
    assert gc.isenabled()


def test_medians_quartiles_and_ratios() -> None:
    found = spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.median, found.lower, found.upper, found.range) == (3, 2, 4, 2)
    assert spread([7.0]).range == 0
    # Both slow down in the second round: the ratio within rounds is what stays.
    assert median_ratio([1.0, 10.0, 1.1], [2.0, 20.0, 2.0]) == pytest.approx(0.5)


def test_the_number_of_threads_is_as_before() -> None:
    before = torch.get_num_threads()
    result = bench({"flow_matching": ways("flow_matching")}, [TINY], replace(QUICK, threads=2))
    assert result.machine.threads == 2
    assert torch.get_num_threads() == before


# What is shown


def _text(result: BenchResult) -> str:
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(table(result))
    return capture.get()


def test_the_table_fits_a_terminal_and_names_everything() -> None:
    from rich.console import Console

    loss = ways("alphaflow")["optimised"]
    result = bench(
        {"alphaflow": ways("alphaflow")}, [TINY], QUICK, phases={"alphaflow": phase_points(loss)}
    )
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(result))
    shown = capture.get()
    assert "…" not in shown
    for words in ("alphaflow, alpha == 1", "alphaflow, otherwise", "optimised", "FM step", "1e-05"):
        assert words in shown


def test_phases_are_found_in_order_and_differ_in_cost() -> None:
    loss = ways("alphaflow")["optimised"]
    points = phase_points(loss)
    assert list(points) == ["alpha == 1", "otherwise", "alpha == 0"]
    assert 0 < points["alpha == 1"] < points["otherwise"] < points["alpha == 0"] < 1
    assert phase_points(ways("meanflow")["optimised"]) == {"": 0.5}
    result = bench({"a": ways("alphaflow")}, [TINY], QUICK, phases={"a": points})
    first, middle, last = (group.row("optimised").flops for group in result.groups)
    assert first < middle < last
    assert len({group.row("plain").flops for group in result.groups}) == 1


def test_the_json_has_a_stable_form_and_names_no_host() -> None:
    import platform

    result = bench({"flow_matching": ways("flow_matching")}, [TINY], QUICK)
    text = result.json()
    plain = json.loads(text)
    assert set(plain) == {
        "schema", "ok", "machine", "dtype", "clock", "repeats", "seed", "groups",
    }  # fmt: skip
    assert set(plain["machine"]) == {
        "cpu", "cores", "threads", "gpu", "torch", "python", "system",
    }  # fmt: skip
    (group,) = plain["groups"]
    assert set(group) == {
        "objective", "phase", "progress", "network", "size", "shape", "batch", "forward", "rows",
    }  # fmt: skip
    for row in group["rows"]:
        assert set(row) == {
            "name", "ms", "samples", "of_first", "of_unit", "flops", "calls", "peak",
            "peak_of_first", "compared_with", "agreement", "refused",
        }  # fmt: skip
    assert platform.node() not in text


def test_sizes_can_be_changed() -> None:
    assert resized(SIZES["nano"]) is SIZES["nano"]
    assert resized(SIZES["nano"], depth=4) is SIZES["nano"]
    changed = resized(SIZES["nano"], depth=6, width=192)
    assert (changed.depth, changed.width, changed.heads) == (6, 192, 3)
    assert changed.name == "nano, depth 6 width 192"


def test_a_sleeping_network_is_woken() -> None:
    role = ways("meanflow")["plain"].signature.learned[0]
    network = build_network(role, shape=(1, 8, 8), classes=10)
    z, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    label = torch.arange(4)
    assert not network(z, t, t, label=label).any()
    wake(network, torch.Generator().manual_seed(0))
    value, tangent = torch.func.jvp(
        lambda t: network(z, t, t, label=label), (t,), (torch.ones(4),)
    )  # fmt: skip
    other = network(z, t, t, label=label - 1)
    assert value.std() > 0.1
    assert tangent.norm() > 0.05 * value.norm()
    assert (other - value).norm() > 0.02 * value.norm()
    again = build_network(role, shape=(1, 8, 8), classes=10)
    again.load_state_dict(network.state_dict())
    wake(again)
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert a.ndim > 1 or torch.equal(a, b)  # vectors that are awake stay as they are


# The command


def test_the_command_measures_and_writes(tmp_path) -> None:
    out = tmp_path / "result.json"
    arguments = ["bench", "flow_matching", "meanflow", "--batch", "4", "--repeats", "1",
                 "--width", "24", "--heads", "1", "--depth", "1", "--resolution", "4,8",
                 "--set", "kappa=0.25", "--threads", "1", "-o", str(out)]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "optimised" in result.output
    plain = json.loads(out.read_text())
    assert [(g["objective"], g["shape"]) for g in plain["groups"]] == [
        ("flow_matching", [1, 4, 4]), ("meanflow", [1, 4, 4]),
        ("flow_matching", [1, 8, 8]), ("meanflow", [1, 8, 8]),
    ]  # fmt: skip


SMALLEST = ["--batch", "8", "--repeats", "1", "--width", "24", "--heads", "1", "--depth", "1",
        "--resolution", "4", "--threads", "1", "--json"]  # fmt: skip


def rows_of(*arguments: str) -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(app, ["bench", *arguments, *SMALLEST])
    assert result.exit_code == 0, result.output
    (group,) = json.loads(result.stdout)["groups"]
    return {row["name"]: row for row in group["rows"]}


def test_what_each_pass_earns() -> None:
    rows = rows_of("meanflow", "--ablation")
    flops = {name: row["flops"] for name, row in rows.items()}
    # PyTorch multiplies by the zero tangents of the weights, the bundled layers don't
    assert flops["plain"] > flops["unoptimised"] + 0.5 > flops["optimised"] + 1
    without = {name.removeprefix("without "): f for name, f in flops.items() if "without" in name}
    assert without.keys() >= {"stops", "reuse", "rows", "beside"}
    assert all(f >= flops["optimised"] - 1e-9 for f in without.values())
    assert without["beside"] > flops["optimised"] + 0.1
    assert without["rows"] > flops["optimised"] + 1
    assert all(row["agreement"]["gradient"] < 1e-5 for n, row in rows.items() if "without" in n)


def test_chunks_and_differences_beside_the_rest() -> None:
    rows = rows_of("meanflow", "--chunk-rows", "1", "--difference")
    optimised, chunked, difference = (rows[n] for n in ("optimised", "in chunks", "difference"))
    assert chunked["agreement"]["gradient"] < 1e-5
    assert chunked["flops"] == pytest.approx(optimised["flops"], rel=1e-3)
    assert sum(chunked["calls"].values()) == sum(optimised["calls"].values()) + 1
    # its error is shown, and no reason to stop
    assert 1e-6 < difference["agreement"]["gradient"] < 0.1
    assert difference["ms"] is not None


@pytest.mark.parametrize(
    ("spec", "costs"),
    [
        # in forward passes, as counted of the authors' own training code where it runs in PyTorch
        ("tvm", {"otherwise": 13.0}),
        ("meanflow", {"otherwise": 8.0}),
        ("imf", {"otherwise": 8.0}),
        ("alphaflow", {"alpha_is_0": 8.0, "alpha_is_1": 5.0, "otherwise": 6.0}),
    ],
)
def test_plain_is_what_authors_evaluate(spec: str, costs: dict[str, float]) -> None:
    by_hand = Options(optimize=False, transcribed=True)
    program = pipeline.optimised(flowdsl.load(spec).typed, by_hand)
    found = {step.phase: step.cost for step in program.steps if step.phase}
    assert found == pytest.approx(costs)
    assert not program.optimized
    assert all(graph[at].call.record for p in program.phases for graph in [p.graph]
               for at in graph.calls())  # fmt: skip


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spec", ["tvm", "alphaflow"])
def test_plain_computes_the_formula_as_it_stands(spec: str, progress: float) -> None:
    objective = flowdsl.load(spec)
    by_hand = Options(optimize=False, transcribed=True)
    both = {
        "formula": objective.compile(optimize=False),
        "plain": pipeline.compiled(objective.typed, by_hand),
    }
    options = replace(QUICK, progress=progress, dtype=torch.float64)
    (group,) = bench({spec: both}, [TINY], options).groups
    plain = group.row("plain")
    assert plain.agreement is not None
    assert plain.agreement.gradient < 1e-12
    assert plain.flops is not None
    assert plain.flops < (group.row("formula").flops or 0) - 0.5


def test_own_blocks_of_each_output() -> None:
    rows = rows_of("imf", "--depth", "2", "--own-blocks", "1")
    assert rows["optimised"]["agreement"]["gradient"] < 1e-5
    assert rows["optimised"]["flops"] < rows_of("imf", "--depth", "2")["optimised"]["flops"]


def test_a_network_of_ones_own(tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.a = nn.Linear(16, 64); self.b = nn.Linear(64, 16)\n"
        "    def forward(self, z, t, r, label):\n"
        "        hidden = (self.a(z.flatten(1)) + (t * r)[:, None]).tanh()\n"
        "        return self.b(hidden).view_as(z)\n"
    )
    rows = rows_of("meanflow", "--network", f"{tmp_path / 'mine.py'}:Mine")
    # its own layers have no rules: those of the runtime come with the optimised text
    assert rows["plain"]["flops"] == pytest.approx(rows["unoptimised"]["flops"])
    assert rows["optimised"]["flops"] < rows["plain"]["flops"] / 1.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["meanflaw"], "there is no objective"),
        (["meanflow", "--size", "nana"], 'no network size is called "nana"'),
        (["meanflow", "--resolution", "8,x"], "is no list of numbers"),
        (["meanflow", "--set", "omeha=1"], 'no spec has a constant "omeha"'),
        (["meanflow", "--width", "25"], "not a multiple of 4"),
        (["meanflow", "--device", "quantum"], 'device "quantum" cannot be used'),
        (["meanflow", "--patch", "3"], "cannot be cut into patches of 3 x 3"),
    ],
)
def test_mistakes_at_the_command_line_are_messages(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(result.exception, DiagnosticError), result.output
    assert message in str(result.exception)
