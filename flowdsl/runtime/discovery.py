"""Sets that are a folder: every module in it is one member, found by its file name and imported
only when used.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from flowdsl.diagnostics import did_you_mean, fail


def members(package: ModuleType) -> tuple[str, ...]:
    """The names of the modules in the package's folder, sorted; nothing is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def member(package: ModuleType, name: str, kind: str) -> ModuleType:
    """The module of this name; an unknown name is a `DiagnosticError` that lists the known ones."""
    known = members(package)
    if name not in known:
        raise fail(
            kind,
            f'there is no {kind} "{name}"',
            facts=(("known", ", ".join(known)),),
            hint=did_you_mean(name, known),
        )
    return importlib.import_module(f"{package.__name__}.{name}")
