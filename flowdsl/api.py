"""The public face: an objective that can be checked and compiled."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from flowdsl import pipeline, plan, sources
from flowdsl.pipeline import Constants, DerivativeRule
from flowdsl.spec import objective as spec
from flowdsl.syntax.layout import read_source
from flowdsl.syntax.tree import Tree

if TYPE_CHECKING:
    from flowdsl.checks import Report
    from flowdsl.passes.options import Options
    from flowdsl.passes.program import Program
    from flowdsl.runtime.loss import Loss


class NotProvedWarning(UserWarning):
    """An objective is compiled although a check fails. To make it an error:
    `warnings.simplefilter("error", flowdsl.NotProvedWarning)`.
    """


def unproved_text(objective: Objective) -> str:
    """What is said when an objective is used that is not proved."""
    failed = ", ".join(objective.unproved)
    return f"{objective.name} is not proved ({failed}); see `flowdsl check`"


@dataclass(frozen=True, repr=False)
class Objective:
    """One training objective, read and resolved.

    `tree` is what was written, `typed` what it means. Methods raise `DiagnosticError` for mistakes
    of the spec or of the call; its text names place, cause and remedy.
    """

    tree: Tree
    typed: spec.Objective

    def __repr__(self) -> str:
        networks = ", ".join(self.typed.networks)
        terms = ", ".join(term.name for term in self.typed.terms)
        return f"Objective({self.name}: networks {networks}; terms {terms})"

    def _repr_html_(self) -> str:
        """The spec, for a notebook."""
        return f"<pre>{escape(self.tree.source.text)}</pre>"

    def _repr_latex_(self) -> str | None:
        """The derivation of the target from the map, for a notebook; None where there is none."""
        derivation = pipeline.derivable(self.typed)
        return None if derivation is None else f"$$\n{derivation}\n$$"

    @property
    def name(self) -> str:
        return self.typed.name

    @property
    def title(self) -> str:
        return self.typed.title

    def check(self, *, only: Iterable[str] | None = None, time_limit: float = 20.0) -> Report:
        """Every check's verdicts. `only` names some checks; the limit is seconds for each."""
        return pipeline.checked(self.typed, only=only, time_limit=time_limit)

    @cached_property
    def unproved(self) -> tuple[str, ...]:
        """The checks that fail within five seconds each; empty when all is proved."""
        report = self.check(time_limit=5)
        return tuple(sorted({v.check for v in report.verdicts if not v.ok}))

    def graph(
        self,
        *,
        optimize: bool = True,
        derivative: DerivativeRule = "exact",
        constants: Constants | None = None,
        fixed_shapes: bool = False,
        without: Sequence[str] = (),
        merge: float | None = None,
    ) -> Program:
        """The graph of evaluations, before (`optimize=False`) or after the passes."""
        options = _options(optimize, derivative, fixed_shapes, without, merge=merge)
        return pipeline.optimised(self.typed, options, constants)

    def emit(
        self,
        *,
        optimize: bool = True,
        derivative: DerivativeRule = "exact",
        constants: Constants | None = None,
        fixed_shapes: bool = False,
        without: Sequence[str] = (),
        chunk_rows: int | None = None,
        merge: float | None = None,
    ) -> str:
        """The loss as Python text that imports torch only: what `compile` runs."""
        options = _options(optimize, derivative, fixed_shapes, without, chunk_rows, merge)
        return pipeline.emitted(self.typed, options, constants)

    def compile(
        self,
        *,
        optimize: bool = True,
        derivative: DerivativeRule = "exact",
        constants: Constants | None = None,
        fixed_shapes: bool = False,
        without: Sequence[str] = (),
        chunk_rows: int | None = None,
        merge: float | None = None,
        errors: bool = False,
        check: bool = True,
    ) -> Loss:
        """The loss. Warns with `NotProvedWarning` when a check fails, unless `check` is False: the
        loss runs all the same, and learns another thing.

        `derivative="finite_difference"` takes central differences, for networks that have no
        forward derivative; `constants` replaces values of the spec's `constants`. With
        `fixed_shapes` no shape depends on what is drawn, as torch.compile needs it. `without` names
        passes to leave out. With `errors` the metrics also hold each term's squared error, as
        `target.mse`, before the weight that a robust loss makes of it. With `chunk_rows`,
        derivatives that carry no gradient are taken of so many rows at a time, for less memory.
        With `merge`, as many evaluations of a network as can be are made in one call, on their rows
        one after another, but none of more than `merge` times the rows of the batch.
        """
        if check and self.unproved:
            warnings.warn(NotProvedWarning(unproved_text(self)), stacklevel=2)
        options = _options(optimize, derivative, fixed_shapes, without, chunk_rows, merge)
        options = replace(options, errors=errors)
        return pipeline.compiled(self.typed, options, constants)

    def stages(self) -> tuple[Stage, ...]:
        """The stages in which the objective is trained; none when it is trained in one piece."""
        return tuple(
            Stage(part.name, _objective(part.tree), part.share, part.carried)
            for part in plan.stages(self.tree)
        )

    def text(self) -> str:
        """The spec by itself: printed, with everything that it extends written out."""
        return pipeline.standalone(self.tree)


@dataclass(frozen=True)
class Stage:
    """One stage of a staged objective: what is trained, its share of all steps, and the networks
    that it takes over, as pairs (network, earlier stage).
    """

    name: str
    objective: Objective
    share: Fraction
    carried: tuple[tuple[str, str], ...]


def _options(
    optimize: bool,
    derivative: DerivativeRule,
    fixed_shapes: bool,
    without: Sequence[str],
    chunk_rows: int | None = None,
    merge: float | None = None,
) -> Options:
    from flowdsl.passes.options import Options

    return Options(
        optimize, derivative, fixed_shapes, tuple(without), chunk_rows=chunk_rows, merge=merge
    )


def load(spec: str | Path) -> Objective:
    """An objective by its shipped name, or from a path to a `.flow` file."""
    return _objective(pipeline.parse(sources.find_source(str(spec))))


def loads(text: str, name: str = "<text>") -> Objective:
    """An objective from its text; `name` is how messages call the text."""
    return _objective(pipeline.parse(read_source(text, name)))


def shipped() -> tuple[str, ...]:
    """The names of the shipped objectives."""
    return sources.shipped_names()


def _objective(tree: Tree) -> Objective:
    return Objective(tree, pipeline.typed(tree))
