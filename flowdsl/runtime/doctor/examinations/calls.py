"""Does the network take every call that the objective makes, and return what it should?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.contract import NULL_LABEL
from flowdsl.runtime.doctor.calls import Call
from flowdsl.runtime.doctor.derivatives import side_by_side
from flowdsl.runtime.doctor.finding import Finding, ok
from flowdsl.runtime.doctor.patient import Patient
from flowdsl.runtime.errors import first_line, place_of
from flowdsl.runtime.roles import call_text, callable_roles

QUESTION = "can it be called as the spec says?"
AFTER = ("wrapping",)


def look(patient: Patient) -> Finding:
    """Makes each call as in training."""
    network = patient.copy()
    watched = callable_roles({patient.role.name: network}, patient.loss.signature)
    function = watched[patient.role.name]
    with torch.no_grad():
        for call in patient.calls:
            try:
                result = function(*call.arguments, **call.conditions)
            except DiagnosticError as error:
                return _misfit(patient, error)
            except Exception as error:
                return _broken(patient, function, call, error)
            if not bool(torch.isfinite(side_by_side(result)).all()):
                return Finding(
                    "fail",
                    f"{call_text(patient.role)} returns numbers that are not finite",
                    remedy="look for divisions by a time, or by the gap of two that are equal",
                    place=patient.role.line,
                )
    heads = len(patient.role.heads)
    what = "a tensor of the right shape" if heads < 2 else f"{heads} tensors of the right shapes"
    return ok(f"{call_text(patient.role)} returns {what}")


def _misfit(patient: Patient, error: DiagnosticError) -> Finding:
    """The call does not fit the signature, or the result does not have the right shape."""
    found = error.diagnostics[0]
    facts: Mapping[str, str] = dict(found.facts)
    details = [f"{name}: {facts[name]}" for name in ("called as", "accepts") if name in facts]
    required = facts.get("required", "")
    remedy = f"return {required}" if required else f"{found.hint}; {'; '.join(details)}"
    return Finding("fail", found.message, remedy=remedy, place=patient.role.line)


def _broken(patient: Patient, function: Any, call: Call, error: Exception) -> Finding:
    where = place_of(error)
    remedy = _label_remedy(function, call) or _dtype_remedy(error)
    if not remedy:
        shapes = [f"{a.name} {_shown(x)}" for a, x in zip(
            patient.role.arguments, call.arguments, strict=True)]  # fmt: skip
        shapes += [f"{name} {_shown(x)}" for name, x in call.conditions.items()]
        remedy = f"it is given {', '.join(shapes)}"
    if where:
        remedy += f"; the error is at {where}"
    return Finding(
        "fail",
        f"{call_text(call.role)} fails: {first_line(error)}",
        remedy=remedy,
        place=patient.role.line,
    )


def _label_remedy(function: Any, call: Call) -> str:
    """What to do when the label is what the network cannot take."""
    name = next((c.name for c in call.role.conditions if c.kind == "label"), None)
    if name is None or name not in call.conditions:
        return ""
    for label, remedy in (
        (
            call.conditions[name].clamp(min=0),
            f"{NULL_LABEL} is the label of no class: give it a row of its own, as in "
            f"torch.where({name} < 0, classes, {name})",
        ),
        (
            torch.zeros_like(call.conditions[name]),
            "labels are larger than the network's classes: give their number by --classes",
        ),
    ):
        try:
            function(*call.arguments, **{**call.conditions, name: label})
        except Exception:
            continue
        return remedy
    return ""


def _dtype_remedy(error: Exception) -> str:
    if "dtype" in str(error):
        return "states and times arrive in float32: keep the weights, and what is cast, in float32"
    return ""


def _shown(x: Tensor) -> str:
    return f"{tuple(x.shape)}"
