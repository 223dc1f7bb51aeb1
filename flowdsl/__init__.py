"""flowdsl: a language, a checker and a compiler for the objectives of one-step generative models.

    import flowdsl

    objective = flowdsl.load("meanflow")      # a shipped name, or a path to a .flow file
    report = objective.check()                # verdicts; report.ok
    loss = objective.compile()                # flowdsl.Loss: loss(network, data) -> value, metrics

Reading and checking a spec never imports torch; compiling one does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowdsl.api import NotProvedWarning, Objective, load, loads, shipped
    from flowdsl.checks import Report, Verdict
    from flowdsl.diagnostics import Diagnostic, DiagnosticError
    from flowdsl.runtime.loss import Loss, LossModule

_HOMES = {
    "NotProvedWarning": "flowdsl.api",
    "Objective": "flowdsl.api",
    "load": "flowdsl.api",
    "loads": "flowdsl.api",
    "shipped": "flowdsl.api",
    "Report": "flowdsl.checks",
    "Verdict": "flowdsl.checks",
    "Diagnostic": "flowdsl.diagnostics",
    "DiagnosticError": "flowdsl.diagnostics",
    "Loss": "flowdsl.runtime.loss",
    "LossModule": "flowdsl.runtime.loss",
}

__all__ = [
    "Diagnostic",
    "DiagnosticError",
    "Loss",
    "LossModule",
    "NotProvedWarning",
    "Objective",
    "Report",
    "Verdict",
    "load",
    "loads",
    "shipped",
]


def __getattr__(name: str) -> Any:
    """Public names are found on first use, so that `import flowdsl` stays cheap."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'flowdsl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
