"""Run emitted source: the text that is printed is the text that runs, and tracebacks show its
lines.
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable
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
    space: dict[str, Any] = {}  # without __name__: Dynamo would try to import a module of that name
    exec(compile(source, filename, "exec"), space)
    return {key: value for key, value in space.items() if callable(value)}
