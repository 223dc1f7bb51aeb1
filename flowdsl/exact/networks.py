"""Networks that know the answer: the truth of a role, plus `eps` times smooth directions.

The gradient of an objective with respect to `eps` at zero is its directional derivative, at the
truth, in the direction in which a trained network could move. For a right objective all of these
vanish in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowdsl.exact.flow import FlowMap, VelocityField
from flowdsl.exact.forward import row_by_row
from flowdsl.exact.paths import over_rows
from flowdsl.runtime.contract import NULL_LABEL, Argument, NetworkSignature

#: `truth(state, *times, **conditions)`: a tensor, or a tuple with one entry per head.
Truth = Callable[..., Tensor | tuple[Tensor, ...]]


def average_velocity(flow: FlowMap) -> Truth:
    """The truth of `u` in `map z(t) -> z(r) = z - (t - r) * u(z, t, r)`."""

    def truth(state: Tensor, start: Tensor, end: Tensor, *, label: Tensor | None = None) -> Tensor:
        return flow.average_velocity(state, start, end, label)

    return truth


def marginal_velocity(field: VelocityField) -> Truth:
    """The truth of `v(z, t)`: the marginal velocity of the labelled field."""

    def truth(state: Tensor, time: Tensor, *, label: Tensor | None = None) -> Tensor:
        return field.velocity(state, time, label)

    return truth


def scaled_average_velocity(flow: FlowMap) -> Truth:
    """The truth of `F(z, t, s | label, w)` in `z + (s - t) * w * F`; `w` also scales guidance.

    Terminal Velocity Matching's scaled parameterisation (arXiv:2511.19797, section 4.3).
    """

    def truth(
        state: Tensor, start: Tensor, end: Tensor, *, w: Tensor, label: Tensor | None = None
    ) -> Tensor:
        return flow.average_velocity(state, start, end, label, w) / w[:, None]

    return truth


def solved_map(
    flow: FlowMap,
    skip: Callable[[Tensor], Tensor],
    out: Callable[[Tensor], Tensor],
    *,
    end: float,
    input_scale: float = 1.0,
) -> Truth:
    """The truth of `F` in `map z(t) -> z(end) = skip(t) * z + out(t) * F(z / input_scale, t)`.

    Consistency functions: `skip` and `out` are c_skip and c_out, or cos(t) and -sin(t) sd. Only for
    times at which `out` is not zero.
    """

    def truth(state: Tensor, time: Tensor, *, label: Tensor | None = None) -> Tensor:
        point = state * input_scale
        landed = flow(point, time, torch.full_like(time, end), label)
        return (landed - over_rows(skip(time), point) * point) / over_rows(out(time), point)

    return truth


class RandomDirections(nn.Module):
    """Fixed smooth random functions of a network's inputs: one hidden layer of tanh, in float64.

    It maps a state (rows, ...), times and conditions to (count, rows, ...), each function of size
    about one. Every time and scalar condition, and the label, has a part in it, so that no input
    can be wrong unseen.
    """

    def __init__(self, signature: NetworkSignature, count: int, *, seed: int, width: int) -> None:
        super().__init__()
        self.signature = signature
        self.count = count
        self.width = width
        self.seed = seed
        self._layers: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def forward(
        self, state: Tensor, times: tuple[Tensor, ...], conditions: dict[str, Tensor]
    ) -> Tensor:
        flat = state.flatten(1)
        # times matter as much as states: an objective may be wrong only where two times differ
        columns = [flat, *(3 * time.double()[:, None] for time in times)]
        columns += [self._condition(argument, conditions, flat) for argument in self._seen]
        # states and times of variance-exploding paths reach 80: asinh keeps the functions smooth
        # there
        inputs = torch.asinh(torch.cat(columns, dim=1))
        first, bias, second = self._weights(inputs.shape[1], flat.shape[1])
        hidden = torch.tanh(inputs @ first + bias)
        values = torch.einsum("bh,hco->cbo", hidden, second)
        return values.reshape(self.count, *state.shape)

    @property
    def _seen(self) -> list[Argument]:
        return [c for c in self.signature.conditions if c.kind in ("label", "scalar", "time")]

    @staticmethod
    def _condition(argument: Argument, conditions: dict[str, Tensor], flat: Tensor) -> Tensor:
        value = conditions.get(argument.name)
        if argument.kind == "label":
            # an angle per class: any class, and the null label, has a place of its own
            label = torch.full_like(flat[:, 0], NULL_LABEL) if value is None else value.double()
            return torch.stack([torch.cos(2.4 * label), torch.sin(2.4 * label)], dim=1)
        return torch.zeros_like(flat[:, :1]) if value is None else value.double()[:, None]

    def _weights(self, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weights for states of this size, made once, when a state is first seen."""
        if (inputs, outputs) not in self._layers:
            generator = torch.Generator().manual_seed(self.seed)
            shapes = [(inputs, self.width), (self.width,), (self.width, self.count, outputs)]
            first, bias, second = (
                torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
            )
            # the hidden units have size 0.7 or so, and their sum then size one
            self._layers[inputs, outputs] = (first, bias, second * (1.4 / math.sqrt(self.width)))
        return self._layers[inputs, outputs]


