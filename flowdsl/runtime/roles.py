"""The networks a caller passes, matched with the roles a spec names, and watched while the loss
calls them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.runtime.contract import NetworkSignature, ObjectiveSignature
from flowdsl.runtime.tangents import Differentiable, Direction, Finding, SomeHeads

Network = nn.Module | Callable[..., Any]
Networks = Network | Mapping[str, Network]


def as_roles(
    network: Networks,
    wanted: Sequence[NetworkSignature],
    objective: str,
    extra: bool = False,
) -> dict[str, Network]:
    """The networks by role. A single network stands for the only wanted role; `extra` allows
    further roles.
    """
    if isinstance(network, nn.ModuleDict):
        network = dict(network.items())
    if not isinstance(network, Mapping):
        if len(wanted) != 1:
            names = ", ".join(f'"{n.name}": …' for n in wanted)
            raise fail(
                "networks",
                f"{objective} has {len(wanted)} networks, and one was given",
                facts=[("networks", ", ".join(n.name for n in wanted))],
                hint=f"pass a mapping {{{names}}}",
            )
        return {wanted[0].name: network}
    known = [n.name for n in wanted]
    for role in wanted:
        if role.name not in network:
            close = did_you_mean(role.name, [n for n in network if n not in known])
            raise fail(
                "networks",
                f'the network "{role.name}" of {objective} is missing',
                facts=[("spec", role.line)] if role.line else (),
                hint=close or f"given: {', '.join(map(str, network)) or 'nothing'}",
            )
    for name in network:
        if name not in known and not extra:
            raise fail(
                "networks",
                f'{objective} has no network "{name}"',
                facts=[("networks", ", ".join(known))],
                hint=did_you_mean(str(name), known),
            )
    return dict(network)


class Findings:
    """How networks take their derivatives, for as long as the networks live."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Network, Finding] = WeakKeyDictionary()

    def of(self, network: Network) -> Finding | None:
        """What is known of a network; None before its first derivative beside a value."""
        try:
            return self._known.get(network)
        except TypeError:  # cannot be referred to weakly
            return None

    def keep(self, network: Network, finding: Finding | None) -> None:
        """Remembers a finding. Without one for it, a network is tried anew each time."""
        if finding is not None and self.of(network) is not finding:
            with suppress(TypeError):
                self._known[network] = finding


def callable_roles(
    roles: Mapping[str, Network], signature: ObjectiveSignature, findings: Findings | None = None
) -> dict[str, Callable[..., Any]]:
    """The networks as the emitted functions call them: parameters of frozen ones detached, results
    looked at, derivatives taken in the cheapest way that the network allows.
    """
    described = {n.name: n for n in signature.networks}
    found: dict[str, Callable[..., Any]] = {}
    for name, network in roles.items():
        role = described.get(name)
        if role is None:
            continue
        function: Callable[..., Any] = network
        if (role.frozen or role.average_of is not None) and _learns(network):
            function = _Detached(network)
        known = None
        # not in a graph: nothing asks there, and its guards would hang on all networks ever seen
        if findings is not None and not torch.compiler.is_compiling():
            known = findings.of(network)
        engine = Differentiable(function, known, tuple(head.name for head in role.heads))
        found[name] = engine if torch.compiler.is_compiling() else _Watched(engine, role)
    return found


def keep_findings(
    called: Mapping[str, Callable[..., Any]], roles: Mapping[str, Network], findings: Findings
) -> None:
    """Remembers what was found out about the networks while they were called."""
    for name, function in called.items():
        if isinstance(function, _Watched):
            findings.keep(roles[name], function.network.finding)


def _learns(network: Network) -> bool:
    return isinstance(network, nn.Module) and any(p.requires_grad for p in network.parameters())


class _Detached:
    """A module whose parameters receive no gradient, while its inputs do."""

    def __init__(self, network: Network) -> None:
        assert isinstance(network, nn.Module)
        self.network = self.__wrapped__ = network

    def __call__(self, *arguments: Any, **conditions: Any) -> Any:
        state = {name: p.detach() for name, p in self.network.named_parameters()}
        return torch.func.functional_call(self.network, state, arguments, conditions)


