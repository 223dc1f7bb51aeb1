"""A user's network from `path/to/file.py:NAME` or `module:NAME`.

Loading runs the user's own module, as importing it does. What goes wrong in it is told as a message
with the line of their file, not as a traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from flowdsl.diagnostics import DiagnosticError, did_you_mean, fail
from flowdsl.runtime.errors import first_line, place_of

_FORM = "write path/to/file.py:NAME or module:NAME, where NAME makes the network without arguments"


def load_network(text: str) -> nn.Module:
    """The network that a user names, built by calling NAME without arguments; a module that exists
    already is taken as it is. Raises a diagnostic for everything that can be wrong with it.
    """
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise fail("network", f'"{text}" names no network', hint=_FORM)
    module = _from_file(Path(where)) if _is_path(where) else _from_module(where)
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if _could_be(module, value)]
        raise fail(
            "network",
            f'{where} has no "{name}"',
            facts=[("defines", ", ".join(known) or "no class or function")],
            hint=did_you_mean(name, vars(module)),
        )
    made = getattr(module, name)
    if isinstance(made, nn.Module):
        return made
    return _built(made, name, where)


def _is_path(where: str) -> bool:
    return where.endswith(".py") or "/" in where or "\\" in where


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise fail(
            "network",
            f"there is no file {path}",
            hint=did_you_mean(path.name, there) or "paths are relative to the current folder",
        )
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise fail("network", f"{path} is no Python file", hint=_FORM)
    _add_to_path(path.resolve().parent)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickling look a module up by its name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if before is not None:
            sys.modules[name] = before
        else:
            del sys.modules[name]
        raise told(f"{path} cannot be imported", error) from error
    return module


def _from_module(name: str) -> ModuleType:
    _add_to_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise fail(
                "network",
                f"there is no module {error.name}",
                hint="for a file, give its path: path/to/file.py:NAME",
            ) from None
        raise told(f"{name} cannot be imported", error) from error
    except (Exception, SystemExit) as error:
        raise told(f"{name} cannot be imported", error) from error


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _could_be(module: ModuleType, value: Any) -> bool:
    """Whether something defined in the module may be what a user meant."""
    return callable(value) and getattr(value, "__module__", "") == module.__name__


def _built(made: Any, name: str, where: str) -> nn.Module:
    if not callable(made):
        found = type(made).__name__
        raise fail("network", f"{name} of {where} is {_a(found)}, no class or function", hint=_FORM)
    try:
        required = [
            p.name
            for p in inspect.signature(made).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):
        required = []
    if required:
        raise fail(
            "network",
            f"{name} of {where} needs arguments: {', '.join(required)}",
            hint=f"write a function that gives them: def make(): return {name}(…), and name it",
        )
    try:
        network = made()
    except (Exception, SystemExit) as error:
        raise told(f"{name}() of {where} fails", error) from error
    if not isinstance(network, nn.Module):
        raise fail(
            "network",
            f"{name}() of {where} returns {_a(type(network).__name__)}, no torch.nn.Module",
            hint="name the class of the network, or a function that returns one",
        )
    return network


def told(what: str, error: BaseException) -> DiagnosticError:
    """An error of the user's own code as a message: what failed, why, on which of their lines."""
    place = place_of(error)
    facts = [("where", place)] if place else []
    return fail("network", f"{what}: {first_line(error)}", facts=facts)


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
