"""`flowdsl doctor`: every planted fault is found and given a remedy, and sound networks pass."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import faulty_networks as networks
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import flowdsl
from flowdsl.cli import app
from flowdsl.cli.phases import phase_points
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.doctor import DoctorOptions, Report, all_examinations, examine, load_network
from flowdsl.runtime.doctor.calls import observed_calls
from flowdsl.runtime.doctor.derivatives import (
    best_difference,
    extrapolated,
    forward_derivative,
    relative,
)
from flowdsl.runtime.doctor.loading import place_of
from flowdsl.runtime.loss import Loss
from flowdsl.runtime.nets import build_network

FILE = Path(networks.__file__)


@cache
def loss_of(name: str) -> Loss:
    return flowdsl.load(name).compile()


def report_of(
    network: nn.Module, name: str = "meanflow", options: DoctorOptions | None = None
) -> Report:
    torch.manual_seed(0)
    loss = loss_of(name)
    return examine(network, loss, (2,), options, progresses=tuple(phase_points(loss).values()))


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(networks, name)()


# (network, objective, examination, verdict, words of the sentence, words of the remedy)
FAULTS = [
    ("Bag", "meanflow", "forward_derivative", "fail",
     "no forward derivative for _embedding_bag", "replace it by operations that have one"),
    ("CustomFunction", "meanflow", "forward_derivative", "fail", "setup_context", "and a jvp"),
    ("BatchNorm", "meanflow", "forward_derivative", "fail", "in-place", "GroupNorm"),
    ("BatchNorm", "meanflow", "buffers", "fail", "norm.running_mean", "GroupNorm"),
    ("BatchNorm", "meanflow", "rows", "fail", "more than 1 value", "GroupNorm"),
    ("MixesRows", "meanflow", "rows", "fail", "depend on the others", "apart from the others"),
    ("ManyRows", "meanflow", "rows", "fail", "one row alone", "faulty_networks.py"),
    ("WrongTangent", "meanflow", "derivative", "fail", "not the derivative", "jvp is wrong"),
    ("DetachedTime", "meanflow", "derivative", "fail", "not the derivative", "detach()"),
    ("HalfTime", "meanflow", "derivative", "fail", "not the derivative", "rounding"),
    ("OnlyFloat32", "meanflow", "derivative", "note", "cannot compute in float64", "type"),
    ("ConstantTangent", "tvm", "derivative_gradient", "fail", "is wrong", "elementary operations"),
    ("Checkpointed", "tvm", "derivative_gradient", "fail", "CheckpointError", "switch it off"),
    ("Dropout", "meanflow", "determinism", "fail", "dropout in drop", "probability"),
    ("Noisy", "meanflow", "determinism", "fail", "draws random numbers", "arguments alone"),
    ("Dropout", "flow_matching", "determinism", "note", "dropout in network.drop", "probability"),
    ("WrongShape", "meanflow", "calls", "fail", "returns shape (12, 1)", "(12, 2)"),
    ("TwoResults", "meanflow", "calls", "fail", "returns a tuple", "one tensor"),
    ("Unlabelled", "meanflow", "calls", "fail", "unexpected keyword argument 'label'",
     "accepts: forward(z, t, r)"),
    ("NegativeLabel", "meanflow", "calls", "fail", "IndexError", "-1 is the label of no class"),
    ("FewClasses", "meanflow", "calls", "fail", "IndexError", "--classes"),
    ("NotFinite", "meanflow", "calls", "fail", "not finite", "gap of two that are equal"),
    ("Raises", "meanflow", "calls", "fail", "no attribute 'missing'", "return self.missing(x)"),
    ("SwappedTimes", "meanflow", "arguments", "fail", "takes (z, r, t)", "by position"),
    ("IgnoresTime", "tvm", "arguments", "note", "does not depend on", "make sure"),
    ("AutocastTime", "meanflow", "precision", "note", "bfloat16", "in float32"),
    ("CutOff", "meanflow", "parameters", "fail", "label.weight matters", "detach()"),
    ("Overflows", "meanflow", "parameters", "fail", "not finite", "overflow"),
    ("Unused", "meanflow", "parameters", "note", "extra.weight", "find_unused_parameters"),
    ("Unused", "meanflow", "distributed", "note", "finished reduction", "find_unused_parameters"),
    ("ReadsData", "meanflow", "one_pass", "note", "two passes", "detach()"),
    ("WrongTangent", "meanflow", "one_pass", "note", "was off by", "report the network"),
    ("Frozen", "meanflow", "parameters", "fail", "no parameter requires", "requires_grad_"),
    ("ThousandTimes", "meanflow", "time_scale", "note", "times the result", "as by 1000"),
    ("data_parallel", "meanflow", "wrapping", "fail", "DataParallel", "loss.bind(network)"),
    ("compiled_by_itself", "meanflow", "wrapping", "fail", "uncompiled", "torch.compile(loss.bind"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("network", "objective", "examination", "verdict", "said", "remedy"),
    FAULTS,
    ids=[f"{n}-{e}-{o}" for n, o, e, *_ in FAULTS],
)
def test_a_planted_fault_is_found(network, objective, examination, verdict, said, remedy) -> None:
    candidate = made(network)
    if objective == "flow_matching":
        candidate = _Velocity(candidate)
    report = report_of(candidate, objective)
    finding = report.findings[examination]
    assert finding.verdict == verdict, finding
    assert said in finding.sentence
    assert remedy in finding.remedy
    assert report.ok == (not any(f.verdict == "fail" for f in report.findings.values()))


class _Velocity(nn.Module):
    """A map as a velocity: flow matching calls v(z, t | label)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z, t, *, label):
        return self.network(z, t, t, label=label)


