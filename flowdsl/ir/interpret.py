"""The oracle: a graph evaluated node by node in torch, slowly and obviously.

It shares no code with the emitter. Each pass is tested by evaluating the graph before and after
here, values and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flowdsl.ir.graph import PAIRS, Graph, Node
from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.spec.core import Kind
from flowdsl.spec.operations import OPERATIONS

Value = Any  # a tensor, or what a network with several heads returns


def _snap(x: Tensor, tolerance: Tensor) -> Tensor:
    inside = torch.where(x > 1 - tolerance, torch.ones_like(x), x)
    return torch.where(x < tolerance, torch.zeros_like(x), inside)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


#: What each operation means, on tensors of broadcastable shapes.
MEANING: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.true_divide,
    "neg": torch.neg,
    "pow": torch.pow,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "atan": torch.atan,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "min": torch.minimum,
    "max": torch.maximum,
    "clip": torch.clamp,
    "snap": _snap,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "select": lambda *parts: _select(*parts),
    "sum_squares": lambda x: _flat(x).square().sum(1),
    "mean_squares": lambda x: _flat(x).square().mean(1),
    "norm": lambda x: torch.linalg.vector_norm(_flat(x), dim=1),
    "mean_abs": lambda x: _flat(x).abs().mean(1),
    "dot": lambda x, y: (_flat(x) * _flat(y)).sum(1),
    "batch_mean": lambda x: x.detach().mean(),
}


def _select(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """A branch that nothing takes gets no gradient: zero times that of one over zero is none."""
    if bool(condition.all()):
        no = no.detach()
    elif not bool(condition.any()):
        yes = yes.detach()
    return torch.where(condition, yes, no)


class Interpreter:
    """Evaluates the nodes of one graph for one batch."""

    def __init__(
        self,
        graph: Graph,
        networks: Mapping[str, Callable[..., Value]],
        data: Tensor,
        draws: Mapping[str, Tensor],
        label: Tensor | None = None,
        training: Mapping[str, float] | None = None,
        formals: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.graph = graph
        self.networks = networks
        self.data = data
        self.draws = draws
        self.label = label
        self.training = dict(training or {"progress": 0.0, "step": 0.0, "steps": 1.0})
        self.formals = dict(formals or {})

    def scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self.data.dtype, device=self.data.device)

    def row(self, value: Value, kind: Kind) -> Value:
        """The value with one entry per sample, as networks receive it."""
        if kind is Kind.STATE:
            return value.expand_as(self.data) if value.dim() == 0 else value
        if kind is Kind.FEATURES:
            return value
        return value.expand(len(self.data)) if value.dim() == 0 else value

    def lift(self, value: Tensor, kind: Kind) -> Tensor:
        """The value in a shape that combines with states."""
        if kind is Kind.STATE or value.dim() == 0:
            return value
        return value.reshape(-1, *[1] * (self.data.dim() - 1))

    def run(self) -> dict[str, Tensor]:
        """The terms: the batch mean of each loss on its rows, and of zero elsewhere."""
        values = self.values()
        terms = {}
        for output in self.graph.outputs:
            loss = self.row(values[output.loss], Kind.SCALAR)
            if output.rows is not None:
                loss = torch.where(values[output.rows], loss, torch.zeros_like(loss))
            terms[output.term] = loss.mean()
        return terms

    def values(self) -> dict[int, Value]:
        known: dict[int, Value] = {}
        for at in self.graph.used:
            node = self.graph[at]
            known[at] = self.node(node, [known[i] for i in node.inputs])
        return known

    def node(self, node: Node, inputs: list[Value]) -> Value:
        match node.op:
            case "number":
                return self.scalar(float(node.value))
            case "constant":
                return self.scalar(float(self.graph.objective.constants[str(node.detail)]))
            case "training":
                return self.scalar(float(self.training[str(node.detail)]))
            case "draw":
                return self.draws[str(node.detail)]
            case "given" if node.detail == "data":
                return self.data
            case "given" if node.detail == "label":
                none = torch.full((len(self.data),), NULL_LABEL, device=self.data.device)
                return none if self.label is None else self.label
            case "given":
                return self.formals[str(node.detail)]
            case "null":
                return torch.tensor(NULL_LABEL, device=self.data.device)
            case "true" | "false":
                return torch.tensor(node.op == "true", device=self.data.device)
            case "stop":
                return inputs[0].detach()
            case "head":
                return inputs[0][self.head(node)]
            case "primal" | "tangent":
                return inputs[0][node.op == "tangent"]
            case "rows":
                return torch.nonzero(self.row(inputs[0], Kind.TRUTH)).squeeze(1)
            case "call" | "derivative" | "dual" | "beside":
                return self.evaluate(node, inputs)
        return self.operation(node, inputs)

    def head(self, node: Node) -> int:
        source = self.graph[node.inputs[0]]
        while source.op in ("primal", "tangent"):
            source = self.graph[source.inputs[0]]
        heads = self.graph.objective.networks[source.call.network].heads
        return [name for name, _ in heads].index(str(node.detail))

    def operation(self, node: Node, inputs: list[Tensor]) -> Tensor:
        kinds = [self.graph[i].kind for i in node.inputs]
        shape = OPERATIONS[node.op].shape
        if shape == "reduction":
            if Kind.STATE not in kinds:
                inputs = [self.row(x, k).unsqueeze(1) for x, k in zip(inputs, kinds, strict=True)]
            else:
                inputs = [self.row(self.lift(x, k), Kind.STATE).expand_as(self.data)
                          for x, k in zip(inputs, kinds, strict=True)]  # fmt: skip
        elif Kind.STATE in kinds:
            inputs = [self.lift(x, k) for x, k in zip(inputs, kinds, strict=True)]
        if node.op == "softplus":
            return torch.logaddexp(inputs[0], torch.zeros_like(inputs[0]))
        return MEANING[node.op](*inputs)

    def evaluate(self, node: Node, inputs: list[Value]) -> Value:
        call = node.call
        kinds = [self.graph[i].kind for i in node.inputs]
        network = self.networks[call.network]
        rows = inputs[-1] if call.on_rows else None
        last = len(inputs) - call.on_rows
        whole = [
            self.row(x, self.argument_kind(call.network, i, k) if i < call.arguments else k)
            for i, (x, k) in enumerate(zip(inputs[: call.point], kinds, strict=False))
        ]
        picked = [x if rows is None else x[rows] for x in whole]
        conditions = dict(zip(call.conditions, picked[call.arguments :], strict=True))
        tangents = iter(inputs[call.point : last])

        def function(*point: Value) -> Value:
            return network(*point, **conditions)

        point = tuple(x.contiguous().clone() for x in picked[: call.arguments])
        with torch.set_grad_enabled(call.record and torch.is_grad_enabled()):
            if rows is not None and len(rows) == 0:
                result = self.nothing(call.network)
                result = (result, result) if node.op in PAIRS else result
            else:
                derivative: Callable[..., Value] = function
                for direction in call.directions:
                    filled = []
                    for i, moves in enumerate(direction):
                        tangent = torch.zeros_like(whole[i])
                        if moves:
                            tangent = tangent + next(tangents)
                        filled.append(tangent if rows is None else tangent[rows])
                    derivative = _along(derivative, tuple(filled))
                if node.op == "beside":
                    with torch.no_grad():
                        value = derivative(*point)
                else:
                    value = derivative(*point)
                if node.op in PAIRS:
                    value = (function(*point), value)
                result = value if rows is None else self.spread(value, rows)
        return result

    def argument_kind(self, network: str, index: int, kind: Kind) -> Kind:
        declared = self.graph.objective.networks[network].arguments[index][1]
        return Kind.STATE if declared is Kind.STATE else kind

    def nothing(self, network: str) -> Value:
        heads = self.graph.objective.networks[network].heads
        zero = torch.zeros_like(self.data)
        return zero if len(heads) == 1 else tuple(zero for _ in heads)

    def spread(self, value: Value, rows: Tensor) -> Value:
        """The rows' values in their places, zero elsewhere."""
        if isinstance(value, tuple):
            return tuple(self.spread(v, rows) for v in value)
        zeros = value.new_zeros(len(self.data), *value.shape[1:])
        return zeros.index_copy(0, rows, value)


def _along(function: Callable[..., Value], direction: tuple[Tensor, ...]) -> Callable[..., Value]:
    def derivative(*point: Tensor) -> Value:
        return torch.func.jvp(function, point, direction)[1]

    return derivative
