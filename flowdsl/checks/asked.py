"""At which states and times networks are evaluated."""

from __future__ import annotations

from collections.abc import Iterator

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.numbers import evaluate
from flowdsl.checks.report import Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.show import Printer
from flowdsl.spec.core import Draw, Evaluate, Expr, Formal, Given, Kind, replace_formals, walk
from flowdsl.spec.objective import FlowMap
from flowdsl.truth.cases import Case
from flowdsl.truth.sample import end_state


def jumps(
    analysis: Analysis, case: Case, only: FlowMap | None = None
) -> list[tuple[Evaluate, Expr, Expr]]:
    """Every evaluation of a map's network, with the start and end of the jump it stands for."""
    found = []
    for flow_map in analysis.objective.maps.values() if only is None else (only,):
        calls = [n for n in walk(flow_map.body) if isinstance(n, Evaluate)]
        if len(calls) != 1:
            continue
        inner = calls[0]
        shown = {a: k for k, a in enumerate(inner.args) if isinstance(a, Formal)}
        for expr in (case.prediction, case.target):
            for node in walk(expr) if expr is not None else ():
                if not isinstance(node, Evaluate):
                    continue
                whose = analysis.objective.origin(node.network, node.head)
                if whose != (inner.network, inner.head):
                    continue
                values = {a.name: node.args[k] for a, k in shown.items() if isinstance(a, Formal)}
                ends = [replace_formals(e, values) for e in (flow_map.start, flow_map.end)]
                if not any(isinstance(n, Formal) for e in ends for n in walk(e)):
                    found.append((node, ends[0], ends[1]))
    return found


def misplaced(analysis: Analysis, case: Case) -> Verdict | None:
    """A network that is shown an end of the path as its state, and told the time of another.

    `flow(teacher, data, 1, 0)` starts from the data as if they were noise.
    """
    for node, state, time in _at_ends(analysis, case):
        try:
            own = end_state(analysis.objective, state.name).time
        except Undecided:  # the path ends near it, not in it
            continue
        if _apart(analysis, time, own):
            printer = Printer.of(analysis, case)
            told, right = printer.expression(time), printer.expression(own)
            message = f"{node.head} is told time {told} at `{state.name}`, the state at {right}"
            hint = f"ask it there at time {right}, or at the state of time {told}"
            diagnostic = Diagnostic("times", message, node.span or case.term.span, hint=hint)
            return Verdict("times", "refuted", message, diagnostic=diagnostic)
    return None


def _at_ends(analysis: Analysis, case: Case) -> Iterator[tuple[Evaluate, Given, Expr]]:
    """Evaluations at `data` or `noise` itself, with the time that the network takes it for."""
    starts = {node: start for node, start, _ in jumps(analysis, case)}
    for expr in (case.prediction, case.target):
        for node in walk(expr) if expr is not None else ():
            if not isinstance(node, Evaluate) or not node.args:
                continue
            state = node.args[0]
            if not isinstance(state, Given) or state.name not in ("data", "noise"):
                continue
            kinds = [kind for _, kind in analysis.objective.networks[node.network].arguments]
            told = [a for k, a in zip(kinds, node.args, strict=True) if k is Kind.TIME]
            if node in starts:
                yield node, state, starts[node]
            elif len(told) == 1 and kinds == [Kind.STATE, Kind.TIME]:
                yield node, state, told[0]


def _apart(analysis: Analysis, time: Expr, own: Expr) -> bool:
    """Is one time, on some rows, surely another than the number that it should be?"""
    constants = {name: float(value) for name, value in analysis.objective.constants.items()}
    try:
        return abs(evaluate(time, constants) - evaluate(own, constants)) > 1e-6
    except Undecided:
        return isinstance(time, Draw)
