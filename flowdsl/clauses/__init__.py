"""The section keywords, one file each. A file here is a keyword: nothing else lists them."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from flowdsl.spec.scope import Clause


@cache
def all_clauses() -> tuple[Clause, ...]:
    """Every clause in this folder, in the order in which headings are printed."""
    found: list[Clause] = []
    for module in iter_modules(__path__):
        if not module.name.startswith("_"):
            found.extend(import_module(f"{__name__}.{module.name}").CLAUSES)
    return tuple(sorted(found, key=lambda clause: clause.place))
