"""Emitted source: it runs alone, reads well, draws from the right laws, and says what the graph
says.
"""

from __future__ import annotations

import ast
import math
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowdsl import pipeline, sources
from flowdsl.diagnostics import DiagnosticError
from flowdsl.emit import compile_objective, emit_objective
from flowdsl.emit.layout import lay_out
from flowdsl.emit.load import functions
from flowdsl.emit.names import identifier, spec_names
from flowdsl.ir.lower import lower
from flowdsl.passes.options import Options
from flowdsl.prelude.laws import LAWS
from flowdsl.spec.core import Draw, Expr, Kind, Level, number, sub
from flowdsl.spec.objective import LawCall
from tests import objectives
from tests.compiler_support import DTYPE, batch, error, interpreted, networks, outcome

EVERY = sorted(objectives.ALL)
SHIPPED = [n for n in sources.shipped_names() if pipeline.load(n).terms]


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_emitted_loss_is_the_graph(name: str, optimize: bool) -> None:
    objective = objectives.ALL[name]()
    nets, (data, label) = networks(objective), batch(20)
    loss = compile_objective(objective, optimize=optimize)
    draws = loss.draw(data, generator=torch.Generator().manual_seed(2))
    graph = lower(objective)
    for progress in (0.0, 0.45, 1.0):
        value, terms = loss(
            nets, data, draws=draws, label=label, progress=progress,
            step=int(100 * progress), steps=100,
        )  # fmt: skip
        expected = interpreted(graph, nets, data, draws, label, progress)
        assert error(outcome(terms, value, nets), expected) < 1e-12


@pytest.mark.parametrize("shape", [(2, 3, 3), (1,)])
def test_states_of_any_rank(shape: tuple[int, ...]) -> None:
    for name in ("meanflow_guided", "tvm", "imf"):
        objective = objectives.ALL[name]()
        nets, (data, label) = networks(objective, shape), batch(12, shape)
        loss = compile_objective(objective)
        draws = loss.draw(data)
        value, terms = loss(nets, data, draws=draws, label=label)
        expected = interpreted(lower(objective), nets, data, draws, label)
        assert error(outcome(terms, value, nets), expected) < 1e-12


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_specs_compile_and_agree(name: str) -> None:
    objective = pipeline.load(name)
    nets, (data, label) = networks(objective), batch(16)
    fast, plain = compile_objective(objective), compile_objective(objective, optimize=False)
    draws = fast.draw(data, generator=torch.Generator().manual_seed(4))
    for progress in (0.0, 0.5, 1.0):
        found = []
        for loss in (fast, plain):
            value, terms = loss(nets, data, draws=draws, label=label, progress=progress)
            assert torch.isfinite(value)
            found.append(outcome(terms, value, nets))
        assert error(*found) < 1e-12


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
@pytest.mark.parametrize("name", ["meanflow", "meanflow_guided", "imf", "scm"])
def test_derivatives_some_rows_at_a_time(name: str, chunk_rows: int) -> None:
    """The same value and gradients, from more calls of fewer rows."""
    objective = objectives.ALL[name]() if name in objectives.ALL else pipeline.load(name)
    nets, (data, label) = networks(objective), batch(20)
    losses = [pipeline.compiled(objective, Options(chunk_rows=n)) for n in (None, chunk_rows)]
    draws = losses[0].draw(data, generator=torch.Generator().manual_seed(4))
    calls: list[int] = []
    for net in nets.values():
        net.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    found, made = [], []
    for loss in losses:
        value, terms = loss(nets, data, draws=draws, label=label, progress=0.5)
        found.append(outcome(terms, value, nets))
        made.append(sorted(calls))
        calls.clear()
    assert error(*found) < 1e-12
    assert "in_chunks(" not in losses[0].source
    assert made[1] == made[0] if chunk_rows == 100 else len(made[1]) > len(made[0])


def test_chunks_in_the_text() -> None:
    source = emit_objective(objectives.meanflow())
    chunked = emit_objective(objectives.meanflow(), chunk_rows=4)
    assert "CHUNK = 4  #" in chunked
    assert "CHUNK" not in source
    with pytest.raises(DiagnosticError, match="chunk_rows must be at least 1"):
        emit_objective(objectives.meanflow(), chunk_rows=0)


