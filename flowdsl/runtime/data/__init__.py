"""The datasets: one file each, found by its name.

A file here defines `SUMMARY`, one line for lists, and `load(argument, size)`: `argument` is what
stands after the colon in `folder:/photos` (empty without one), `size` the height and width asked
for, or None for the data's own.
"""

from __future__ import annotations

import sys

from flowdsl.diagnostics import fail
from flowdsl.runtime.conditions import conditioned, read_conditions
from flowdsl.runtime.dataset import Dataset
from flowdsl.runtime.discovery import member, members


def dataset_names() -> tuple[str, ...]:
    """Every dataset that can be named."""
    return members(sys.modules[__name__])


def dataset_summary(name: str) -> str:
    """One line on a dataset."""
    summary: str = member(sys.modules[__name__], name, "dataset").SUMMARY
    return summary


def load_dataset(spec: str, size: int | None = None, conditions: str | None = None) -> Dataset:
    """The dataset that a spec such as `digits` or `folder:/photos` names, at `size` pixels; with
    the embeddings of a file as its conditions, if one is named.

    Raises `DiagnosticError` for an unknown name, data that are not there, and a size that the data
    cannot have.
    """
    name, _, argument = spec.partition(":")
    if size is not None and not 4 <= size <= 1024:
        raise fail("dataset", f"images of {size} pixels", hint="a size from 4 to 1024")
    dataset: Dataset = member(sys.modules[__name__], name, "dataset").load(argument, size)
    if conditions is None:
        return dataset
    return conditioned(dataset, read_conditions(conditions))


def refuse_argument(name: str, argument: str) -> None:
    """For a dataset that takes no argument after its name."""
    if argument:
        raise fail(
            "dataset", f'"{name}" takes nothing after its name, found ":{argument}"', hint=name
        )


def require_argument(name: str, argument: str, example: str) -> None:
    """For a dataset that is a path."""
    if not argument:
        raise fail("dataset", f'"{name}" needs a path after its name', hint=f"e.g. {example}")
