"""Are the arguments taken in the order of the spec, and does the result depend on each?

Two times in the wrong order have the right shapes: nothing fails, and something else is learnt.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from flowdsl.runtime.doctor.calls import Call
from flowdsl.runtime.doctor.derivatives import value
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient
from flowdsl.runtime.roles import call_text

QUESTION = "are its arguments in the order of the spec, and used?"
AFTER = ("calls",)


def look(patient: Patient) -> Finding:
    """Compares names where they are the spec's, and moves one argument after the other."""
    wrong = _wrong_order(patient)
    if wrong is not None:
        return wrong
    call = max(patient.evaluations, key=lambda c: c.rows)
    ignored = _ignored(patient, call)
    if ignored:
        return Finding(
            "note",
            f"the result does not depend on {' and '.join(ignored)}",
            remedy="it is legitimate to leave something out; make sure that it is meant",
            place=patient.role.line,
        )
    return ok(f"{call_text(patient.role)}: no name contradicts the order, and each one matters")


def _wrong_order(patient: Patient) -> Finding | None:
    """By names: a parameter of `forward` that has the name of another argument of the spec."""
    wanted = [a.name for a in patient.role.arguments]
    try:
        parameters = inspect.signature(patient.network.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [p.name for p in parameters if p.kind in positional][: len(wanted)]
    for given, name in zip(wanted, taken, strict=False):
        if name != given and name in wanted:
            return Finding(
                "fail",
                f"its forward takes ({', '.join(taken)}), and is called with ({', '.join(wanted)})",
                remedy=f"arguments are passed by position: {given} would arrive as {name}. Take "
                "them in the order of the spec, or write the spec in the network's order",
                place=patient.role.line,
            )
    return None


def _ignored(patient: Patient, call: Call) -> list[str]:
    """The inputs that change nothing."""
    network = patient.settled
    found = []
    with torch.no_grad():
        before = value(network, call)
        for i, argument in enumerate(patient.role.arguments):
            moved = list(call.arguments)
            moved[i] = _other(moved[i], patient)
            changed = Call(call.role, tuple(moved), call.conditions)
            if _same(value(network, changed), before):
                found.append(argument.name)
        for name, x in call.conditions.items():
            changed = Call(call.role, call.arguments, {**call.conditions, name: _other(x, patient)})
            if _same(value(network, changed), before):
                found.append(name)
    return found


def _other(x: Tensor, patient: Patient) -> Tensor:
    """Something else of the same kind."""
    if not x.is_floating_point():
        return torch.where(x < 0, 0, -1)
    if x.ndim > 1:
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return 0.9 * x + 0.07


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a, b))