class _Watched:
    """A network whose calls are checked against its signature. Where it was asked for some heads
    only, the others may be missing.
    """

    def __init__(
        self,
        network: Differentiable,
        role: NetworkSignature,
        part: Differentiable | SomeHeads | None = None,
    ) -> None:
        self.network = network
        self.role = role
        self.part = network if part is None else part

    def only(self, value: tuple[str, ...], derivative: tuple[str, ...] = ()) -> _Watched:
        """The network, of which only the values and derivatives of these heads are read."""
        return _Watched(self.network, self.role, self.network.only(value, derivative))

    def __call__(self, *arguments: Any, **conditions: Any) -> Any:
        with self._explained(arguments, conditions):
            result = self.part(*arguments, **conditions)
        self._check(result, arguments)
        return result

    def jvp(self, point: Sequence[Any], direction: Direction, /, **conditions: Any) -> Any:
        """Value and derivative, both recorded."""
        with self._explained(point, conditions):
            found = self.part.jvp(point, direction, **conditions)
        self._check(found[0], point)
        return found

    def shared_jvp(self, point: Sequence[Any], direction: Direction, /, **conditions: Any) -> Any:
        """The value, recorded, and beside it the derivative, without gradient."""
        with self._explained(point, conditions):
            found = self.part.shared_jvp(point, direction, **conditions)
        self._check(found[0], point)
        return found

    @contextmanager
    def _explained(self, arguments: Any, conditions: Any) -> Iterator[None]:
        try:
            yield
        except TypeError as error:
            self._explain(error, arguments, conditions)
            raise

    def _explain(self, error: TypeError, arguments: Any, conditions: Any) -> None:
        """Say it in the spec's words, when the call does not fit the network's `forward`."""
        function = self.network.network
        function = function.network if isinstance(function, _Detached) else function
        called = function.forward if isinstance(function, nn.Module) else function
        try:
            accepted = inspect.signature(called)
        except (TypeError, ValueError):
            return
        try:
            accepted.bind(*arguments, **conditions)
        except TypeError as misfit:
            raise fail(
                "networks",
                f'the network "{self.role.name}" cannot be called as the spec says: {misfit}',
                facts=[
                    *([("spec", self.role.line)] if self.role.line else []),
                    ("called as", call_text(self.role)),
                    ("accepts", f"{getattr(called, '__name__', 'network')}{accepted}"),
                ],
                hint="arguments come in the order of the spec, conditions by keyword",
            ) from error

    def _check(self, result: Any, arguments: Any) -> None:
        heads = self.role.heads
        several = len(heads) > 1
        if several and (not isinstance(result, tuple | list) or len(result) != len(heads)):
            given = f"{len(result)} values" if isinstance(result, tuple | list) else "one value"
            raise self._wrong(f"returns {given}", f"a tuple ({', '.join(h.name for h in heads)})")
        if not several and isinstance(result, tuple | list):
            raise self._wrong(f"returns a {type(result).__name__}", "one tensor")
        states = [
            x
            for x, declared in zip(arguments, self.role.arguments, strict=False)
            if declared.kind == "state"
        ]
        for head, value in zip(heads, result if several else (result,), strict=True):
            if head.kind == "features" or (value is None and self.part is not self.network):
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point():
                found = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
                raise self._wrong(f"returns {found} for {head.name}", "a floating-point tensor")
            batch = next((x.shape[0] for x in arguments if isinstance(x, Tensor) and x.ndim), None)
            expected = states[0].shape if head.kind == "state" and states else None
            if head.kind != "state" and batch is not None:
                expected = torch.Size([batch])
            if expected is not None and value.shape != expected:
                raise self._wrong(
                    f"returns shape {tuple(value.shape)} for {head.name}",
                    f"shape {tuple(expected)}, "
                    + ("that of its state" if head.kind == "state" else "one number per sample"),
                )

    def _wrong(self, found: str, required: str) -> Exception:
        return fail(
            "networks",
            f'the network "{self.role.name}" {found}',
            facts=[
                ("required", required),
                *([("spec", self.role.line)] if self.role.line else []),
            ],
        )


def call_text(role: NetworkSignature) -> str:
    """How a network is called: `u(z, t, r, label=…)`."""
    given = [a.name for a in role.arguments] + [f"{c.name}=…" for c in role.conditions]
    return f"{role.name}({', '.join(given)})"
