"""Runs the examinations: those in the folder `examinations`, each after those that it needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from flowdsl.runtime.discovery import member, members
from flowdsl.runtime.doctor import examinations
from flowdsl.runtime.doctor.calls import observed_calls
from flowdsl.runtime.doctor.finding import Finding, Report
from flowdsl.runtime.doctor.patient import DoctorOptions, Patient, role_of
from flowdsl.runtime.loss import Loss


@dataclass(frozen=True)
class Examination:
    """One examination: the question it answers, those that must not fail before it, and how.

    `look` returns None where there is nothing to examine.
    """

    name: str
    question: str
    after: tuple[str, ...]
    look: Callable[[Patient], Finding | None]


def all_examinations() -> tuple[Examination, ...]:
    """Every examination of the folder, each behind those that it needs, then by name."""
    found = {}
    for name in members(examinations):
        module = member(examinations, name, "examination")
        found[name] = Examination(name, module.QUESTION, tuple(module.AFTER), module.look)

    def depth(name: str) -> int:
        return 1 + max((depth(before) for before in found[name].after), default=0)

    return tuple(sorted(found.values(), key=lambda e: (depth(e.name), e.name)))


def examine(
    network: nn.Module,
    loss: Loss,
    shape: Sequence[int],
    options: DoctorOptions | None = None,
    *,
    role: str | None = None,
    progresses: Sequence[float] = (0.5,),
    told: Callable[[str], None] = lambda text: None,
) -> Report:
    """Examines whether a network can be trained with a loss, on rows of `shape` (without the
    batch).

    `loss` is the optimised one, with exact derivatives. `role` names the network of the spec that
    is played, by default the first that learns; `progresses` are points of training, one in each
    phase. `told` hears which examination is at work. The network itself is not changed. Raises a
    diagnostic when there is no such role, or the network cannot be copied.
    """
    options = options or DoctorOptions()
    played = role_of(loss, role)
    calls, steps = observed_calls(
        loss,
        played.name,
        tuple(shape),
        batch=options.batch,
        classes=options.classes,
        progresses=tuple(progresses),
        seed=options.seed,
    )
    patient = Patient(network.train(), loss, played, calls, steps, options)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(options.seed)
        findings = run(patient, told)
    return Report(
        network=type(network).__name__,
        objective=loss.signature.name,
        role=played.name,
        line=played.line,
        shape=tuple(shape),
        findings=findings,
    )


def run(patient: Patient, told: Callable[[str], None]) -> dict[str, Finding]:
    """The findings by name. After a failure, what needs it is skipped."""
    findings: dict[str, Finding] = {}
    for each in all_examinations():
        missing = _failed(each, findings)
        if missing:
            findings[each.name] = Finding(
                "skipped", f"not examined: {missing.replace('_', ' ')} comes first"
            )
            continue
        told(each.question)
        found = each.look(patient)
        if found is not None:
            findings[each.name] = found
    return findings


def _failed(examination: Examination, findings: Mapping[str, Finding]) -> str:
    """The first examination that this one needs and that did not pass."""
    for name in examination.after:
        if name in findings and findings[name].verdict in ("fail", "skipped"):
            return name
    return ""
