"""From a typed objective to a loss, in one call: lower, optimise, emit, load."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

from flowdsl.emit.load import load
from flowdsl.emit.module import emit
from flowdsl.emit.signature import signature
from flowdsl.ir.lower import lower, with_constants
from flowdsl.passes import run_passes
from flowdsl.passes.options import Options
from flowdsl.runtime.loss import Loss
from flowdsl.spec.objective import Objective

Derivative = Literal["exact", "finite_difference"]


def compile_objective(
    objective: Objective,
    *,
    optimize: bool = True,
    derivative: Derivative = "exact",
    constants: Mapping[str, float | Fraction] | None = None,
    fixed_shapes: bool = False,
) -> Loss:
    """Compile an objective to a loss.

    `derivative` "finite_difference" replaces forward-mode derivatives by central differences, for
    networks that have none. `constants` replaces values of the spec's `constants`. Raises
    DiagnosticError for an unknown constant, and for names that become one in Python.
    """
    source = emit_objective(
        objective,
        optimize=optimize,
        derivative=derivative,
        constants=constants,
        fixed_shapes=fixed_shapes,
    )
    return load(source, signature(with_constants(objective, constants or {})))


def emit_objective(
    objective: Objective,
    *,
    optimize: bool = True,
    derivative: Derivative = "exact",
    constants: Mapping[str, float | Fraction] | None = None,
    fixed_shapes: bool = False,
    chunk_rows: int | None = None,
    merge: float | None = None,
) -> str:
    """The Python source of a compiled objective; it imports torch and nothing else."""
    graph = lower(objective, constants)
    options = Options(optimize, derivative, fixed_shapes, chunk_rows=chunk_rows, merge=merge)
    return emit(run_passes(graph, options), derivative=derivative, chunk_rows=chunk_rows)