@pytest.mark.parametrize("where", ["diagonal or alpha == 0", "not (not diagonal and alpha > 0)"])
def test_no_gradient_of_what_a_curriculum_leaves_out(where: str, tmp_path: Path) -> None:
    """A weight of one over what reaches zero, replaced when it does."""
    file = tmp_path / "inverse.flow"
    file.write_text(f"""\
objective inverse  extends alphaflow_plain  "The paper's weight, as the text has it"
loss          mse / alpha
              mse  on {where}
claims
""")
    objective = pipeline.load(str(file))
    nets, (data, label) = networks(objective), batch(8)
    fast, plain = compile_objective(objective), compile_objective(objective, optimize=False)
    draws = fast.draw(data, generator=torch.Generator().manual_seed(4))
    for progress in (0.0, 0.5, 1.0):
        expected = interpreted(lower(objective), nets, data, draws, label, progress)
        for loss in (fast, plain):
            value, terms = loss(nets, data, draws=draws, label=label, progress=progress)
            found = outcome(terms, value, nets)
            assert all(torch.isfinite(x).all() for x in found.gradients.values())
            assert error(found, expected) < 1e-12


@pytest.mark.parametrize("name", EVERY + [f"specs/{n}" for n in SHIPPED])
def test_source_imports_torch_only_and_is_formatted(name: str, tmp_path: Path) -> None:
    objective = pipeline.load(name[6:]) if "/" in name else objectives.ALL[name]()
    for optimize, derivative, rows in (
        (True, "exact", None), (False, "exact", None), (True, "finite_difference", 3),
    ):  # fmt: skip
        source = emit_objective(
            objective, optimize=optimize, derivative=derivative, chunk_rows=rows
        )  # type: ignore[arg-type]
        tree = ast.parse(source)
        imported = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert [ast.unparse(n) for n in imported] == ["import torch"]
        ruff = shutil.which("ruff") or str(Path(sys.executable).parent / "ruff")
        file = tmp_path / "emitted.py"
        file.write_text(source)
        command = [ruff, "format", "--check", "--diff", "--line-length", "100", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


def test_meanflow_reads_well() -> None:
    source = emit_objective(objectives.meanflow())
    tree = ast.parse(source)
    lines = {n.name: n.end_lineno - n.lineno + 1 for n in tree.body
             if isinstance(n, ast.FunctionDef) and n.end_lineno is not None}  # fmt: skip
    assert lines["loss"] <= 45
    assert len(source.splitlines()) <= 150
    assert "Mean Flows for One-step Generative Modeling (arXiv:2505.13447)" in source
    assert "KAPPA = 0.5" in source
    assert "beside it d/dt[u(z, t, r | label)], only where not diagonal" in source
    assert "target = guided - lift(t - r) * du_dt" in source
    assert "dropped * 0" not in source


def test_emitted_text_runs_without_flowdsl(tmp_path: Path) -> None:
    """In a fresh process that cannot import flowdsl, as in somebody's own training script."""
    (tmp_path / "objective.py").write_text(emit_objective(objectives.meanflow()))
    script = (
        "import sys; sys.modules['flowdsl'] = None\n"
        "import torch, objective\n"
        "u = torch.nn.Linear(3, 3)\n"
        "data = torch.randn(8, 3)\n"
        "net = lambda z, t, r, label: u(z) * (t - r)[:, None].cos()\n"
        "value, metrics = objective.loss({'u': net}, data, objective.draw(data))\n"
        "value.backward(); assert u.weight.grad.abs().sum() > 0; print(sorted(metrics))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "['target']", done.stderr


def test_only_needed_rows_are_evaluated() -> None:
    objective = objectives.meanflow()
    nets, (data, label) = networks(objective), batch(40)
    loss = compile_objective(objective)
    loss(nets, data, label=label)
    # prediction on the diagonal; off it u(z, t, t), and prediction and derivative in one pass,
    # which is checked once by a second; null where not dropped
    assert sorted(nets["u"].rows) == [10, 10, 10, 30, 36]
    nets["u"].rows.clear()
    loss(nets, data, label=label)
    assert sorted(nets["u"].rows) == [10, 10, 30, 36]
    nets = networks(objective)
    compile_objective(objective, constants={"kappa": 0})(nets, data, label=label)
    assert sorted(nets["u"].rows) == [10, 10, 30]


NEVER = """objective never "t" arXiv:1
path z(t) = (1 - t) * data + t * noise
rows diagonal ~ share(0.5)
times t, r ~ sorted(uniform(0, 1)); r = t on diagonal
network net(z, t, r) -> u, v
map z(t) -> z(r) = z - (t - r) * u(z, t, r)
differentiate t along velocity
target match u(z, t, r) + (t - r) * stop(d/dt[u(z, t, r)]) + v(z, t, r) to velocity on diagonal
loss mse
"""


def test_a_derivative_that_no_row_needs_is_asked_on_none() -> None:
    objective = pipeline.load_text(NEVER)
    nets, (data, label) = networks(objective), batch(16)
    found = compile_objective(objective)
    plain = compile_objective(
        pipeline.load_text(NEVER.replace("+ (t - r) * stop(d/dt[u(z, t, r)])", ""))
    )
    draws = found.draw(data)
    values = [loss(nets, data, draws=draws, label=label)[0] for loss in (found, plain)]
    torch.testing.assert_close(*values)


def test_a_batch_without_special_rows_works() -> None:
    objective = objectives.meanflow()
    nets, (data, label) = networks(objective), batch(1)
    for size in (1, 2, 3):
        value, _ = compile_objective(objective)(
            nets, data.expand(size, 3), label=label.expand(size)
        )
        assert torch.isfinite(value)


def test_finite_differences_come_close() -> None:
    for name in ("meanflow_guided", "tvm", "imf"):
        objective = objectives.ALL[name]()
        nets, (data, label) = networks(objective), batch(16)
        exact = compile_objective(objective)
        near = compile_objective(objective, derivative="finite_difference")
        assert "torch.func.jvp" not in near.source
        draws = exact.draw(data)
        found = []
        for loss in (near, exact):
            value, terms = loss(nets, data, draws=draws, label=label)
            found.append(outcome(terms, value, nets))
        assert 1e-15 < error(*found) < 1e-6


def test_constants_can_be_set_and_edited() -> None:
    objective = objectives.ALL["meanflow_guided"]()
    nets, (data, label) = networks(objective), batch(16)
    set_ = compile_objective(objective, constants={"omega": 0.5})
    plain = compile_objective(objective)
    edited = functions(plain.source.replace("OMEGA = 0.2", "OMEGA = 0.5"))
    draws = set_.draw(data)
    expected, _ = set_(nets, data, draws=draws, label=label)
    found, _ = edited["loss"](nets, data, draws, label)
    assert found.item() == pytest.approx(expected.item(), rel=1e-14)
    assert plain(nets, data, draws=draws, label=label)[0].item() != pytest.approx(found.item())


def test_errors_show_the_emitted_line() -> None:
    loss = compile_objective(objectives.meanflow())

    def broken(*_: Tensor, **__: Tensor) -> Tensor:
        raise ArithmeticError("from inside")

    data, _ = batch(8)
    try:
        loss(broken, data)
    except ArithmeticError:
        assert "u_t_r = on_rows(diagonal_rows, batch, u, z, t, r, label=label)" in (
            traceback.format_exc()
        )
    else:
        pytest.fail("the error did not come through")


def test_names() -> None:
    assert identifier("τ") == "tau"
    assert identifier("s'") == "s_prime"
    assert identifier("noise''") == "noise_second"
    assert identifier("Ω") == "Omega"
    assert identifier("lambda") == "lambda_"
    with pytest.raises(DiagnosticError, match="both `tau` in Python"):
        spec_names(["τ", "tau"])
    source = emit_objective(objectives.curvature())
    assert 'tau = draws["τ"]' in source
    assert 'draws["s\'"]' in source


def test_spec_names_never_hide_what_the_code_needs() -> None:
    d = objectives.Draft("hostile")
    for name in ("torch", "batch", "terms", "lift"):
        d.draw(name, objectives.law("uniform", 0, 1))
    d.network("data", "z t")
    times = [objectives.time(n) for n in ("torch", "batch", "terms", "lift")]
    total: Expr = times[0]
    for time in times[1:]:
        total = objectives.add(total, time)
    total = d.define("value", total)
    prediction = objectives.Evaluate("data", "data", (objectives.z(times[0]), total))
    target = objectives.velocity(times[1])
    loss = objectives.mul(total, objectives.error(prediction, target))
    term = objectives.Term("target", "target", prediction, target, loss)
    objective = d.objective(term)
    nets, (data, _) = networks(objective), batch(6)
    compiled = compile_objective(objective)
    draws = compiled.draw(data)
    value, terms = compiled(nets, data, draws=draws)
    expected = interpreted(lower(objective), nets, data, draws)
    assert error(outcome(terms, value, nets), expected) < 1e-12


def test_long_lines_are_broken_as_the_formatter_breaks_them() -> None:
    long = "total = " + " + ".join(f"term_number_{i}" for i in range(9))
    assert lay_out(long, 4)[0] == "    total = ("
    assert all(len(line) <= 100 for line in lay_out(long, 4))


# Laws.

N = 20_000


def drawn(law: LawCall, kind: Kind = Kind.TIME, on: Expr | None = None, name: str = "x") -> Tensor:
    d = objectives.Draft("laws")
    d.draw("half", objectives.law("share", 0.5))
    d.draw("gap", objectives.law("uniform", 0.1, 0.9), kind=Kind.SCALAR)
    d.draw(name, law, on=on, kind=kind)
    d.network("u", "z t")
    prediction = objectives.Evaluate("u", "u", (objectives.z(number(0.5)), number(0.5)))
    target = objectives.NOISE
    term = objectives.Term("t", "t", prediction, target, objectives.error(prediction, target))
    loss = compile_objective(d.objective(term))
    data = torch.zeros(N, 1, dtype=DTYPE)
    draws = loss.draw(data, generator=torch.Generator().manual_seed(11))
    drawn.last = draws  # type: ignore[attr-defined]
    return draws[name.split()[0]]


def ks(values: Tensor, cdf: Callable[[float], float]) -> float:
    """The Kolmogorov-Smirnov distance times the root of the number of values; 1.95 is the 0.1 %
    point.
    """
    ordered = sorted(values.tolist())
    n = len(ordered)
    gaps = [max((k + 1) / n - cdf(x), cdf(x) - k / n) for k, x in enumerate(ordered)]
    return max(gaps) * math.sqrt(n)


def phi(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def logit(x: float) -> float:
    return math.log(x / (1 - x))


law = objectives.law
CDFS: list[tuple[LawCall, Callable[[float], float]]] = [
    (law("uniform", -1, 3), lambda x: (x + 1) / 4),
    (law("normal", 1, 2), lambda x: phi((x - 1) / 2)),
    (law("logit_normal", -0.4, 1.5), lambda x: phi((logit(x) + 0.4) / 1.5)),
    (law("log_normal", -1, 1.4), lambda x: phi((math.log(x) + 1) / 1.4)),
    (law("beta", 2, 1), lambda x: x * x),
    (law("beta", 1, 3), lambda x: 1 - (1 - x) ** 3),
    (law("power_law", 1, 8, 1), lambda x: math.log(x) / math.log(8)),
    (law("power_law", 1, 8, 2.5), lambda x: (1 - x**-1.5) / (1 - 8**-1.5)),
    (law("shifted", law("uniform", 0, 1), 5), lambda x: x / (5 - 4 * x)),
    (law("truncated", law("normal", 0, 1), -1, 0.5),
     lambda x: (phi(x) - phi(-1)) / (phi(0.5) - phi(-1))),
    (law("truncated", law("logit_normal", 0, 1), 0.2, 0.9),
     lambda x: (phi(logit(x)) - phi(logit(0.2))) / (phi(logit(0.9)) - phi(logit(0.2)))),
    (law("truncated", law("power_law", 1, 8, 1), 2, 4), lambda x: math.log(x / 2) / math.log(2)),
    (law("truncated", law("uniform", 0, 1), 0.25, 0.75), lambda x: 2 * (x - 0.25)),
    (LawCall("atan", (LawCall("div", (law("log_normal", -1, 1.4), number(0.5))),)),
     lambda x: phi((math.log(0.5 * math.tan(x)) + 1) / 1.4)),
]  # fmt: skip


@pytest.mark.parametrize(("call", "cdf"), CDFS, ids=[f"{c[0].law}-{i}" for i, c in enumerate(CDFS)])
def test_laws_have_their_distribution(call: LawCall, cdf: Callable[[float], float]) -> None:
    values = drawn(call)
    assert ks(values, cdf) < 1.95
    assert ks(values * 1.06 + 0.02, lambda x: min(1, max(0, cdf_or_ends(cdf, x)))) > 1.95


def cdf_or_ends(cdf: Callable[[float], float], x: float) -> float:
    try:
        value = cdf(x)
    except (ValueError, ZeroDivisionError):
        return 1.0
    return value.real if isinstance(value, complex) else value


def test_truncation_follows_each_row_own_bound() -> None:
    gap = Draw("gap", Kind.SCALAR, Level.ROW)
    s = drawn(law("truncated", law("logit_normal", -0.4, 1), 0, sub(number(1), gap)))
    top = 1 - drawn.last["gap"]  # type: ignore[attr-defined]
    assert bool((s <= top).all())
    ends = [phi(logit(x) + 0.4) for x in top.tolist()]
    ranks = [phi(logit(x) + 0.4) / e for x, e in zip(s.tolist(), ends, strict=True)]
    assert ks(torch.tensor(ranks), lambda x: x) < 1.95


def test_sorted_pairs_have_the_larger_first() -> None:
    first = drawn(law("sorted", law("uniform", 0, 1)), name="x y")
    second = drawn.last["y"]  # type: ignore[attr-defined]
    assert bool((first >= second).all())
    assert ks(first, lambda x: x * x) < 1.95
    assert ks(second, lambda x: 1 - (1 - x) ** 2) < 1.95
    first = drawn(law("sorted", law("uniform", 0, 1), law("beta", 1, 3)), name="x y")
    assert ks(first, lambda x: x * (1 - (1 - x) ** 3)) < 1.95


def test_grids() -> None:
    values = drawn(law("choice", law("grid", 4, 1)))
    found, counts = values.unique(return_counts=True)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=DTYPE))
    assert counts.min() > 0.9 * N / 4
    shifted = drawn(law("choice", law("grid", 2, 10))).unique()
    torch.testing.assert_close(shifted, torch.tensor([5 / 5.5, 1.0], dtype=DTYPE))
    noise = drawn(law("karras", 5, 0.002, 80, 7)).unique()
    levels = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)]
    torch.testing.assert_close(noise, torch.tensor(levels[::-1], dtype=DTYPE))


