"""A pass that is recorded as always, with the tangents of its values computed beside it.

The mode sits below autograd. It sees every operation on plain tensors, whatever library, custom
`autograd.Function` or in-place trick they come from, runs it unchanged, and computes the tangent of
its result. Nothing that happens here is recorded: the reverse graph, the values and the gradients
are those of the pass without it, bit by bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _pop_mode_temporarily
from torch.utils._pytree import tree_iter

from flowdsl.runtime.nets.duals import TangentMode, is_still
from flowdsl.runtime.tangents.generic import check, derive
from flowdsl.runtime.tangents.inplace import FORGETFUL, functional, kind_of
from flowdsl.runtime.tangents.ledger import Ledger, NotShared
from flowdsl.runtime.tangents.reach import unreachable
from flowdsl.runtime.tangents.rules import RULES
from flowdsl.runtime.tangents.rules.registry import Tangent, fit

_aten = torch.ops.aten

_Args = tuple[Any, ...]
_Named = Mapping[str, Any]

_EMPTY = frozenset(
    (
        _aten.empty.memory_format,
        _aten.empty_strided.default,
        _aten.empty_like.default,
        _aten.new_empty.default,
        _aten.new_empty_strided.default,
    )
)


class Beside(TangentMode):
    """Computes tangents beside the operations that run inside it; `ledger` holds them.

    Raises NotShared out of the operation that it has no derivative for, and keeps it in `refusal`:
    a network may catch what passes through it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        unreachable()  # finds out how to tell, which it must outside of the mode
        self.ledger = Ledger()
        self.refusal: NotShared | None = None
        self._aliases: dict[int, weakref.ref[Tensor]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the guard costs as much as a small operation; the pass is guarded instead

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: _Args = (), kwargs: _Named | None = None
    ) -> Any:
        if is_still():
            return func(*args, **(kwargs or {}))
        try:
            if func is _aten.detach.default:
                return self._detach(args[0])
            if types and any(t is not Tensor for t in types):
                raise NotShared(f"a tensor of type {types[0].__name__}", "use plain tensors")
            return self._run(func, args, kwargs or {})
        except NotShared as refusal:
            self.refusal = refusal
            raise

    def paired(
        self,
        value: Callable[[], tuple[Tensor, ...]],
        rule: Callable[..., Tensor],
        *inputs: Tensor,
    ) -> Tensor:
        with _pop_mode_temporarily():
            results = value()
            if is_still():
                return results[0]
            try:
                tangents = [self.ledger.find(x) for x in inputs]
                if all(t is None for t in tangents):
                    return results[0]
                self._check_aliases(inputs)
            except NotShared as refusal:
                self.refusal = refusal
                raise
            with torch.no_grad():
                self.ledger.note(results[0], fit(rule(results, *tangents), results[0]))
        return results[0]

    def _run(self, func: OpOverload, args: _Args, kwargs: _Named) -> Any:
        entry = RULES.get(func)
        if entry is None:
            return self._run_without_rule(func, args, kwargs)
        tensors, rule = entry
        inputs = args[:tensors] if tensors >= 0 else args[0]
        find = self.ledger.peek if func.is_view else self.ledger.find
        moving, tangents = False, []
        for x in inputs:
            tangent = find(x)
            tangents.append(tangent)
            moving = moving or tangent is not None
        out = func(*args, **kwargs)
        if moving:
            self._check_aliases(inputs)
            result = rule(args, kwargs, out, *tangents)
            if result is NotImplemented:
                result = derive(find, func, args, kwargs, out)
            self._note(out, result)
        elif func in _EMPTY:
            self.ledger.blank(out)
        return out

    def _run_without_rule(self, func: OpOverload, args: _Args, kwargs: _Named) -> Any:
        kind = kind_of(func)
        if kind == "in place":
            return self._run_in_place(func, args, kwargs)
        if kind == "other writes":
            return self._run_writing(func, args, kwargs)
        find = self.ledger.peek if func.is_view else self.ledger.find
        moving = [x for x in tree_iter((args, kwargs)) if find(x) is not None]
        out = func(*args, **kwargs)
        if moving:
            self._check_aliases(moving)
            self._note(out, derive(find, func, args, kwargs, out))
        elif func in _EMPTY:
            self.ledger.blank(out)
        return out

    def _run_in_place(self, func: OpOverload, args: _Args, kwargs: _Named) -> Any:
        """`args[0]` gets a new value, and is the result."""
        x, ledger = args[0], self.ledger
        own = ledger.peek(x)
        others = [a for a in tree_iter((args[1:], kwargs)) if ledger.find(a) is not None]
        if not others and not ledger.moves(x):
            out = func(*args, **kwargs)
            ledger.write(x, None)
            return out
        self._check_aliases((x, *others))
        check(func)
        if torch.Tag.inplace_view in func.tags:
            return self._run_reshaping(func, args, kwargs, own)
        plain = functional(func)
        entry = RULES.get(plain)
        known = {id(a): ledger.find(a) for a in others}
        known[id(x)] = own
        before = list(args)
        for i, a in enumerate(args if func not in FORGETFUL else ()):
            if isinstance(a, Tensor) and ledger.overlap(a, x):
                before[i] = a.clone()
                known[id(before[i])] = known.get(id(a))

        def find(a: Any) -> Tensor | None:
            return known.get(id(a))

        tangent: Tangent = NotImplemented
        if entry is None:
            tangent = derive(find, plain, tuple(before), kwargs, x)
        out = func(*args, **kwargs)
        if entry is not None:
            tangents = [find(a) for a in before[: entry[0]]]
            moved = any(t is not None for t in tangents)
            tangent = entry[1](tuple(before), kwargs, x, *tangents) if moved else None
        if tangent is NotImplemented:
            raise NotShared(f"{func} with these arguments", "write out of place")
        real = x.is_floating_point() or x.is_complex()
        ledger.write(x, tangent if real else None)  # type: ignore[arg-type]
        return out

    def _run_reshaping(
        self, func: OpOverload, args: _Args, kwargs: _Named, own: Tensor | None
    ) -> Any:
        """`args[0]` gets another shape."""
        plain = functional(func)
        tangent = None if own is None else plain(own, *args[1:], **kwargs)
        out = func(*args, **kwargs)
        self._note(args[0], tangent)
        return out

    def _run_writing(self, func: OpOverload, args: _Args, kwargs: _Named) -> Any:
        """Writes to some of its arguments, which ones depends."""
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        if any(self.ledger.moves(x) for x in tensors):
            raise NotShared(f"{func} writes to a tensor that it is given", "write out of place")
        out = func(*args, **kwargs)
        for x in tensors:
            self.ledger.write(x, None)
        return out

    def _detach(self, x: Tensor) -> Tensor:
        """A network that detaches a value makes it a constant; autograd, which detaches what it
        saves and what it hands to `Tensor.data`, does so without passing its own layer.
        """
        if not self.ledger.moves(x):
            return _aten.detach.default(x)  # type: ignore[no-any-return]
        if torch._C._dispatch_tls_is_dispatch_key_excluded(
            torch._C.DispatchKey.AutogradFunctionality
        ):
            self.ledger.find(x)
            constant = x.clone()  # a place in memory of its own, which has no tangent
            self.ledger.pin(x)
            self.ledger.pin(constant)
            return constant
        alias: Tensor = _aten.detach.default(x)
        if len(self._aliases) > 256:
            self._aliases = {i: r for i, r in self._aliases.items() if r() is not None}
        self._aliases[id(alias)] = weakref.ref(alias)
        return alias

    def _check_aliases(self, inputs: Any) -> None:
        """Aliases that autograd keeps for itself never come back, so this is `Tensor.data`."""
        for x in inputs if self._aliases else ():
            if id(x) in self._aliases and self._aliases[id(x)]() is x:
                raise NotShared("`Tensor.data` of a value", "use `detach()`")

    def _note(self, out: Any, tangent: Tangent) -> None:
        if tangent is None:
            return
        if isinstance(tangent, Tensor):
            self.ledger.note(out, tangent)
            return
        for x, t in zip(out, tangent, strict=True):
            if t is not None:
                self.ledger.note(x, t)
