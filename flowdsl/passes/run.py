"""The order of the passes, the reason for each place, and a protocol of what each gained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from flowdsl.ir.cost import DIFFERENCE, PLAIN, RULES, Prices, cost
from flowdsl.ir.graph import Graph, verify
from flowdsl.ir.together import made
from flowdsl.passes.beside import beside
from flowdsl.passes.common import common
from flowdsl.passes.decide import decide
from flowdsl.passes.duals import duals
from flowdsl.passes.fold import fold
from flowdsl.passes.merge import merge
from flowdsl.passes.options import Options
from flowdsl.passes.phases import phases
from flowdsl.passes.program import Phase, Program, Step
from flowdsl.passes.reuse import reuse
from flowdsl.passes.rows import fixed_rows, rows
from flowdsl.passes.stops import stops


@dataclass(frozen=True)
class Pass:
    """One pass: a pure function from graph to graph, and why it stands where it stands. `fixed`
    takes its place where no shape may depend on what is drawn.
    """

    name: str
    apply: Callable[[Graph], Graph]
    reason: str
    exact_only: bool = False
    fixed: Callable[[Graph], Graph] | None = None

    def run(self, graph: Graph, options: Options) -> Graph:
        """The graph after this pass, looked over."""
        chosen = self.fixed if options.fixed_shapes and self.fixed else self.apply
        graph = chosen(graph)
        verify(graph)
        return graph


#: Before training's phases are told apart.
COMMON_PASSES = (
    Pass("fold", fold, "first: zero and one coefficients remove whole branches"),
    Pass("decide", decide, "after folding: bounds are numbers now"),
    Pass("fold", fold, "what was decided removes further branches"),
)
#: For each phase.
PHASE_PASSES = (
    Pass("common", common, "before gradients are looked at: one pass may serve with and without"),
    Pass("stops", stops, "before rows: passes without a graph may run on any rows"),
    Pass("common", common, "passes that differed by a `stop` only are equal now"),
    Pass("reuse", reuse, "before rows: it shrinks what rows must be evaluated"),
    Pass("fold", fold, "selections that reuse has nested"),
    Pass("rows", rows, "after reuse, when demand is final", fixed=fixed_rows),
    Pass("fold", fold, "passes that no row needs"),
    Pass("beside", beside, "after rows: a pass is split where a derivative joins", exact_only=True),
    Pass("fold", fold, "selections between the parts of what was split"),
    Pass("duals", duals, "last: a pair must agree in rows and in gradient", exact_only=True),
)
PASSES = (*COMMON_PASSES, *PHASE_PASSES)


def run_passes(graph: Graph, options: Options | None = None) -> Program:
    """The program of a lowered graph."""
    options = options or Options()
    prices = RULES if options.exact else DIFFERENCE
    written = graph
    steps = [_step("lower", "", graph, PLAIN if options.exact else DIFFERENCE)]
    if not options.optimize and options.transcribed:
        return _transcribed(graph, options, steps)
    if not options.optimize:
        return Program(graph, (Phase("", (), graph),), tuple(steps), optimized=False)
    if options.exact:
        steps.append(_step("rules", "", graph, prices))
    for each in _chosen(COMMON_PASSES, options):
        graph = each.run(graph, options)
        steps.append(_step(each.name, "", graph, prices))
    done = []
    whole = (Phase("otherwise", (), graph),)
    for phase in whole if "phases" in options.without else phases(graph):
        current = phase.graph
        steps.append(_step("phases", phase.name, current, prices))
        for each in _chosen(PHASE_PASSES, options):
            current = each.run(current, options)
            steps.append(_step(each.name, phase.name, current, prices))
        if options.merge is not None:  # at the very end: what a call computes is settled
            current = merge(current, options.merge)
            verify(current)
            steps.append(_step("merge", phase.name, current, prices))
        done.append(replace(phase, graph=current))
    if len(done) == 1:
        done = [replace(done[0], name="")]
    return Program(graph, tuple(done), tuple(steps), written=written)


def _transcribed(graph: Graph, options: Options, steps: list[Step]) -> Program:
    """What authors write by hand: the phases apart, and no evaluation twice for a derivative that
    learns; for the rest the formula as it stands.
    """
    written = graph
    for each in COMMON_PASSES:
        graph = each.run(graph, options)
    prices = PLAIN if options.exact else DIFFERENCE
    done = []
    for phase in phases(graph):
        current = phase.graph
        if options.exact:
            current = duals(common(current), learning=True)
            verify(current)
        steps.append(_step("phases", phase.name, current, prices))
        done.append(replace(phase, graph=current))
    if len(done) == 1:
        done = [replace(done[0], name="")]
    return Program(graph, tuple(done), tuple(steps), optimized=False, written=written)


def _chosen(passes: tuple[Pass, ...], options: Options) -> list[Pass]:
    return [
        each
        for each in passes
        if (options.exact or not each.exact_only) and each.name not in options.without
    ]


def _step(name: str, phase: str, graph: Graph, prices: Prices) -> Step:
    return Step(name, phase, len(graph.used), len(made(graph)), cost(graph, prices).total)


def protocol(program: Program) -> str:
    """What each pass gained, as an aligned table."""
    lines = [f"{'pass':<10}{'phase':<16}{'nodes':>6}{'network passes':>16}{'cost':>9}"]
    for step in program.steps:
        lines.append(
            f"{step.name:<10}{step.phase:<16}{step.nodes:>6}{step.passes:>16}{step.cost:>7.2f} F"
        )
    return "\n".join(lines)
