"""From `key=value` words and a recipe to a checked `TrainConfig`, with errors that name key, value
and remedy.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flowdsl.diagnostics import Diagnostic, DiagnosticError, fail
from flowdsl.runtime.training.config import TrainConfig

#: What other trainers call our settings: only for hints.
ELSEWHERE = {
    "lr": "optimizer.learning_rate",
    "batch_size": "batch",
    "max_steps": "steps",
    "iterations": "steps",
    "dataset": "data",
    "grad_clip": "optimizer.clip",
    "wd": "optimizer.weight_decay",
    "ema_decay": "ema",
    "image_size": "resolution",
    "patch_size": "patch",
    "dtype": "precision",
}

#: A recipe: the same keys as the config, nested or dotted, with plain values.
Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One key that can be set: its dotted name, default, and meaning."""

    key: str
    default: object
    meaning: str


def settings() -> tuple[Setting, ...]:
    """Every key of the config, for help texts."""
    return tuple(Setting(k, f.get_default(), f.description or "") for k, f in _leaves(TrainConfig))


def make_config(overrides: Sequence[str] = (), recipe: Recipe | None = None) -> TrainConfig:
    """Defaults, then the recipe, then overrides such as `steps=500` and `optimizer.clip=2`.

    Raises `DiagnosticError` for unknown keys, words without `=`, and values that are not allowed.
    """
    values = {_known(key): value for key, value in _flatten(recipe or {})}
    for word in overrides:
        key, equals, text = word.partition("=")
        key = key.strip().lstrip("-").replace("-", "_")
        if not equals or not key:
            raise fail("config", f'"{word}" is not of the form key=value', hint="e.g. steps=500")
        key = _known(key)
        values[key] = _parsed(dict(_leaves(TrainConfig))[key], text.strip())
    return validated(values)


def validated(values: Mapping[str, Any]) -> TrainConfig:
    """The config of dotted keys; a `DiagnosticError` with one message per value that is not
    allowed.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        place = nested
        *groups, name = key.split(".")
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    try:
        return TrainConfig.model_validate(nested)
    except ValidationError as error:
        raise DiagnosticError(*_messages(error)) from None


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _known(key: str) -> str:
    known = [name for name, _ in _leaves(TrainConfig)]
    if key in known:
        return key
    groups = [name for name in known if name.startswith(f"{key}.")]
    if groups:
        raise fail("config", f'"{key}" is a group of keys', hint=f"e.g. {groups[0]}=…")
    raise fail(
        "config",
        f'there is no setting "{key}"',
        facts=(("known", _wrapped(known)),),
        hint=_meant(key, known),
    )


def _meant(key: str, known: Sequence[str]) -> str:
    """The nearest setting, also when its group was left out or misspelt."""
    last = {name.rsplit(".", 1)[-1]: name for name in known} | ELSEWHERE
    name = key.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(name, last, n=1, cutoff=0.6)
    return f'did you mean "{last[close[0]]}"?' if close else ""


def _parsed(info: FieldInfo, text: str) -> Any:
    """The text as pydantic wants it: a list for a tuple, None where it may be none."""
    if text.lower() == "none" and _allows_none(info):
        return None
    if _is_tuple(info.annotation):
        return [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
    return text


def _is_tuple(annotation: Any) -> bool:
    """Whether several values are meant, by themselves or where none may stand."""
    if _is_union(annotation):
        return any(_is_tuple(part) for part in get_args(annotation))
    return get_origin(annotation) is tuple


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _allows_none(info: FieldInfo) -> bool:
    return _is_union(info.annotation) and type(None) in get_args(info.annotation)


def _messages(error: ValidationError) -> Iterator[Diagnostic]:
    fields = dict(_leaves(TrainConfig))
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        key = next(
            (
                ".".join(place[:n])
                for n in range(len(place), 0, -1)
                if ".".join(place[:n]) in fields
            ),
            ".".join(place),
        )
        info = fields.get(key)
        facts = [("allowed", problem["msg"].removeprefix("Input should be ").lower())]
        if info is not None:
            facts += [("meaning", info.description or ""), ("default", _shown(info.get_default()))]
        yield Diagnostic(
            "config", f'{key} cannot be "{_shown(problem["input"])}"', facts=tuple(facts)
        )


def _shown(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return ",".join(str(item) for item in value)
    return "none" if value is None else str(value)


def _wrapped(names: Sequence[str]) -> str:
    lines, line = [], ""
    for name in names:
        if line and len(line) + len(name) > 70:
            lines.append(line.rstrip())
            line = ""
        line += f"{name}, "
    return "\n".join([*lines, line]).rstrip(", ")
