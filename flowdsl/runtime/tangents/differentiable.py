"""Networks that can be asked for derivatives, each by the cheapest way that it allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from flowdsl.runtime.nets.dit import Network
from flowdsl.runtime.nets.duals import innermost_transform
from flowdsl.runtime.tangents.heads import Asked, only, takes_heads
from flowdsl.runtime.tangents.ledger import NotShared
from flowdsl.runtime.tangents.live import Live
from flowdsl.runtime.tangents.shared import Direction, tangent_of, value_and_derivative
from flowdsl.runtime.tangents.state import Buffers, keep_random_state

#: Modules that hide the operations of a network, or that may not be run twice.
_WRAPPERS = {
    "DataParallel": "in threads",
    "DistributedDataParallel": "under DistributedDataParallel",
    "FSDPModule": "with sharded parameters",
    "FullyShardedDataParallel": "with sharded parameters",
    "OptimizedModule": "compiled",
    "ScriptModule": "scripted",
}

#: Largest relative difference between a shared derivative and `torch.func.jvp` that is rounding.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
_COARSE = 0.1


@dataclass(frozen=True)
class Finding:
    """How a network takes its derivative beside its value.

    `refusal` says why the two cannot share a pass, None where they do. `error` is the relative
    difference from `torch.func.jvp` that was seen when first they did, None where PyTorch has no
    forward derivative of this network to compare with.
    """

    refusal: NotShared | None = None
    error: float | None = None

    @property
    def text(self) -> str:
        """One line for people."""
        if self.refusal is not None:
            return f"two passes: {self.refusal}"
        checked = "not checked" if self.error is None else f"off by {self.error:.0e}"
        return f"one pass, {checked} against torch.func.jvp"


class Differentiable:
    """A network with derivatives. Called, it is the network.

    `finding` is found at the first `shared_jvp`, and holds from then on; give it to a new wrapper
    of the same network to spare it the trial. None is not known yet. `heads` names the results of
    a network that returns several.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        finding: Finding | None = None,
        heads: tuple[str, ...] = (),
    ) -> None:
        self.network = network
        self.finding = finding
        self.heads = heads

    def __call__(self, *arguments: Any, **conditions: Any) -> Any:
        return self.network(*arguments, **conditions)

    def only(
        self, value: tuple[str, ...], derivative: tuple[str, ...] = ()
    ) -> Differentiable | SomeHeads:
        """The network, of which only the values and derivatives of these heads are read: the
        others are None if it can leave them out (`takes_only_heads`), or computed for nothing.
        """
        if len(self.heads) < 2 or not takes_heads(_bare(self.network)):
            return self
        return SomeHeads(self, Asked(self.heads, value, derivative))

    def shared_jvp(
        self, point: Sequence[Any], direction: Direction, /, **conditions: Any
    ) -> tuple[Any, Any]:
        """The network at a point, recorded as always, and its derivative along a direction, which
        carries no gradient.

        `direction` has one entry for each argument in `point`: a tensor of its shape, a number, or
        None for one that stays. One pass for both (`value_and_derivative`) where the network
        allows it and nothing else is at work, else two. Dropout drops the same in both. The first
        call compares the derivative with that of a second pass, and trusts it only if they agree.
        """
        return self._shared(_Call(self.network, point, direction, conditions))

    def _shared(self, call: _Call) -> tuple[Any, Any]:
        if torch.compiler.is_compiling() or _transformed():
            return call.two_passes()
        if self.finding is None:
            return self._try(call)
        if self.finding.refusal is None:
            rewind = keep_random_state(call.inputs)
            try:
                return call.one_pass()
            except NotShared as refusal:
                self.finding = Finding(NotShared(refusal.what, refusal.remedy))
            rewind()
        return call.two_passes()

    def jvp(
        self, point: Sequence[Any], direction: Direction, /, **conditions: Any
    ) -> tuple[Any, Any]:
        """The network at a point and its derivative along a direction, both recorded: for losses
        whose gradient flows through the derivative. Arguments as in `shared_jvp`.
        """
        return _Call(self.network, point, direction, conditions).live()

    def _try(self, call: _Call) -> tuple[Any, Any]:
        refusal = _obstacle(self.network)
        rewind, buffers = keep_random_state(call.inputs), Buffers(self.network)
        if refusal is None:
            try:
                value, derivative = call.one_pass()
            except NotShared as found:
                refusal = NotShared(found.what, found.remedy)
            else:
                self.finding, derivative = call.verified(value, derivative, rewind, buffers)
                return value, derivative
        self.finding = Finding(refusal)
        rewind()
        buffers.restore()
        return call.two_passes()


class SomeHeads:
    """A network asked for some of its heads: called, and derived, as the whole network is."""

    def __init__(self, whole: Differentiable, asked: Asked) -> None:
        self.whole = whole
        self.asked = asked

    def __call__(self, *arguments: Any, **conditions: Any) -> Any:
        asked = self.asked
        network = only(self.whole.network, asked.names, asked.value)
        return asked.spread(asked.value, network(*arguments, **conditions))

    def shared_jvp(
        self, point: Sequence[Any], direction: Direction, /, **conditions: Any
    ) -> tuple[Any, Any]:
        """As of the whole network."""
        call = _Call(self.whole.network, point, direction, conditions, self.asked)
        return self._spread(*self.whole._shared(call))

    def jvp(
        self, point: Sequence[Any], direction: Direction, /, **conditions: Any
    ) -> tuple[Any, Any]:
        """As of the whole network. Values and derivatives come from one pass over all heads of
        which either is read.
        """
        call = _Call(self.whole.network, point, direction, conditions, self.asked)
        value, derivative = call.live()
        return self._spread(value, self.asked.picked(derivative))

    def _spread(self, value: Any, derivative: Any) -> tuple[Any, Any]:
        asked = self.asked
        return asked.spread(asked.both, value), asked.spread(asked.derivative, derivative)