class ExactNetwork(nn.Module):
    """`truth(state, *times, **conditions) + sum_j eps_j g_j`, called as `signature` says.

    `eps` is a parameter of shape (directions,), zero at the start; with `directions = 0` the
    network is the truth and has no parameter (for averages and frozen networks). Only heads of kind
    state are moved, each by directions of its own, all with the same `eps`. States are (rows, ...),
    times and scalar conditions (rows,).
    """

    def __init__(
        self,
        signature: NetworkSignature,
        truth: Truth,
        *,
        directions: int = 8,
        seed: int = 0,
        width: int = 24,
    ) -> None:
        super().__init__()
        self.signature = signature
        self.truth = truth
        heads = signature.heads
        moved = [i for i, head in enumerate(heads) if head.kind == "state"] if heads else [0]
        self.moved = tuple(moved) if directions else ()
        self.functions = nn.ModuleList(
            RandomDirections(signature, directions, seed=seed + 101 * head, width=width)
            for head in self.moved
        )
        if directions:
            self.eps = nn.Parameter(torch.zeros(directions, dtype=torch.float64))

    def forward(
        self, state: Tensor, *times: Tensor, **conditions: Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        """One tensor, or a tuple with one entry per head."""
        heads = self._rowwise(self.truth, state, times, conditions)
        for head, function in zip(self.moved, self.functions, strict=True):

            def directions(
                state: Tensor, *times: Tensor, function: nn.Module = function, **given: Tensor
            ) -> Tensor:
                moved: Tensor = function(state, times, given).transpose(0, 1)
                return moved

            (moved,) = self._rowwise(directions, state, times, conditions)
            heads[head] = heads[head] + torch.einsum("c,bc...->b...", self.eps, moved)
        return heads[0] if len(heads) == 1 else tuple(heads)

    def _rowwise(
        self,
        function: Truth,
        state: Tensor,
        times: tuple[Tensor, ...],
        conditions: dict[str, Tensor],
    ) -> list[Tensor]:
        """The results of a function of rows, differentiable in state, times and conditions."""
        names = [n for n, v in conditions.items() if v.is_floating_point()]
        fixed = {n: v for n, v in conditions.items() if n not in names}
        widths: list[torch.Size] = []

        def flat(state: Tensor, *rest: Tensor) -> Tensor:
            given = dict(zip(names, rest[len(times) :], strict=True))
            answer = function(state, *rest[: len(times)], **fixed, **given)
            parts = (answer,) if isinstance(answer, Tensor) else answer
            widths[:] = [part.shape[1:] for part in parts]
            return torch.cat([part.reshape(len(part), -1) for part in parts], 1)

        whole = row_by_row(flat, state, *times, *(conditions[n] for n in names))
        pieces = torch.split(whole, [math.prod(width) for width in widths], 1)
        return [p.reshape(len(p), *width) for p, width in zip(pieces, widths, strict=True)]