def test_a_sound_network_passes_everything() -> None:
    report = report_of(made("Right"))
    assert report.ok
    assert {f.verdict for f in report.findings.values()} == {"ok"}
    assert report.findings["derivative"].figures["float32"] < 1e-5
    assert report.findings["derivative"].figures["central_difference"] < 1e-8
    assert report.findings["distributed"].figures["gradient"] < 1e-6
    assert report.findings["one_pass"].figures["error"] < 1e-5
    assert "one pass" in report.findings["one_pass"].sentence


@pytest.mark.parametrize("name", ["flow_matching", "meanflow", "tvm", "alphaflow", "shortcut"])
def test_the_bundled_network_passes_with_shipped_objectives(name: str) -> None:
    loss = loss_of(name)
    network = build_network(loss.signature.learned[0], shape=(1, 4, 4), classes=10)
    report = examine(network, loss, (1, 4, 4), progresses=tuple(phase_points(loss).values()))
    assert report.ok
    assert all(f.verdict == "ok" for f in report.findings.values()), report.as_dict()
    if name in ("flow_matching", "shortcut"):  # which take no derivative
        assert "attention" not in report.findings
    else:
        assert "here, by products of matrices" in report.findings["attention"].sentence


def test_the_patient_is_not_changed() -> None:
    network = made("Right")
    before = {name: x.clone() for name, x in network.state_dict().items()}
    report_of(network)
    for name, x in network.state_dict().items():
        assert torch.equal(x, before[name])
    assert all(p.grad is None for p in network.parameters())


def test_what_needs_a_failed_examination_is_skipped() -> None:
    findings = report_of(made("WrongShape")).findings
    assert findings["forward_derivative"].verdict == "skipped"
    assert findings["derivative"].verdict == "skipped"
    assert "calls comes first" in findings["forward_derivative"].sentence


def test_a_network_that_cannot_be_copied_is_a_diagnostic() -> None:
    with pytest.raises(DiagnosticError, match="cannot be copied: TypeError: it holds a file"):
        report_of(made("CannotBeCopied"))


def test_bfloat16_fails_only_where_it_is_planned() -> None:
    class Useless(networks.AutocastTime):
        frequency = 1000.0

    torch.manual_seed(0)
    network = Useless()
    assert report_of(network).findings["precision"].verdict == "note"
    planned = report_of(network, options=DoctorOptions(precision="bfloat16"))
    assert planned.findings["precision"].verdict == "fail"
    assert planned.findings["precision"].figures["derivative"] > 0.2


def test_the_error_of_finite_differences_is_that_of_their_step() -> None:
    fine, coarse = (
        report_of(made("ThousandTimes"), options=DoctorOptions(difference_step=step))
        for step in (1e-4, 1e-2)
    )
    assert fine.findings["finite_differences"].verdict == "ok"
    found = coarse.findings["finite_differences"]
    assert found.verdict == "note"
    assert found.figures["error"] > 0.3
    assert found.figures["best"] == fine.findings["finite_differences"].figures["best"]
    assert "STEP = 0.0001" in found.remedy


