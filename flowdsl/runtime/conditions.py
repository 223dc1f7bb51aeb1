"""Embeddings that you computed, of captions or of anything else, as the conditions of images.

Every image has a row of a table of vectors; a batch carries the numbers of its rows where it would
carry classes, and the network looks the vectors up. So losses, samplers and pictures treat a
caption as they treat a class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowdsl.diagnostics import DiagnosticError, did_you_mean, fail
from flowdsl.runtime.dataset import DataCard, Dataset, Split

FORMS = "FILE.npy or FILE.safetensors, one row per image in their order, or FILE.jsonl"
_LINE = 'lines such as {"file": "a.png", "embedding": [0.1, …], "text": "a red chair"}'
LONGEST = 40  #: characters of a caption beside a row of samples


@dataclass(frozen=True, eq=False)
class Conditions:
    """`vectors` (count, width) float32; `texts` names them; `files` says whose they are (empty: in
    the order of the images)."""

    path: Path
    vectors: Tensor
    texts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """How the rows are called in pictures and on the command line."""
        names = self.texts or self.files or tuple(str(k) for k in range(len(self.vectors)))
        return tuple(n if len(n) <= LONGEST else f"{n[: LONGEST - 1]}…" for n in names)


def read_conditions(path: Path | str) -> Conditions:
    """The vectors of a file. Raises `DiagnosticError` for what is no table of numbers."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise fail("conditions", f"{path} is not a file", hint=f"conditions={FORMS}")
    try:
        if path.suffix == ".jsonl":
            return _lines(path)
        return Conditions(path, _table(path, _array(path)))
    except DiagnosticError:
        raise
    except Exception as error:  # each reader has its own errors; all mean the same to the user
        raise fail("conditions", f"{path} cannot be read: {error}", hint=FORMS) from error


def with_conditions(card: DataCard, path: str) -> DataCard:
    """The card with the vectors of another file, of the same width."""
    if not card.conditions:
        raise fail("conditions", f"{card.name} was trained without embeddings")
    old, new = read_conditions(card.conditions), read_conditions(path)
    if old.vectors.shape[1] != new.vectors.shape[1]:
        raise fail(
            "conditions",
            f"{path} has vectors of {new.vectors.shape[1]} numbers, the run was trained with "
            f"{old.vectors.shape[1]}",
            hint="embed with the same text encoder",
        )
    return replace(card, classes=len(new.vectors), class_names=new.names, conditions=path)


def conditioned(dataset: Dataset, conditions: Conditions) -> Dataset:
    """The dataset with its rows' conditions in the place of classes."""
    count = dataset.train.count + dataset.held_out.count
    places = _places(dataset, conditions, count)
    return replace(
        dataset,
        card=replace(
            dataset.card,
            classes=len(conditions.vectors),
            class_names=conditions.names,
            conditions=str(conditions.path),
        ),
        train=_labelled(dataset.train, places),
        held_out=_labelled(dataset.held_out, places),
    )


def _labelled(split: Split, places: Tensor) -> Split:
    assert split.ids is not None
    return replace(split, labels=places[split.ids])


def _places(dataset: Dataset, conditions: Conditions, count: int) -> Tensor:
    """The row of the table for every image, in the images' own order."""
    if dataset.train.ids is None or dataset.held_out.ids is None:
        raise fail(
            "conditions", f'the data "{dataset.card.name}" take no conditions from a file',
            hint="use data=folder:PATH or data=array:FILE",
        )  # fmt: skip
    if not conditions.files:
        if len(conditions.vectors) != count:
            raise fail(
                "conditions",
                f"{conditions.path} has {len(conditions.vectors)} rows for {count} images",
                hint=f"one row per image, in the order of their names; or {_LINE}",
            )
        return torch.arange(count)
    if not dataset.files:
        raise fail(
            "conditions", f'"{dataset.card.name}" has no files by which {conditions.path} goes',
            hint='leave "file" out: lines go by the order of the rows',
        )  # fmt: skip
    known = {name: k for k, name in enumerate(conditions.files)}
    missing = [name for name in dataset.files if name not in known]
    if missing:
        raise fail(
            "conditions",
            f"{conditions.path} has no line for {len(missing)} of {count} images",
            facts=(("first", missing[0]),),
            hint=did_you_mean(missing[0], known) or "name files as in the folder: `class/a.png`",
        )
    return torch.tensor([known[name] for name in dataset.files])


def _array(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        content = load_file(path)
        tables = {k: v for k, v in content.items() if v.ndim == 2}
        if len(tables) == 1:
            return next(iter(tables.values()))
        if "embeddings" in content:
            return content["embeddings"]
        raise fail("conditions", f"{path} holds {len(tables)} tables",
                   hint="call the right one `embeddings`")  # fmt: skip
    raise fail("conditions", f"{path} is of no known form", hint=FORMS)


def _table(path: Path, content: Any) -> Tensor:
    vectors = torch.as_tensor(content)
    if vectors.ndim != 2 or min(vectors.shape) < 1:
        hint = "pool the tokens of a caption into one vector" if vectors.ndim == 3 else FORMS
        shape = tuple(vectors.shape)
        raise fail("conditions", f"{path} holds {shape}, not (images, width)", hint=hint)
    vectors = vectors.float()
    if not bool(torch.isfinite(vectors).all()):
        raise fail("conditions", f"{path} holds numbers that are not finite")
    return vectors


def _lines(path: Path) -> Conditions:
    records: list[Mapping[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        record = json.loads(line)
        if not isinstance(record, dict) or "embedding" not in record:
            raise fail("conditions", f"{path}:{number} has no embedding", hint=_LINE)
        records.append(record)
    widths = {len(record["embedding"]) for record in records}
    if len(widths) != 1:
        raise fail("conditions", f"{path} has embeddings of {len(widths)} widths", hint=_LINE)
    vectors = _table(path, [record["embedding"] for record in records])
    return Conditions(path, vectors, _column(path, records, "text"), _column(path, records, "file"))


def _column(path: Path, records: Sequence[Mapping[str, Any]], key: str) -> tuple[str, ...]:
    found = tuple(str(record[key]) for record in records if key in record)
    if found and len(found) < len(records):
        raise fail("conditions", f'{path} has "{key}" on some lines only', hint=_LINE)
    return found
