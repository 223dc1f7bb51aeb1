"""The one file that knows the order of the stages.

source text -> syntax tree -> typed objective -> report
                                              -> graph -> optimised graph -> source -> loss
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flowdsl.clauses import all_clauses
from flowdsl.diagnostics import (
    DiagnosticError,
    Source,
    Span,
    fail,
    inherited,
    placed,
)
from flowdsl.sources import SUFFIX, find_source
from flowdsl.spec.assemble import resolve, resolve_claims
from flowdsl.spec.core import Expr
from flowdsl.spec.merge import merge_ancestors
from flowdsl.spec.objective import Objective
from flowdsl.syntax.format import format_tree
from flowdsl.syntax.layout import read_source
from flowdsl.syntax.lines import Binding
from flowdsl.syntax.parse import Parser, parse_expression
from flowdsl.syntax.tree import Expression, Tree

if TYPE_CHECKING:
    from flowdsl.checks import Report
    from flowdsl.checks.certificate import CertificateReport
    from flowdsl.passes.options import Options
    from flowdsl.passes.program import Program
    from flowdsl.repair import Search
    from flowdsl.runtime.loss import Loss

DerivativeRule = Literal["exact", "finite_difference"]
Constants = Mapping[str, float | Fraction]


@cache
def parser() -> Parser:
    """The parser of the language, built once per process."""
    return Parser([clause.syntax for clause in all_clauses()])


@cache
def parse_rule(text: str) -> Expression:
    """One expression of the language, for rules written in it."""
    return parse_expression(text, parser())


@cache
def prelude() -> Mapping[str, Binding]:
    """The functions of the prelude, by name: every `.flow` file in `flowdsl/prelude`."""
    found: dict[str, Binding] = {}
    for file in sorted(resources.files("flowdsl.prelude").iterdir(), key=lambda f: f.name):
        if file.name.endswith(SUFFIX):
            tree = parser().parse(read_source(file.read_bytes(), file.name))
            for line in tree.lines("let"):
                assert isinstance(line, Binding)
                found[line.name] = line
    return found


def parse(source: Source) -> Tree:
    """Source text -> syntax tree."""
    return parser().parse(source)


def merged(tree: Tree, instead: Source | None = None) -> Tree:
    """The tree with everything it inherits by `extends`.

    `instead` is read in the place of the inherited text of the same name.
    """

    def find(name: str, child: Tree) -> Tree:
        here = Path(child.source.name).parent
        try:
            found = find_source(name, here if here.is_dir() else None)
        except DiagnosticError as error:
            raise placed(error, child.extends_span) from None
        return parse(instead if instead is not None and instead.name == found.name else found)

    return merge_ancestors(tree, find, all_clauses())


def typed(tree: Tree, instead: Source | None = None) -> Objective:
    """Syntax tree -> typed objective; `instead` as in `merged`."""
    try:
        whole = merged(tree, instead)
        found = resolve(whole, all_clauses(), prelude(), parse_rule, _derive_target)
        _known_stages(found)
        return found
    except DiagnosticError as error:
        line = tree.name_span.line
        told = (inherited(d, tree.source, line) if tree.extends else d for d in error.diagnostics)
        raise DiagnosticError(*told) from None
    except RecursionError:
        raise fail(
            "resolve",
            f"the definitions of `{tree.name}` lead through one another too deeply",
            tree.name_span,
            hint="a spec needs a handful of definitions, each a few steps from the network",
        ) from None


def _known_stages(objective: Objective) -> None:
    """Every stage names an objective that there is."""
    here = Path(objective.source.name).parent
    for stage in objective.stages:
        if stage.objective not in ("this", objective.name):
            try:
                find_source(stage.objective, here if here.is_dir() else None)
            except DiagnosticError as error:
                raise placed(error, stage.span) from None


def _derive_target(objective: Objective, name: str, span: Span) -> tuple[Expr, Expr]:
    """`target derived`: prediction and target, written by the calculus."""
    from flowdsl.proof.derive import derive_target

    return derive_target(objective, name, span)


def load(spec: str | Path) -> Objective:
    """The typed objective of a shipped name or a path to a `.flow` file."""
    return typed(parse(find_source(str(spec))))


def load_text(text: str, name: str = "<text>") -> Objective:
    """The typed objective of a spec given as text."""
    return typed(parse(read_source(text, name)))


def standalone(tree: Tree) -> str:
    """The spec as text that stands by itself: printed, with what it extends written out."""
    return format_tree(replace(merged(tree), extends=None))


def _beside(objective: Objective) -> Callable[[str], Objective]:
    """Reads the objectives that stand beside this one, or are shipped."""
    here = Path(objective.source.name).parent

    def find(name: str) -> Objective:
        return typed(parse(find_source(name, here if here.is_dir() else None)))

    return find


def checked(
    objective: Objective, *, only: Iterable[str] | None = None, time_limit: float = 20.0
) -> Report:
    """Typed objective -> report. The limit is in seconds, for each check."""
    from flowdsl.checks import check

    report = check(objective, only=only, time_limit=time_limit, find=_beside(objective))
    if objective.extends is None:
        return report
    return report.told(partial(inherited, source=objective.source, line=objective.line))


def explained(report: Report, tree: Tree, *, seconds: float = 1.0) -> Report:
    """The report, its failures with hints that were tried and proved; in so much processor time."""
    from flowdsl.repair import explained

    objective = typed(tree)
    found = explained(report, _search(tree, objective, merged(tree), seconds))
    return found.told(partial(inherited, source=objective.source, line=objective.line))


def _search(tree: Tree, objective: Objective, whole: Tree, seconds: float) -> Search:
    """What the search for hints needs to know; an edit may be one of the spec, or of a text that it
    inherits."""
    from flowdsl.repair import Search

    def revise(source: Source) -> Objective:
        if source.name == tree.source.name:
            return typed(parse(source))
        return typed(tree, source)

    def again(source: Source, only: tuple[str, ...] | None = None) -> tuple[Report, Search]:
        own = source.name == tree.source.name
        new = parse(source) if own else tree
        revised = revise(source)
        whole = merged(new, None if own else source)
        return checked(revised, only=only), _search(new, revised, whole, seconds)

    return Search(objective, whole, revise, again, parse_rule, seconds)


def certified(objective: Objective) -> CertificateReport:
    """Typed objective -> certificate: its compiled loss, measured on an exact flow. Needs torch."""
    from flowdsl.certify import certify

    return certify(objective, compiled, find=_beside(objective))


def derived(objective: Objective, *, latex: bool = False) -> str:
    """The target that map and moving time imply, step by step.

    Raises a `DiagnosticError` where they imply none.
    """
    from flowdsl.proof.derive import derive_or_fail

    derivation = derive_or_fail(objective)
    return derivation.latex if latex else derivation.text


def derivable(objective: Objective) -> str | None:
    """The derivation as LaTeX; None where the map and the moving time imply no target."""
    from flowdsl.proof.derive import derive_if_possible

    derivation = derive_if_possible(objective)
    return None if derivation is None else derivation.latex


def compared(
    objective: Objective,
    other: Objective,
    *,
    at: str | None = None,
    near: str | None = None,
    upto: str | None = None,
) -> Report:
    """Whether two objectives have the same value, and the same gradient, for every network.

    `at` and `near` are `NAME == VALUE` (one `=` will do); `upto` is a term that is left out on
    either side. The answers are the verdicts of two claims.
    """
    from flowdsl.checks import check

    if other.name == objective.name:  # two versions of one spec: called as their files are
        stem = Path(other.source.name).stem
        other = replace(other, name=stem if stem.isidentifier() else f"{other.name}'")
    place = at or near or ""
    if re.fullmatch(r"[^=<>!]*=[^=]*", place):
        place = place.replace("=", " == ")
    where = f" up to {upto}" if upto else ""
    where += f" at {place}" if at else f" near {place}" if near else ""
    lines = "\n".join(f"  same {what} as {other.name}{where}" for what in ("value", "gradient"))
    asked = parse(read_source(f"objective {objective.name}\nclaims\n{lines}", "<question>"))
    name = re.match(r"\w*", place.strip())
    if name and name[0] in _named(other) - _named(objective):
        raise fail(
            "compare",
            f"`{name[0]}` belongs to {other.name}, not to {objective.name}",
            hint=f"name {other.name} first",
        )
    claims = resolve_claims(asked, all_clauses(), objective)
    return check(replace(objective, claims=claims), only=["claims"], find=lambda _: other)


def _named(objective: Objective) -> set[str]:
    """The names that a claim about the objective can put a number to."""
    return {*objective.constants, *objective.definitions}


def drawn(program: Program, *, as_picture: bool) -> str:
    """A program as text (what each pass gained, the evaluations before, then every value), or as an
    SVG picture.
    """
    from flowdsl.ir.picture import svg
    from flowdsl.ir.text import evaluations_text, graph_text
    from flowdsl.passes.run import protocol

    if as_picture:
        return svg(program.phases[-1].graph)
    parts = [protocol(program)]
    if program.written is not None:
        parts.append(f"\nas written\n\n{evaluations_text(program.written)}")
    for phase in program.phases:
        title = f"\nphase {phase.name}\n" if phase.name else "\n"
        parts.append(title + graph_text(phase.graph))
    return "\n".join(parts)


def optimised(
    objective: Objective, options: Options | None = None, constants: Constants | None = None
) -> Program:
    """Typed objective -> graph -> program; `optimize=False` is the graph as it was written."""
    from flowdsl.ir.lower import lower
    from flowdsl.passes import run_passes

    return run_passes(lower(objective, constants), options)


def emitted(
    objective: Objective, options: Options | None = None, constants: Constants | None = None
) -> str:
    """Typed objective -> Python source."""
    from flowdsl.emit import emit
    from flowdsl.passes.options import Options

    options = options or Options()
    program = optimised(objective, options, constants)
    return emit(
        program,
        derivative=options.derivative,
        errors=options.errors,
        chunk_rows=options.chunk_rows,
    )


def compiled(
    objective: Objective, options: Options | None = None, constants: Constants | None = None
) -> Loss:
    """Typed objective -> source -> loss. The text that is executed is the text that is shown."""
    from flowdsl.emit.load import load as load_source
    from flowdsl.emit.signature import signature
    from flowdsl.ir.lower import with_constants

    source = emitted(objective, options, constants)
    return load_source(source, signature(with_constants(objective, constants or {})))