@pytest.mark.parametrize("size", [1, 2, 7, 40, 100])
def test_shares_are_exact(size: int) -> None:
    loss = compile_objective(objectives.meanflow())
    places = torch.zeros(size)
    for seed in range(40):
        draws = loss.draw(torch.zeros(size, 2), generator=torch.Generator().manual_seed(seed))
        assert int(draws["diagonal"].sum()) == size * 3 // 4
        assert int(draws["dropped"].sum()) == size * 3 // 4 * 2 // 15
        assert not bool((draws["dropped"] & ~draws["diagonal"]).any())
        places += draws["diagonal"]
    if size == 40:
        assert places.min() > 15  # each row is drawn as often as any other
        assert places.max() < 40


def test_bernoulli_rows() -> None:
    free = drawn(law("bernoulli", 0.3))
    assert free.float().mean().item() == pytest.approx(0.3, abs=0.015)
    inside = drawn(law("bernoulli", 0.3), on=objectives.rows("half"))
    half = drawn.last["half"]  # type: ignore[attr-defined]
    assert not bool((inside & ~half).any())
    assert inside[half].float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert drawn(law("batch_bernoulli", 0.5)).shape == ()


def test_later_lines_replace_earlier_ones_on_their_rows() -> None:
    loss = compile_objective(objectives.alphaflow())
    data = torch.zeros(N, 1, dtype=DTYPE)
    draws = loss.draw(data, generator=torch.Generator().manual_seed(0))
    diagonal, t = draws["diagonal"], draws["t"]
    assert ks(t[diagonal], lambda x: phi(logit(x) + 0.4)) < 1.95  # one draw
    assert ks(t[~diagonal], lambda x: phi(logit(x) + 0.4) ** 2) < 1.95  # the larger of two
    assert bool((t > draws["r"])[~diagonal].all())


