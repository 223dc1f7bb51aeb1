"""The identities of flow maps, one file each, discovered from this folder."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from flowdsl.identities.identity import GaussianFlow, Identity


def _discover() -> dict[str, Identity]:
    found = {}
    for module in sorted(m.name for m in iter_modules(__path__)):
        identity = getattr(import_module(f"{__name__}.{module}"), "IDENTITY", None)
        if isinstance(identity, Identity):
            found[identity.name] = identity
    return found


IDENTITIES: dict[str, Identity] = _discover()

__all__ = ["IDENTITIES", "GaussianFlow", "Identity"]
