"""Can the network be differentiated forward? Where not: which operations stand in the way?"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from flowdsl.runtime.doctor.calls import Call
from flowdsl.runtime.doctor.derivatives import forward_derivative
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient
from flowdsl.runtime.doctor.remedies import FALLBACK, known_remedy
from flowdsl.runtime.errors import first_line, place_of

QUESTION = "can it be differentiated forward?"
AFTER = ("calls",)

_NAMED = re.compile(r"forward AD with (\S+)")


def look(patient: Patient) -> Finding | None:
    """Takes each derivative of the objective, in training mode, with gradients where they flow."""
    if not patient.derivatives:
        return ok("this objective takes no derivative")
    network = patient.awake()
    for call in patient.derivatives:
        try:
            with torch.set_grad_enabled(call.gradient):
                derivative = forward_derivative(network, call)
        except Exception as error:
            return _broken(patient, network, call, error)
        if not bool(torch.isfinite(derivative).all()):
            return Finding(
                "fail",
                f"{call.text} is not finite",
                remedy="look for roots and divisions at times that are equal, or at 0 and 1",
                place=patient.role.line,
            )
    return ok(f"{' and '.join(dict.fromkeys(c.text for c in patient.derivatives))} can be taken")


def _broken(patient: Patient, network: nn.Module, call: Call, error: Exception) -> Finding:
    said = f"{type(error).__name__}: {error}"
    named = _NAMED.findall(said)
    if named:
        names = sorted({named[0].removeprefix("aten::"), *lacking(network, call)})
        sentence = f"{call.text}: no forward derivative for {', '.join(names)}"
        said = " ".join(names)
    else:
        sentence = f"{call.text} fails: {first_line(error)}"
    remedy = known_remedy(said, f"replace it by operations that have one; {FALLBACK}")
    where = place_of(error)
    if where:
        remedy += f"; it is at {where}"
    return Finding("fail", sentence, remedy=remedy, place=patient.role.line)


def lacking(network: nn.Module, call: Call) -> set[str]:
    """The operations of an evaluation that have no forward derivative, by name. Not attention: a
    loss takes it by a rule of its own.
    """
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        network(*call.arguments, **call.conditions)
    return {
        name
        for name, example in recorder.examples.items()
        if not name.startswith("_scaled_dot_product") and _lacks(*example)
    }


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps one example of each operation that runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.examples: dict[str, tuple[Any, Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name not in self.examples:
            self.examples[name] = (func, tree_map(_kept, args), tree_map(_kept, kwargs))
        return func(*args, **kwargs)


def _kept(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else x


def _lacks(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation refuses a tangent in the place of its first tensors."""

    def dual(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            return forward_ad.make_dual(x, torch.ones_like(x))  # type: ignore[no-untyped-call]
        return x

    with torch.no_grad(), forward_ad.dual_level():
        try:
            func(*tree_map(dual, args), **tree_map(dual, kwargs))
        except NotImplementedError as error:
            return bool(_NAMED.search(str(error)))
        except Exception:
            return False
    return False
