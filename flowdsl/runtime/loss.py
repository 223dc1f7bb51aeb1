"""A compiled objective, ready to be called: `Loss`, and `LossModule`, which binds it to its
networks.

Nothing here knows any objective by name; the functions come from emitted source, and what they need
stands in the `ObjectiveSignature`. Mistakes at this border (a missing network, a label of the wrong
shape) are told in the words of the spec.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.runtime.checks import (
    check_data,
    check_draws,
    check_label,
    check_terms,
    check_training,
    check_vector,
)
from flowdsl.runtime.contract import ObjectiveSignature
from flowdsl.runtime.roles import (
    Findings,
    Network,
    Networks,
    as_roles,
    callable_roles,
    keep_findings,
)
from flowdsl.runtime.source import functions
from flowdsl.runtime.tangents import Finding

Metrics = dict[str, Tensor]

#: The functions of an emitted file that ask a network, and what they need it to learn.
_LEARNT = {
    "jump": "flow map to jump with",
    "velocity": "velocity",
    "denoised": "data or noise to denoise with",
    "inner": "inner flow map",
}


class Loss:
    """A loss as a pure function of networks, data and draws.

    `source` is the emitted Python text that runs; `signature` says which networks, draws and terms
    it has.
    """

    def __init__(
        self,
        source: str,
        signature: ObjectiveSignature,
        functions: Mapping[str, Callable[..., Any]],
    ) -> None:
        self.source = source
        self.signature = signature
        self._functions = dict(functions)
        self._findings = Findings()

    def __reduce__(self) -> tuple[object, ...]:
        return _from_source, (self.source, self.signature)

    def __repr__(self) -> str:
        networks = ", ".join(n.name for n in self.signature.networks)
        terms = ", ".join(self.signature.terms)
        return f"Loss({self.signature.name}: networks {networks}; terms {terms})"

    def draw(
        self,
        data: Tensor,
        *,
        generator: torch.Generator | None = None,
        progress: float = 0.0,
        step: int = 0,
        steps: int = 1,
    ) -> dict[str, Tensor]:
        """Every random number of the loss for a batch, by its name in the spec, on the device of
        `data`.

        Times and scalars are (batch,) in float32 (float64 for float64 data), rows are (batch,)
        booleans, noise has the shape of `data`. Raises DiagnosticError for data that are not
        floating-point states (batch, ...).
        """
        if not torch.compiler.is_compiling():
            check_data(data)
            check_training(progress, step, steps)
        drawn: dict[str, Tensor] = self._functions["draw"](data, generator, progress, step, steps)
        return drawn

    def __call__(
        self,
        network: Networks,
        data: Tensor,
        *,
        draws: Mapping[str, Tensor] | None = None,
        label: Tensor | None = None,
        progress: float = 0.0,
        step: int = 0,
        steps: int = 1,
        terms: Sequence[str] | None = None,
    ) -> tuple[Tensor, Metrics]:
        """The loss of a batch and its terms.

        `network` is a module or callable, or a mapping from the spec's names to them where it names
        several. `data` is (batch, ...), `label` (batch,) of integers with -1 for no class; None is
        no class anywhere. `terms` picks the terms to add up; None is all. Returns a scalar and
        detached scalars by term. Raises DiagnosticError.
        """
        roles = as_roles(network, self.signature.networks, self.signature.name)
        if not torch.compiler.is_compiling():
            check_data(data)
            check_training(progress, step, steps)
            check_label(label, data)
            check_terms(terms, self.signature)
            if draws is not None:
                check_draws(draws, data, self.signature)
        if draws is None:
            draws = self._functions["draw"](data, None, progress, step, steps)
        called = callable_roles(roles, self.signature, self._findings)
        value, metrics = self._functions["loss"](
            called, data, draws, label, progress, step, steps, terms
        )
        if not torch.compiler.is_compiling():
            keep_findings(called, roles, self._findings)
        return value, metrics

    def finding(self, network: Network) -> Finding | None:
        """How a network was found to take a derivative beside its value: in one pass, or in two
        and why. None before its first one.
        """
        return self._findings.of(network)

    def bind(self, network: Networks) -> LossModule:
        """The loss as a module that owns its networks: the thing to wrap in DDP, FSDP2 or
        torch.compile.
        """
        return LossModule(self, network)

    def jump(
        self,
        network: Networks,
        z: Tensor,
        start: Tensor | float,
        end: Tensor | float,
        *,
        label: Tensor | None = None,
        **conditions: float | Tensor,
    ) -> Tensor:
        """The learned flow map: the states `z` (batch, ...) carried from time `start` to time `end`
        ((batch,) or a number). Raises DiagnosticError where the objective learns no map.
        """
        return self._sample("jump", network, z, (start, end), label, conditions)

    def velocity(
        self,
        network: Networks,
        z: Tensor,
        time: Tensor | float,
        *,
        label: Tensor | None = None,
        **conditions: float | Tensor,
    ) -> Tensor:
        """The learned marginal velocity dz/dt at states `z` (batch, ...) and `time` ((batch,) or a
        number).
        """
        return self._sample("velocity", network, z, (time,), label, conditions)

    def denoised(
        self,
        network: Networks,
        z: Tensor,
        time: Tensor | float,
        *,
        label: Tensor | None = None,
        **conditions: float | Tensor,
    ) -> Tensor:
        """The mean of the data, given that the path is at states `z` (batch, ...) at `time`.

        Raises DiagnosticError where the objective learns a map, or the velocity itself.
        """
        return self._sample("denoised", network, z, (time,), label, conditions)

    def inner(
        self,
        network: Networks,
        y: Tensor,
        z: Tensor,
        start: Tensor | float,
        end: Tensor | float,
        time: Tensor | float,
        *,
        label: Tensor | None = None,
        **conditions: float | Tensor,
    ) -> Tensor:
        """The inner flow map under states `z` (batch, ...) at `time`: states `y` of the inner path
        carried from `start` to `end`. Raises DiagnosticError where the objective learns none.
        """
        return self._sample("inner", network, y, (start, end, time), label, conditions, (z,))

    def outcome(self, y: Tensor, z: Tensor, time: Tensor | float) -> Tensor:
        """The data that the end `y` of the inner flow and the state `z` at `time` imply."""
        function = self._functions.get("outcome")
        if function is None:
            raise fail("sample", f"{self.signature.name} learns no inner flow map")
        data: Tensor = function({}, y, z, check_vector(time, z, "a time"))
        return data

    def path(self, data: Tensor, noise: Tensor, time: Tensor | float) -> Tensor:
        """The state of the path between `data` and `noise` (batch, ...) at `time` ((batch,) or a
        number).
        """
        function = self._functions.get("path")
        if function is None:
            raise fail("sample", f"{self.signature.name} has no path that two ends determine")
        if not torch.compiler.is_compiling():
            check_data(data)
        state: Tensor = function(data, noise, check_vector(time, data, "a time"))
        return state

    def clock(self, progress: float) -> float | None:
        """The time at which a sampler stands at `progress` (0 to 1), where the spec's `sample` says
        it; None where steps are even.
        """
        function = self._functions.get("clock")
        return None if function is None else float(function(progress))

    def decays(self, *, progress: float = 0.0, step: int = 0, steps: int = 1) -> dict[str, float]:
        """The decay of every average at a moment of training, by the average's name."""
        found = {n.name: n.decay for n in self.signature.networks if n.average_of is not None}
        changing = self._functions.get("decays")
        moving = {} if changing is None else changing(progress, step, steps)
        return {name: float(moving.get(name, decay or 0.0)) for name, decay in found.items()}

    def _sample(
        self,
        name: str,
        network: Networks,
        z: Tensor,
        times: tuple[Tensor | float, ...],
        label: Tensor | None,
        conditions: Mapping[str, float | Tensor],
        more: tuple[Tensor, ...] = (),
    ) -> Tensor:
        function = self._functions.get(name)
        if function is None:
            others = [other for other in _LEARNT if other in self._functions]
            hint = f"use {' or '.join(f'`{other}`' for other in others)}" if others else ""
            raise fail("sample", f"{self.signature.name} learns no {_LEARNT[name]}", hint=hint)
        learned = as_roles(network, self.signature.learned, self.signature.name, extra=True)
        if not torch.compiler.is_compiling():
            check_data(z, "the state z")
            check_label(label, z)
        known = [c.name for c in self.signature.conditions]
        for given in conditions:
            if given not in known:
                raise fail(
                    "sample",
                    f'{self.signature.name} has no condition "{given}"',
                    facts=[("conditions", ", ".join(known) or "none")],
                    hint=did_you_mean(given, known),
                )
        vectors = [check_vector(time, z, "a time") for time in times]
        taken = function.__code__.co_varnames[: function.__code__.co_argcount]
        used = {key: value for key, value in conditions.items() if key in taken}
        roles = callable_roles(learned, self.signature)
        result: Tensor = function(roles, z, *more, *vectors, label, **used)
        return result


