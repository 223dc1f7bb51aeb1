"""From the stages of a spec, its recipes and a command line to the plans of a staged run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from flowdsl.diagnostics import did_you_mean, fail

if TYPE_CHECKING:
    from flowdsl.api import Objective, Stage
    from flowdsl.runtime.stages import StagePlan

#: Settings that all stages share, for one goes on with the networks of another.
SHARED = ("data", "resolution", "size", "patch", "network", "seed", "device", "precision")


def stage_plans(
    objective: Objective,
    parts: Sequence[Stage],
    settings: Sequence[str],
    constants: Mapping[str, float],
) -> list[StagePlan]:
    """A plan per stage. `steps` are those of all stages together, shared out as the spec says.

    A stage's settings: the recipe of its own objective (of the data and the size of networks, that
    of the whole), then the table `[stages.NAME]` of the whole recipe, then the command line.
    """
    from flowdsl import plan
    from flowdsl.runtime.stages import StagePlan
    from flowdsl.runtime.training.directory import SavedSpec
    from flowdsl.runtime.training.overrides import make_config

    recipe = plan.recipe(objective.tree)
    tables = recipe.pop("stages", {})
    whole = dict(_dotted(recipe))
    steps = make_config(settings, whole).steps
    _check_names("constant", constants, {c for p in parts for c in p.objective.typed.constants})
    _check_names("stage", tables, {part.name for part in parts})
    plans = []
    done, taken = Fraction(0), 0
    for part in parts:
        own = whole
        if part.objective.name != objective.name:
            found = plan.recipe(part.objective.tree)
            found.pop("stages", None)
            own = {k: v for k, v in _dotted(found) if k.partition(".")[0] not in SHARED}
            own |= {k: v for k, v in whole.items() if k.partition(".")[0] in SHARED}
        table = dict(_dotted(tables.get(part.name, {})))
        done += part.share
        until = max(taken + 1, round(done * steps))
        config = make_config(settings, {**own, **table})
        config = config.model_copy(update={"steps": until - taken})
        taken = until
        mine = {k: v for k, v in constants.items() if k in part.objective.typed.constants}
        options = saved_options(config.compile)
        spec = SavedSpec(text=part.objective.text(), constants=mine, options=options)
        plans.append(StagePlan(part.name, spec, config, part.carried))
    return plans


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check_names(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    for name in given:
        if name not in known:
            raise fail(
                "command",
                f"there is no {what} `{name}`",
                facts=((f"{what}s", ", ".join(sorted(known)) or "none"),),
                hint=did_you_mean(name, known),
            )


def saved_options(compiled: bool) -> dict[str, bool]:
    """How a run's loss is compiled: its log tells squared errors too."""
    return {"errors": True, **({"fixed_shapes": True} if compiled else {})}