def test_a_compiled_loss_is_compared_and_a_wrong_compiler_refused() -> None:
    from torch._dynamo import register_backend

    def off_by_a_hundredth(graph, inputs):
        def run(*arguments):
            return [
                1.01 * x if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                for x in graph(*arguments)
            ]

        return run

    register_backend(off_by_a_hundredth, name="off_by_a_hundredth")
    found = report_of(made("Right"), options=DoctorOptions(compile="eager")).findings["compiled"]
    assert found.verdict == "ok"
    assert found.figures["gradient"] < 1e-5
    options = DoctorOptions(compile="off_by_a_hundredth")
    found = report_of(made("Right"), options=options).findings["compiled"]
    assert found.verdict == "fail"
    assert "computes something else" in found.sentence


@pytest.mark.parametrize("objective", ["meanflow", "tvm"])
def test_fused_attention_is_no_fault(objective: str) -> None:
    """PyTorch has no forward derivative of it, but the losses take it by a rule of their own."""
    report = report_of(made("FusedAttention"), objective)
    assert report.ok
    assert report.findings["derivative"].figures["float32"] < 1e-5
    assert report.findings["derivative_gradient"].verdict == "ok"


def test_every_missing_derivative_is_named() -> None:
    class Two(networks.Bag):
        def hidden(self, x):
            heads = x.view(-1, 2, 4, 4)
            mixed = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
            points = mixed.reshape(-1, 4, 8)
            return super().hidden(x + torch.cdist(points, points).reshape(-1, 16).repeat(1, 2))

    sentence = report_of(Two()).findings["forward_derivative"].sentence
    assert "_cdist_forward" in sentence
    assert "_scaled_dot_product" not in sentence  # taken by a rule of its own
    assert "_embedding_bag" in sentence


def test_calls_are_observed_with_their_directions() -> None:
    calls, steps = observed_calls(
        loss_of("meanflow"), "u", (2,), batch=16, classes=10, progresses=(0.5,)
    )
    (derivative,) = [c for c in calls if c.direction is not None]
    assert derivative.text == "d/d(z, t)[u(z, t, r, label=…)]"
    assert derivative.moving == (0, 1)
    assert not derivative.gradient
    assert derivative.rows == 4  # the rows off the diagonal
    assert torch.equal(derivative.direction[1], torch.ones(4))
    assert len(steps) == 1
    calls, _ = observed_calls(loss_of("tvm"), "F", (2,), batch=16, classes=10, progresses=(0.5,))
    (derivative,) = [c for c in calls if c.direction is not None]
    assert derivative.moving == (2,)
    assert derivative.gradient


def test_all_phases_are_observed() -> None:
    loss = loss_of("alphaflow")
    forms = {
        progress: observed_calls(
            loss, "u", (2,), batch=16, classes=10, progresses=(progress,)
        )[0]
        for progress in (0.1, 0.9)
    }  # fmt: skip
    assert all(call.direction is None for call in forms[0.1])
    assert any(call.direction is not None for call in forms[0.9])


def test_derivatives_agree_on_a_network_whose_derivative_is_known() -> None:
    class Known(nn.Module):
        def forward(self, z, t, r, *, label):
            return z.sin() * (t * t * r)[:, None]

    calls, _ = observed_calls(
        loss_of("meanflow"), "u", (3,), batch=16, classes=None, progresses=(0.5,)
    )
    call = next(c for c in calls if c.direction is not None).to(torch.float64)
    (z, t, r), (dz, dt, _) = call.arguments, call.direction
    by_hand = z.cos() * dz * (t * t * r)[:, None] + z.sin() * (2 * t * r * dt)[:, None]
    assert relative(forward_derivative(Known(), call), by_hand) < 1e-14
    assert relative(extrapolated(Known(), call), by_hand) < 1e-10
    error, step = best_difference(Known(), call, by_hand)
    assert error < 1e-8
    assert 1e-6 <= step <= 1e-3


def test_a_second_network_of_a_spec_can_be_examined() -> None:
    report = examine(made("Right"), loss_of("tvm"), (2,), role="slow")
    assert report.role == "slow"
    assert report.findings["calls"].verdict == "ok"
    with pytest.raises(DiagnosticError, match='tvm has no network "G"'):
        examine(made("Right"), loss_of("tvm"), (2,), role="G")


