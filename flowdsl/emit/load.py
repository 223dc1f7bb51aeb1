"""Run emitted source: the text that is printed is the text that runs, and tracebacks show its
lines.
"""

from __future__ import annotations

import hashlib
import linecache
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from flowdsl.runtime.contract import ObjectiveSignature
from flowdsl.runtime.loss import Loss


def load(source: str, signature: ObjectiveSignature) -> Loss:
    """The loss whose functions are those of `source`."""
    return Loss(source, signature, functions(source, signature.name))


def functions(source: str, name: str = "objective") -> dict[str, Callable[..., Any]]:
    """The functions that a source text defines, by name."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]
    filename = f"<flowdsl {name} {digest}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = ModuleType(f"flowdsl_emitted_{digest}")
    module.__file__ = filename
    sys.modules[module.__name__] = module  # torch.compile looks functions up by their module
    exec(compile(source, filename, "exec"), module.__dict__)
    return {key: value for key, value in vars(module).items() if callable(value)}
