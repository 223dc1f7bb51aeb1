"""How an objective is trained: its stages in order, and the settings that come with it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from flowdsl.diagnostics import fail
from flowdsl.pipeline import merged, parse, typed
from flowdsl.sources import find_source
from flowdsl.syntax.tree import Tree


@dataclass(frozen=True)
class StagePart:
    """One stage of a spec: its objective's own tree, its share of training, and what it takes over
    from earlier stages as pairs (network, stage).
    """

    name: str
    tree: Tree
    share: Fraction
    carried: tuple[tuple[str, str], ...]


def stages(tree: Tree) -> tuple[StagePart, ...]:
    """The stages of a spec in order, those of stages written out (`teach.first`); none when it is
    trained in one piece.
    """
    return _stages(tree, (tree.name,))


def _stages(tree: Tree, above: tuple[str, ...]) -> tuple[StagePart, ...]:
    here = Path(tree.source.name).parent
    found: list[StagePart] = []
    last: dict[str, str] = {}  # of a stage that has stages itself, the one that counts
    for stage in typed(tree).stages:
        whole = merged(tree)
        inner: tuple[StagePart, ...] = ()
        if stage.objective == "this":
            sections = tuple(s for s in whole.sections if s.keyword != "stages")
            own = replace(whole, sections=sections, extends=None)
        else:
            if stage.objective in above:
                circle = " -> ".join([*above, stage.objective])
                raise fail("resolve", f"stages go round in a circle: {circle}", stage.span)
            own = parse(find_source(stage.objective, here if here.is_dir() else None))
            inner = _stages(own, (*above, stage.objective))
        carried = tuple((network, last[source]) for network, source in stage.carried)
        if not inner:
            found.append(StagePart(stage.name, own, stage.share, carried))
            last[stage.name] = stage.name
            continue
        parts = _within(inner, stage.name, stage.share, carried)
        found += parts
        last[stage.name] = parts[-1].name
    return tuple(found)


def _within(
    inner: tuple[StagePart, ...], name: str, share: Fraction, carried: tuple[tuple[str, str], ...]
) -> tuple[StagePart, ...]:
    """The stages of a stage, under its name and within its share.

    What is carried over goes to the last of them, whose objective it is; stages that only served
    to train these networks are left out.
    """
    given = dict(carried)
    final = inner[-1]
    kept = {final.name}
    for part in reversed(inner):
        if part.name in kept:
            kept |= {s for n, s in part.carried if part is not final or n not in given}
    inner = tuple(part for part in inner if part.name in kept)
    total = sum((part.share for part in inner), Fraction(0))
    parts = []
    for part in inner:
        own = {n: f"{name}.{source}" for n, source in part.carried}
        taken = {**own, **given} if part is final else own
        parts.append(
            StagePart(
                f"{name}.{part.name}", part.tree, share * part.share / total, tuple(taken.items())
            )
        )
    return tuple(parts)


def recipe(tree: Tree) -> dict[str, Any]:
    """The settings for training that come with an objective, or with what it extends.

    A recipe is a TOML file `recipes/NAME.toml` beside the spec; it is no part of the mathematics.
    """
    folder = Path(tree.source.name).parent / "recipes"
    path = folder / f"{tree.name}.toml"
    if path.is_file():
        try:
            return tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise fail("file", f"{path} cannot be read: {error}") from None
    if tree.extends is None:
        return {}
    here = Path(tree.source.name).parent
    return recipe(parse(find_source(tree.extends, here if here.is_dir() else None)))
