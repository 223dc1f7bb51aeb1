"""A map as numbers: `A z + B N`, its limit on the diagonal, and the times that its network sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.inverse import SHOWN, Reading, readings
from flowdsl.certify.linear import Combination, combination
from flowdsl.certify.numbers import Numbers
from flowdsl.spec.core import (
    ONE,
    ZERO,
    Apply,
    Evaluate,
    Expr,
    Formal,
    Given,
    Kind,
    Level,
    Null,
    Number,
    div,
    mul,
    neg,
    transform,
    walk,
)
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import FlowMap, Objective

Scalars = Mapping[str, Tensor]

#: Below this distance of the two times a quotient is taken as the mean of a derivative.
NEAR = 0.1
_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(10))
_PROBES = ((0.37, 0.81), (0.62, 0.23), (0.91, 0.55))


class MapShape:
    """One map `A(t, s) z + B(t, s) N(c z, …)`, evaluated at times and conditions (rows,).

    Conditions of the network that are expressions of the spec (a guidance scale) become parameters:
    at another scale every occurrence of it changes, inside the network and out. Raises
    `Uncertified` unless the map is linear in one evaluation of one network.
    """

    def __init__(self, objective: Objective, flow_map: FlowMap, numbers: Numbers) -> None:
        self.flow_map = flow_map
        self.numbers = numbers
        self._objective = objective
        body = with_parameters(flow_map.body, single_call(flow_map, flow_map.body))
        self.call = single_call(flow_map, body)
        self.network = self.call.network
        terms = combination(body, objective.networks)
        if not set(terms) <= {flow_map.state, self.call} or self.call.directions:
            raise Uncertified("the map is not linear in its state and network", flow_map.span)
        self._skip, self._out = terms.get(flow_map.state, ZERO), terms.get(self.call, ZERO)
        self._scale = self._input_scale(objective)

    def _input_scale(self, objective: Objective) -> Expr:
        kinds = objective.networks[self.network].arguments
        if [kind for _, kind in kinds].index(Kind.STATE) != 0:
            raise Uncertified(f"{self.network} does not take its state first", self.call.span)
        read: Combination = combination(self.call.args[0], objective.networks)
        if set(read) != {self.flow_map.state}:
            raise Uncertified("the network reads something else than the state", self.call.span)
        return read[self.flow_map.state]

    # evaluation

    def _bound(self, start: Tensor, end: Tensor, scalars: Scalars) -> dict[Expr, Tensor]:
        bound: dict[Expr, Tensor] = {Formal(n, Kind.SCALAR): v for n, v in scalars.items()}
        for formal, time in ((self.flow_map.start, start), (self.flow_map.end, end)):
            if isinstance(formal, Formal):
                bound[formal] = time
        return bound

    def weights(self, start: Tensor, end: Tensor, scalars: Scalars) -> tuple[Tensor, Tensor]:
        """A and B."""
        bound, like = self._bound(start, end, scalars), start + end
        return self.numbers.rows(self._skip, bound, like), self.numbers.rows(self._out, bound, like)

    def input_scale(self, start: Tensor, end: Tensor, scalars: Scalars) -> Tensor:
        """c."""
        return self.numbers.rows(self._scale, self._bound(start, end, scalars), start + end)

    def fixed_scale(self, like: Tensor) -> Tensor:
        """c, where it is the same at all times. Raises `Uncertified` where it is not."""
        return self.numbers.rows(self._scale, {}, like)

    def slopes(self, start: Tensor, end: Tensor, scalars: Scalars) -> tuple[Tensor, Tensor]:
        """`(1 - A) / (s - t)` and `B / (s - t)`, smooth through `s = t`.

        With them the network of a flow with average velocity V is `(a z + V) / b`.
        """
        bound, like = self._bound(start, end, scalars), start + end

        def slope(index: int) -> Tensor:
            exact = self._divided[index]
            if exact is not None:
                return self.numbers.rows(exact, bound, like)
            return self._sloped(index, start, end, scalars)

        return slope(0), slope(1)

    @cached_property
    def _divided(self) -> tuple[Expr | None, Expr | None]:
        """`(1 - A) / (s - t)` and `B / (s - t)` as trees, where a factor stands there to cancel."""
        ends = self.flow_map.start, self.flow_map.end
        skip = ZERO if self._skip == ONE else None
        return skip, over_interval(self._out, *ends)

    def _sloped(self, index: int, start: Tensor, end: Tensor, scalars: Scalars) -> Tensor:
        """One of the slopes, as a quotient of differences."""
        by_end = isinstance(self.flow_map.end, Formal)

        def moved(time: Tensor) -> Tensor:
            times = (start, time) if by_end else (time, end)
            return self.weights(*times, scalars)[index]

        fixed, other = (start, end) if by_end else (end, start)
        found = quotient(moved, fixed, other)
        return -found if (index == 0) == by_end else found

    @cached_property
    def bounded(self) -> bool:
        """Does the map move nothing where its times are equal, for every network?"""
        times = torch.tensor([0.23, 0.51, 0.84], dtype=torch.float64)
        if not isinstance(self.flow_map.end, Formal):
            times = self.end_of(times)
        elif not isinstance(self.flow_map.start, Formal):
            times = self.start_of(times)
        skip, out = self.weights(times, times, self._probe_scalars(times))
        return bool(((skip - 1).abs() + out.abs()).max() < 1e-9)

    def _probe_scalars(self, like: Tensor) -> dict[str, Tensor]:
        return {name: torch.full_like(like, 1.3) for name in self.parameters}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The conditions that stand in the map itself."""
        return tuple(name for name, value in self.call.conditions if isinstance(value, Formal))

    # times

    def start_of(self, like: Tensor) -> Tensor:
        """The map's start where it is a fixed number."""
        return self.numbers.rows(self.flow_map.start, {}, like)

    def end_of(self, like: Tensor) -> Tensor:
        """The map's end where it is a fixed number."""
        return self.numbers.rows(self.flow_map.end, {}, like)

    def times_of(
        self, shown: Sequence[Tensor], told: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Start and end of the map at which its network sees these times; `told` is the time that
        a blind network tells from its state."""
        found = self._read(shown, told)
        like = next(iter(found.values()))
        start, end = self.flow_map.start, self.flow_map.end
        return (
            found[start] if isinstance(start, Formal) else self.start_of(like),
            found[end] if isinstance(end, Formal) else self.end_of(like),
        )

    def _read(self, shown: Sequence[Tensor], told: Tensor | None) -> dict[Expr, Tensor]:
        plan = self._plan
        if plan is None and not self.blind:
            return self._solved(shown)
        found: dict[Expr, Tensor] = {}
        if self.blind:
            assert told is not None
            plan, found[self.flow_map.start] = self._plan_told, told
        assert plan is not None
        for one in plan:
            value = shown[one.place]
            if one.tree != SHOWN:  # else the very tensor: equal times stay one and the same
                value = self.numbers.rows(one.tree, {**found, SHOWN: value}, value)
            found[one.time] = value
        return found

    @cached_property
    def _plan(self) -> tuple[Reading, ...] | None:
        """How the times of the map follow, one after another, from those its network sees."""
        return readings(self.call.args[1:], self._free)

    @cached_property
    def _plan_told(self) -> tuple[Reading, ...] | None:
        """The same where its network knows the time of its state."""
        start = self.flow_map.start
        return readings(self.call.args[1:], [f for f in self._free if f != start], [start])

    @cached_property
    def blind(self) -> bool:
        """Must the network tell the time from its state, for want of one that it sees?"""
        if self._plan is not None or not isinstance(self.flow_map.start, Formal):
            return False
        try:
            self._affine  # noqa: B018
        except Uncertified:
            return self._plan_told is not None
        return False

    def _solved(self, shown: Sequence[Tensor]) -> dict[Expr, Tensor]:
        """Times from affine functions of both."""
        matrix, offsets = self._affine
        found: dict[Expr, Tensor] = {}
        for formal, row in zip(self._free, torch.linalg.pinv(matrix).tolist(), strict=True):
            total = torch.zeros_like(shown[0])
            for w, x, o in zip(row, shown, offsets.tolist(), strict=True):
                total = total + w * (x - o)
            found[formal] = total
        return found

    @property
    def _free(self) -> list[Formal]:
        ends = (self.flow_map.start, self.flow_map.end)
        return [f for f in ends if isinstance(f, Formal)]

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        """The shown times as an affine function of the map's: matrix and offsets."""
        free = self._free
        if len(self.call.args) == 1:
            raise Uncertified(f"{self.network} sees no time", self.call.span)

        def shown(values: Sequence[float]) -> Tensor:
            bound: dict[Expr, Tensor] = {
                f: torch.tensor(v, dtype=torch.float64) for f, v in zip(free, values, strict=False)
            }
            return torch.stack([self.numbers(a, bound).double() for a in self.call.args[1:]])

        offsets = shown([0.0] * len(free))
        columns = [
            shown([float(i == k) for i in range(len(free))]) - offsets for k in range(len(free))
        ]
        matrix = torch.stack(columns, dim=1)
        for probe in _PROBES:
            values = torch.tensor(probe[: len(free)], dtype=torch.float64)
            if (shown(probe) - offsets - matrix @ values).abs().max() > 1e-9:
                raise Uncertified("the times a network sees are no affine function of the map's",
                                  self.call.span)  # fmt: skip
        if int(torch.linalg.matrix_rank(matrix)) < len(free):
            raise Uncertified(
                f"{self.network} does not see enough to tell the map's times apart", self.call.span
            )
        return matrix, offsets

    def check(self) -> None:
        """Raises `Uncertified` now rather than in the middle of a measurement."""
        if self._plan is None and not self.blind:
            self._affine  # noqa: B018


def over_interval(expr: Expr, start: Expr, end: Expr) -> Expr | None:
    """`expr / (end - start)` where that is a factor of it; None where none stands there."""
    match expr:
        case Apply("sub", (a, b)) if {a, b} == {start, end}:
            return ONE if a == end else neg(ONE)
        case Apply("neg", (a,)):
            inner = over_interval(a, start, end)
            return None if inner is None else neg(inner)
        case Apply("mul", (a, b)):
            for one, other in ((a, b), (b, a)):
                inner = over_interval(one, start, end)
                if inner is not None:
                    return other if inner == ONE else mul(inner, other)
        case Apply("div", (a, b)):
            inner = over_interval(a, start, end)
            return None if inner is None else div(inner, b)
    return None


def quotient(f: Callable[[Tensor], Tensor], fixed: Tensor, other: Tensor) -> Tensor:
    """`(f(other) - f(fixed)) / (other - fixed)`, smooth where the times are equal.

    Close by, it is the mean of f' in between, by Gauss and Legendre's rule with ten nodes.
    """
    distance = other - fixed
    near = distance.abs() < NEAR
    width = torch.where(near, torch.ones_like(distance), distance)
    shares = (_NODES.reshape(-1, *[1] * fixed.dim()) + 1) / 2
    nodes = fixed + shares * torch.where(near, distance, NEAR)
    rates: Tensor = torch.func.jvp(f, (nodes,), (torch.ones_like(nodes),))[1]
    mean = torch.tensordot(_WEIGHTS / 2, rates, dims=1)
    return torch.where(near, mean, (f(other) - f(fixed)) / width)


def single_call(flow_map: FlowMap, body: Expr) -> Evaluate:
    """The one evaluation of a network in a map."""
    calls = {node for node in walk(body) if isinstance(node, Evaluate)}
    if len(calls) != 1:
        raise Uncertified("the map evaluates its network more than once, or never", flow_map.span)
    return calls.pop()


def with_parameters(expr: Expr, call: Evaluate) -> Expr:
    """The tree with the scalar conditions of a call written as parameters, wherever they occur."""
    names = parameters_of(call)
    if not names:
        return expr
    return transform(expr, lambda node: names.get(node, node))


def parameters_of(call: Evaluate) -> dict[Expr, Formal]:
    """The scalar conditions of a call that are expressions, each with the parameter for it."""
    return {
        value: Formal(name, Kind.SCALAR)
        for name, value in call.conditions
        if not isinstance(value, Number | Null | Given)
        and level_of(value) is not Level.STEP
        and value not in call.args
        and name != "label"
    }