def test_draws_follow_the_generator_and_the_type_of_the_data() -> None:
    loss = compile_objective(objectives.tvm())
    for dtype, times in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        data = torch.zeros(6, 2, dtype=dtype)
        one, two = (loss.draw(data, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        assert all(torch.equal(one[k], two[k]) for k in one)
        assert one["t" if "t" in one else "s"].dtype == times
        assert one["noise"].shape == data.shape


def test_every_law_is_drawn_somewhere() -> None:
    inner = law("uniform", 0, 1)
    known: dict[str, LawCall] = {
        "truncated": law("truncated", inner, 0, 1), "sorted": law("sorted", inner),
        "shifted": law("shifted", inner, 2), "choice": law("choice", law("grid", 3, 1)),
        "grid": law("grid", 3, 1), "karras": law("karras", 3, 0.1, 1, 7),
        "power_law": law("power_law", 1, 2, 1), "beta": law("beta", 1, 1),
    }  # fmt: skip
    for name, row in LAWS.items():
        numbers = [float(p.default or Fraction(1, 2)) for p in row.parameters]
        call = known.get(name) or law(name, *numbers)
        value = drawn(call, name="x y" if row.gives == "pair" else "x")
        assert torch.isfinite(value.double()).all()
        low, high = row.support(*((n, n) for n in numbers)) if name not in known else (0, 2)
        assert value.double().min() >= low
        assert value.double().max() <= high


def test_beta_cannot_be_truncated() -> None:
    with pytest.raises(DiagnosticError, match="cannot be truncated"):
        drawn(law("truncated", law("beta", 2, 2), 0, 0.5))
