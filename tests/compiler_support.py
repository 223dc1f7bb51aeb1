"""What the tests of the compiler share: networks for any signature, and losses with their
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowdsl.ir.graph import Graph
from flowdsl.ir.interpret import Interpreter
from flowdsl.passes.program import Program
from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.spec.core import Kind
from flowdsl.spec.objective import Network, Objective

DTYPE = torch.float64


class Net(nn.Module):
    """A small smooth network for any role: it depends on all it is shown."""

    def __init__(self, role: Network, shape: tuple[int, ...] = (3,), width: int = 12) -> None:
        super().__init__()
        self.role = role
        self.shape = shape
        size = 1
        for n in shape:
            size *= n
        kinds = [kind for _, kind in role.arguments]
        states = sum(kind in (Kind.STATE, Kind.FEATURES) for kind in kinds)
        scalars = len(kinds) - states
        scalars += sum(size if c == "features" else c != "label" for c in role.conditions)
        self.inner = nn.Linear(states * size + scalars, width, dtype=DTYPE)
        self.names = nn.Embedding(12, width, dtype=DTYPE)
        outs = [1 if kind is Kind.SCALAR else size for _, kind in role.heads]
        self.outer = nn.ModuleList(nn.Linear(width, n, dtype=DTYPE) for n in outs)
        self.calls = 0
        self.rows: list[int] = []

    def forward(self, *arguments: Tensor, **conditions: Tensor) -> Tensor | tuple[Tensor, ...]:
        assert set(conditions) == set(self.role.conditions)
        self.calls += 1
        rows = len(arguments[0])
        self.rows.append(rows)
        parts = [a.reshape(len(a), -1) for a in arguments]
        parts += [conditions[c].reshape(rows, -1) for c in sorted(conditions) if c != "label"]
        hidden = self.inner(torch.cat([p.to(DTYPE) for p in parts], 1))
        if "label" in conditions:
            hidden = hidden + self.names(conditions["label"] - NULL_LABEL)
        hidden = torch.tanh(hidden)
        values = []
        for layer, (_, kind) in zip(self.outer, self.role.heads, strict=True):
            out = layer(hidden)
            values.append(out[:, 0] if kind is Kind.SCALAR else out.reshape(-1, *self.shape))
        return values[0] if len(values) == 1 else tuple(values)


def networks(objective: Objective, shape: tuple[int, ...] = (3,), seed: int = 0) -> dict[str, Net]:
    """A network for each role; frozen and averaged ones do not require gradients."""
    torch.manual_seed(seed)
    made = {name: Net(role, shape) for name, role in objective.networks.items()}
    for name, role in objective.networks.items():
        if role.frozen or role.average_of is not None:
            made[name].requires_grad_(False)
    return made


def batch(size: int = 20, shape: tuple[int, ...] = (3,), seed: int = 1) -> tuple[Tensor, Tensor]:
    """Data and labels, some of them without a class."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(size, *shape, dtype=DTYPE, generator=generator)
    return data, torch.randint(-1, 10, (size,), generator=generator)


@dataclass
class Outcome:
    """The terms of a loss, and the gradient of their sum (zero where there is none)."""

    terms: dict[str, float]
    gradients: dict[str, Tensor]


def outcome(terms: Mapping[str, Tensor], value: Tensor, nets: Mapping[str, nn.Module]) -> Outcome:
    for net in nets.values():
        net.zero_grad(set_to_none=True)
    if value.requires_grad:
        value.backward()
    gradients = {
        f"{role}.{name}": torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for role, net in nets.items()
        for name, p in net.named_parameters()
    }
    return Outcome({k: v.item() for k, v in terms.items()}, gradients)


def interpreted(
    graph: Graph,
    nets: Mapping[str, nn.Module],
    data: Tensor,
    draws: Mapping[str, Tensor],
    label: Tensor | None = None,
    progress: float = 0.0,
) -> Outcome:
    """The oracle's answer."""
    training = {"progress": progress, "step": 100 * progress, "steps": 100.0}
    terms = Interpreter(graph, nets, data, draws, label, training).run()
    return outcome(terms, sum(terms.values(), torch.zeros((), dtype=DTYPE)), nets)


def phase_at(program: Program, progress: float) -> Graph:
    """The graph of the phase that holds at this progress."""
    training = {"progress": progress, "step": 100 * progress, "steps": 100.0}
    interpreter = Interpreter(
        program.common, {}, torch.zeros(1, 1, dtype=DTYPE), {}, None, training
    )
    for phase in program.phases:
        known: dict[int, Tensor] = {}

        def value(at: int) -> Tensor:
            node = program.common[at]
            return interpreter.node(node, [value(i) for i in node.inputs])

        if all(
            value(at).item() == (v if isinstance(v, bool) else float(v)) for at, v in phase.given
        ):
            return phase.graph
        del known
    raise AssertionError("no phase holds")


def error(found: Outcome, expected: Outcome) -> float:
    """The largest relative error of a term, and of the gradient as a whole and per parameter."""
    assert found.terms.keys() == expected.terms.keys()
    worst = max(abs(found.terms[k] - v) / max(abs(v), 1e-3) for k, v in expected.terms.items())
    scale = max(float(g.norm()) for g in expected.gradients.values())
    for name, gradient in expected.gradients.items():
        difference = float((found.gradients[name] - gradient).norm())
        if math.isnan(difference):  # which compares as smaller than anything
            return math.inf
        worst = max(worst, difference / max(scale, 1e-3))
    return worst


Runner = Callable[[], Outcome]