class _Call:
    """A network and what it is called with. Where it is `asked` for some heads, results are those
    alone, and derivatives those of the heads whose derivative is read.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        point: Sequence[Any],
        direction: Direction,
        conditions: dict[str, Any],
        asked: Asked | None = None,
    ) -> None:
        self.network = network
        self.asked = asked
        self.point = point
        self.direction = direction
        self.conditions = conditions

    @property
    def inputs(self) -> tuple[Any, ...]:
        return (*self.point, *self.conditions.values())

    @property
    def called(self) -> Callable[..., Any]:
        """The network, with the results that are asked for."""
        asked = self.asked
        return self.network if asked is None else only(self.network, asked.names, asked.both)

    def one_pass(self) -> tuple[Any, Any]:
        asked = self.asked
        with nullcontext() if asked is None else asked.moving():
            value, derivative = value_and_derivative(
                self.called, self.point, self.direction, **self.conditions
            )
        return value, derivative if asked is None else asked.picked(derivative)

    def two_passes(self) -> tuple[Any, Any]:
        """The recorded pass comes first: autocast would keep weights that it cast unrecorded."""
        if torch.compiler.is_compiling():
            value = self.called(*self.point, **self.conditions)
            with torch.no_grad():
                return value, self._alone(self.network).live()[1]
        rewind, buffers = keep_random_state(self.inputs), Buffers(self.network)
        value = self.called(*self.point, **self.conditions)
        return value, self.derivative(rewind, buffers)

    def _alone(self, network: Callable[..., Any]) -> _Call:
        """The same call, for its derivative only."""
        asked = self.asked
        if asked is not None:
            asked = Asked(asked.names, (), asked.derivative)
        return _Call(network, self.point, self.direction, self.conditions, asked)

    def derivative(self, rewind: Callable[[], None], buffers: Buffers) -> Any:
        """That of the pass that was just made, for which these keep what it found."""
        advance = keep_random_state(self.inputs)
        rewind()
        try:
            with torch.no_grad():
                return self._alone(buffers.replayed()).live()[1]
        finally:
            advance()

    def live(self) -> tuple[Any, Any]:
        """Value and derivative by forward mode, with the rules of `Live`; the bundled networks
        have rules of their own.
        """
        moving = [(i, along) for i, along in enumerate(self.direction) if along is not None]
        # cloned: torch.compile wants values and tangents to be laid out alike
        values = [self.point[i].clone(memory_format=torch.contiguous_format) for i, _ in moving]
        tangents = [tangent_of(x, along) for x, (_, along) in zip(values, moving, strict=True)]

        def along(*moved: Tensor) -> Any:
            full = list(self.point)
            for (i, _), x in zip(moving, moved, strict=True):
                full[i] = x
            with nullcontext() if isinstance(_bare(self.network), Network) else Live():
                return self.called(*full, **self.conditions)

        value, derivative = torch.func.jvp(along, tuple(values), tuple(tangents))[:2]
        return value, derivative

    def verified(
        self, value: Any, derivative: Any, rewind: Callable[[], None], buffers: Buffers
    ) -> tuple[Finding, Any]:
        """Compares a shared derivative with that of a pass of its own; returns the one to trust."""
        try:
            reference = self.derivative(rewind, buffers)
        except (NotImplementedError, RuntimeError):  # no forward derivative to compare with
            return Finding(), derivative
        pairs = zip(tree_leaves(derivative), tree_leaves(reference), strict=True)
        error = _norm([a.double() - b.double() for a, b in pairs])
        size, around = _norm(tree_leaves(reference)), _norm(tree_leaves(value))
        ratio = error / max(size, torch.finfo(torch.float32).tiny)
        relative, noise = self._tolerance(tree_leaves(value))
        if error <= relative * size + noise * around:
            return Finding(error=ratio), derivative
        what = f"the derivative taken beside the pass was off by {ratio:.0e}"
        return Finding(NotShared(what, "please report the network"), ratio), reference

    def _tolerance(self, outputs: Sequence[Tensor]) -> tuple[float, float]:
        """What passes as rounding: a share of the derivative, and one of the value."""
        tensors = [x for x in (*self.inputs, *outputs) if isinstance(x, Tensor)]
        kinds = {x.dtype for x in tensors if x.is_floating_point()}
        if any(torch.is_autocast_enabled(x.device.type) for x in tensors):
            kinds.add(torch.bfloat16)
        coarsest = max(kinds, key=lambda kind: torch.finfo(kind).eps, default=torch.bfloat16)
        return _TOLERANCE.get(coarsest, _COARSE), 1e3 * torch.finfo(coarsest).eps


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(sum(float(x.detach().double().square().sum()) for x in tensors) ** 0.5)


def _transformed() -> bool:
    """Whether anything else transforms what runs here."""
    return (
        innermost_transform() != "none"
        or forward_ad._current_level >= 0
        or torch.is_inference_mode_enabled()
    )


def _bare(network: Callable[..., Any]) -> Callable[..., Any]:
    """The network inside a function around it that says so."""
    found: Callable[..., Any] = getattr(network, "__wrapped__", network)
    return found


def _obstacle(network: Callable[..., Any]) -> NotShared | None:
    """What is known beforehand to hide the operations of a network."""
    bare = _bare(network)
    for module in bare.modules() if isinstance(bare, nn.Module) else ():
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        kinds = {"OptimizedModule"} if compiled else {k.__name__ for k in type(module).__mro__}
        for kind in kinds & _WRAPPERS.keys():
            return NotShared(f"the network runs {_WRAPPERS[kind]}", "wrap the whole loss instead")
    return None