def _from_source(source: str, signature: ObjectiveSignature) -> Loss:
    return Loss(source, signature, functions(source, signature.name))


class LossModule(nn.Module):
    """A loss bound to its networks: `forward(data, …) -> (value, metrics)`, with the derivative
    taken inside.

    This is the layout in which DistributedDataParallel, FSDP2, torch.compile and autocast all give
    right gradients: wrap this module, never the network. Averages (`slow = ema(F, …)`) that are not
    given are copied from their network; they and frozen networks do not require gradients.
    """

    def __init__(self, loss: Loss, network: Networks) -> None:
        super().__init__()
        self.loss = loss
        signature = loss.signature
        needed = [n for n in signature.networks if n.average_of is None]
        roles = as_roles(network, needed, signature.name, extra=True)
        for role in signature.networks:
            if role.average_of is not None and role.name not in roles:
                roles[role.name] = copy.deepcopy(roles[role.average_of])
        as_roles(roles, signature.networks, signature.name)
        self.networks = nn.ModuleDict({name: _as_module(roles[name]) for name in roles})
        for role in signature.networks:
            if role.frozen or role.average_of is not None:
                self.networks[role.name].requires_grad_(False)

    def forward(
        self,
        data: Tensor,
        *,
        label: Tensor | None = None,
        draws: Mapping[str, Tensor] | None = None,
        progress: float = 0.0,
        step: int = 0,
        steps: int = 1,
        terms: Sequence[str] | None = None,
    ) -> tuple[Tensor, Metrics]:
        """The loss of a batch and its terms; arguments as in `Loss`."""
        roles = dict(self.networks.items())
        return self.loss(
            roles, data, draws=draws, label=label, progress=progress, step=step, steps=steps,
            terms=terms,
        )  # fmt: skip

    @torch.no_grad()
    def update_averages(self, *, progress: float = 0.0, step: int = 0, steps: int = 1) -> None:
        """One step of every average, parameters by its decay, buffers copied. Call it after each
        optimiser step, with the moment of training where decays depend on it.
        """
        decays = self.loss.decays(progress=progress, step=step, steps=steps)
        for role in self.loss.signature.networks:
            if role.average_of is None:
                continue
            average, source = self.networks[role.name], self.networks[role.average_of]
            decay = decays[role.name]
            for slow, fast in zip(average.parameters(), source.parameters(), strict=True):
                slow.lerp_(fast.to(slow.dtype), 1 - decay)
            for old, new in zip(average.buffers(), source.buffers(), strict=True):
                old.copy_(new)


class _Function(nn.Module):
    """A plain callable in the place of a network."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any, **conditions: Any) -> Any:
        return self.function(*arguments, **conditions)


def _as_module(network: Network) -> nn.Module:
    return network if isinstance(network, nn.Module) else _Function(network)