@pytest.mark.parametrize(("spec", "role"), [("free_flow", "fake"), ("imf", "net"), ("scm", "v")])
def test_players_heads_and_networks_of_numbers_can_be_examined(spec: str, role: str) -> None:
    loss = flowdsl.load(FILE.parent / "good" / f"{spec}.flow").compile()
    network = build_network(loss.signature.network(role), shape=(1, 4, 4), classes=10)
    report = examine(network, loss, (1, 4, 4), role=role)
    assert all(f.verdict == "ok" for f in report.findings.values()), report.as_dict()


def test_examinations_stand_behind_those_they_need() -> None:
    before: set[str] = set()
    for examination in all_examinations():
        assert set(examination.after) <= before
        assert examination.question.endswith("?")
        before.add(examination.name)


# Loading


def test_a_network_is_loaded_from_a_file_a_module_and_as_it_is() -> None:
    assert type(load_network(f"{FILE}:Right")).__name__ == "Right"
    assert isinstance(load_network("torch.nn:Identity"), nn.Identity)
    here = load_network(f"{FILE}:here")
    assert type(here).__name__ == "Right"


BAD_NAMES = [
    ("nonsense", "names no network", "path/to/file.py:NAME"),
    (f"{FILE}:", "names no network", "path/to/file.py:NAME"),
    (f"{FILE}:Rigth", 'has no "Rigth"', 'did you mean "Right"?'),
    (f"{FILE.parent}/faulty_network.py:Right", "there is no file", "faulty_networks.py"),
    (f"{FILE}:needs_width", "needs arguments: width", "def make()"),
    (f"{FILE}:breaks", "breaks() of", "faulty_networks.py"),
    (f"{FILE}:makes_nothing", "no torch.nn.Module", "a function that returns one"),
    (f"{FILE}:number", "no class or function", "path/to/file.py:NAME"),
    ("no_such_module:Right", "there is no module no_such_module", "give its path"),
]


@pytest.mark.parametrize(("text", "message", "hint"), BAD_NAMES)
def test_a_wrong_name_is_a_message(text: str, message: str, hint: str) -> None:
    with pytest.raises(DiagnosticError) as caught:
        load_network(text)
    assert message in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message", "place"),
    [
        ("import nothing_like_this\n", "ModuleNotFoundError", "broken.py:1: import nothing"),
        ("x = 1\nraise SystemExit(3)\n", "SystemExit: 3", "broken.py:2: raise"),
        ("def f(:\n", "SyntaxError", "broken.py:1: def f(:"),
        ("x = {}\nx['a']\n", "KeyError: 'a'", "broken.py:2: x['a']"),
    ],
)
def test_a_file_that_fails_is_a_message_with_its_line(
    tmp_path: Path, code: str, message: str, place: str
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(DiagnosticError) as caught:
        load_network(f"{path}:Network")
    assert "cannot be imported" in str(caught.value)
    assert message in str(caught.value)
    assert place in str(caught.value)


def test_the_place_of_an_error_is_a_line_of_the_user() -> None:
    row = torch.zeros(1)
    with pytest.raises(AttributeError) as caught:
        made("Raises")(torch.zeros(1, 2), row, row, label=row.int())
    assert "faulty_networks.py" in place_of(caught.value)
    assert place_of(caught.value).endswith("return self.missing(x)")


# The command


def test_the_command_shows_a_table_and_its_status() -> None:
    runner = CliRunner()
    good = runner.invoke(app, ["doctor", f"{FILE}:Right", "--shape", "2"])
    assert good.exit_code == 0, good.output
    assert "forward derivative" in good.output
    bad = runner.invoke(app, ["doctor", f"{FILE}:CustomFunction", "--shape", "2", "--json"])
    assert bad.exit_code == 1
    report = json.loads(bad.output)
    assert report["schema"] == 1
    assert not report["ok"]
    assert set(report) == {
        "schema", "ok", "network", "objective", "role", "line", "shape", "findings",
    }  # fmt: skip
    for finding in report["findings"]:
        assert set(finding) == {"name", "verdict", "sentence", "figures", "remedy", "place"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bundled", "--shape", "2"], "takes channels, height and width"),
        (["bundled", "--shape", "1,x"], "is no shape of one sample"),
        (["bundled", "--spec", "meanflaw"], "there is no objective"),
        (["bundled", "--role", "v"], 'has no network "v"'),
        (["bundled", "--compile", "--backend", "inducter"], 'no compiler "inducter"'),
    ],
)
def test_mistakes_at_the_command_line_are_messages(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert isinstance(result.exception, DiagnosticError)
    assert message in str(result.exception)
