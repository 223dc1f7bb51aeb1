"""Run emitted source: the text that is printed is the text that runs, and tracebacks show it."""

from __future__ import annotations

import hashlib
import linecache
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def functions(source: str, name: str = "objective") -> dict[str, Callable[..., Any]]:
    """The functions that a source text defines, by name.

    The text becomes a module of its own, because torch.compile and pickle look functions up by
    their module; the same text is the same module.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    filename = f"<flowdsl {name} {digest[:8]}>"
    key = f"flowdsl_emitted_{digest}"
    module = sys.modules.get(key)
    if module is None:
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        module = ModuleType(key)
        module.__file__ = filename
        sys.modules[key] = module
        exec(compile(source, filename, "exec"), module.__dict__)
    return {key: value for key, value in vars(module).items() if callable(value)}
