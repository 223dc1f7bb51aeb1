"""Does every network that should learn receive gradient, and none by accident?"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.numbers import evaluate
from flowdsl.checks.check import Check, Example, per_case, rows_text
from flowdsl.checks.direction import repels
from flowdsl.checks.learners import learners
from flowdsl.checks.matching import direction
from flowdsl.checks.report import Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.signs import wrong_sign
from flowdsl.spec.core import Apply, Evaluate, Expr, Level, children, walk
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective, Term
from flowdsl.truth.cases import Case
from flowdsl.truth.live import live_calls, live_nodes

NAME = "gradient"


def _run(objective: Objective, analysis: Analysis) -> list[Verdict]:
    verdicts = learners(objective)
    for term in objective.terms:
        begin = time.perf_counter()
        found = _target(objective, term) + _fixed(objective, term)
        found += _second_order(objective, term) + _weights(analysis, term)
        found += _silent(objective, term) + _clips(objective, term) + _empty(analysis, term)
        found += _never(analysis, term) + _away(analysis, term)
        found += _still(analysis, term) + _steps(analysis, term)
        seconds = (time.perf_counter() - begin) / max(1, len(found))
        verdicts += [replace(v, term=term.name, seconds=seconds) for v in found]
    return verdicts


def _expressions(term: Term) -> list[Expr]:
    """Everything of a term through which gradient may flow; the loss contains prediction and
    target."""
    return [term.loss]


def _target(objective: Objective, term: Term) -> list[Verdict]:
    """Gradient through a target that was not stopped: `unbiased` says whether it does harm."""
    if term.target is None:
        return []
    calls = live_calls(objective, term.target)
    names = sorted({call.network for call in calls})
    if not names:
        return []
    message = f"gradient flows into {', '.join(names)} through the target: {_backward(calls)}"
    diagnostic = Diagnostic(NAME, message, term.target.span, "not stopped",
                            hint="write stop( ) around the target unless this is meant",
                            severity="warning")  # fmt: skip
    return [Verdict(NAME, "note", message, diagnostic=diagnostic)]


def _backward(calls: list[Evaluate]) -> str:
    """By which evaluations gradient flows, and what that costs."""
    shown = list(dict.fromkeys(c.span.text if c.span is not None else c.head for c in calls))
    count = len(dict.fromkeys(calls))
    passes = "one more backward pass" if count == 1 else f"{count} more backward passes"
    second = ", of second order" if any(call.directions for call in calls) else ""
    return f"by {', '.join(shown)}; {passes}{second}"


def _fixed(objective: Objective, term: Term) -> list[Verdict]:
    """Gradient that passes through the arguments of a network whose parameters are fixed."""
    found = []
    for node in live_nodes(term.loss):
        network = objective.networks[node.network]
        if not network.frozen and network.average_of is None:
            continue
        through = sorted({c.network for child in children(node)
                          for c in live_calls(objective, child)})  # fmt: skip
        if not through:
            continue
        what = "a frozen network" if network.frozen else f"an average of {network.average_of}"
        message = f"gradient reaches {', '.join(through)} through {node.network}, {what}"
        in_target = term.target is not None and node in live_nodes(term.target)
        average = network.average_of is not None and in_target
        diagnostic = Diagnostic(
            NAME, message, node.span or term.span,
            "its parameters are fixed, its arguments are not",
            hint=f"write stop({node.network}(…)) for a fixed target",
            severity="error" if average else "warning",
        )  # fmt: skip
        found.append(Verdict(NAME, "refuted" if average else "note", message,
                             diagnostic=diagnostic))  # fmt: skip
    return found


def _second_order(objective: Objective, term: Term) -> list[Verdict]:
    live = [n for n in live_nodes(term.loss) if n.directions]
    names = sorted({n.network for n in live if not objective.networks[n.network].frozen})
    if not names:
        return []
    return [Verdict(NAME, "note", f"gradient flows through a derivative of {', '.join(names)}: "
                                  "the backward pass is of second order")]  # fmt: skip


def _weights(analysis: Analysis, term: Term) -> list[Verdict]:
    """A weight that is zero on some rows trains nothing there, a negative one the opposite."""
    if term.target is None:
        return []
    found: dict[str, list[Case]] = {}
    with suppress(Undecided):
        for case in analysis.cases(term):
            with suppress(Undecided):
                found.setdefault(wrong_sign(analysis, case), []).append(case)
    found.pop("", None)
    return [
        Verdict(NAME, "refuted", message, case=rows_text(analysis, cases),
                diagnostic=Diagnostic(NAME, message, term.loss_span or term.span,
                                      hint="let the weight be above zero"))
        for message, cases in found.items()
    ]  # fmt: skip


def _silent(objective: Objective, term: Term) -> list[Verdict]:
    """A term through which no network learns: a weight that learns is not what it is there for."""
    sides = _expressions(term) if term.target is None else [term.prediction, term.target]
    if any(live_calls(objective, expr) for expr in sides):
        return []
    message = "no gradient flows through this term"
    diagnostic = Diagnostic(NAME, message, term.span,
                            hint="take a learning network out of its stop( )")  # fmt: skip
    return [Verdict(NAME, "refuted", message, diagnostic=diagnostic)]


def _clips(objective: Objective, term: Term) -> list[Verdict]:
    """A clip whose bounds leave one value, or none, passes neither value nor gradient."""
    constants = {name: float(value) for name, value in objective.constants.items()}
    for node in walk(term.loss):
        if not (isinstance(node, Apply) and node.op == "clip"):
            continue
        try:
            low, high = (evaluate(bound, constants) for bound in node.args[1:])
        except Undecided:
            continue
        if low >= high:
            message = f"clip between {low:g} and {high:g} leaves nothing of what it clips"
            diagnostic = Diagnostic(NAME, message, node.span or term.span,
                                    hint="write the lower bound first")  # fmt: skip
            return [Verdict(NAME, "refuted", message, diagnostic=diagnostic)]
    return []


def _empty(analysis: Analysis, term: Term) -> list[Verdict]:
    """Rows on which prediction and target are one and the same, whatever the networks."""
    if term.target is None:
        return []
    found: list[Case] = []
    with suppress(Undecided):
        found += [case for case in analysis.cases(term) if is_empty(analysis, case)]
    if not found:
        return []
    message = "prediction and target are the same for every network: nothing is learnt"
    return [Verdict(NAME, "note", message, case=rows_text(analysis, found))]


def _never(analysis: Analysis, term: Term) -> list[Verdict]:
    """A term that no row computes: whatever it states, nothing learns it."""
    switched = term.rows is not None and level_of(term.rows) is Level.CONSTANT
    try:
        if switched or analysis.cases(term):
            return []
    except Undecided:
        return []
    message = "no row ever computes this term: its conditions exclude one another"
    diagnostic = Diagnostic(NAME, message, term.span, hint="look at its rows and their laws")
    return [Verdict(NAME, "refuted", message, diagnostic=diagnostic, cause="times")]


def _away(analysis: Analysis, term: Term) -> list[Verdict]:
    """Rows on which descent leads away from where the term holds."""
    if term.target is None:
        return []
    found: list[Case] = []
    with suppress(Undecided):
        found += [case for case in analysis.cases(term) if repels(analysis, case)]
    if not found:
        return []
    message = "descent leads away from the truth: the target moves against its own residual"
    hint = "turn the sign of what is subtracted from the network in the target"
    diagnostic = Diagnostic(NAME, message, (term.target.span or term.span), hint=hint)
    return [Verdict(NAME, "refuted", message, case=rows_text(analysis, found),
                    diagnostic=diagnostic)]  # fmt: skip


def _still(analysis: Analysis, term: Term) -> list[Verdict]:
    """Rows on which gradient flows, but cancels: F - F + stop(F)."""
    if term.target is None or not live_calls(analysis.objective, term.loss):
        return []
    found: list[Case] = []
    with suppress(Undecided):
        for case in analysis.cases(term):
            live = live_calls(analysis.objective, case.loss)
            still = live and not analysis.study(case, kind="free").variation
            if still and not is_empty(analysis, case):
                found.append(case)
    if not found:
        return []
    message = "the gradients that flow cancel: nothing is learnt"
    diagnostic = Diagnostic(NAME, message, term.span, hint="look at what is subtracted from itself")
    return [Verdict(NAME, "refuted", message, case=rows_text(analysis, found),
                    diagnostic=diagnostic)]  # fmt: skip


def _steps(analysis: Analysis, term: Term) -> list[Verdict]:
    """Where the steps of a term that match distributions lead."""
    return per_case(NAME, analysis, [term], lambda case: direction(NAME, analysis, case))


def is_empty(analysis: Analysis, case: Case) -> bool:
    """Are prediction and target of a case the same for every network? Raises `Undecided`."""
    exprs = [e for e in (case.prediction, case.target) if e is not None]
    calls = {n.network for e in exprs for n in walk(e) if isinstance(n, Evaluate)}
    lagging = any(analysis.objective.networks[n].average_of is not None for n in calls)
    return not lagging and not analysis.study(case, kind="free").residual


CHECK = Check(
    NAME,
    5,
    "Does every network that should learn receive gradient, and by no path that was not meant?",
    """A network that learns must be evaluated somewhere outside stop( ), in a term that its player
learns from where there are players. `frozen` and `ema` hold parameters fixed, not arguments:

    match d/ds[map(z, t, s)] to slow(map(z, t, s), s, s)

sends gradient through the landing point into the network although `slow` is an average; the target
was meant to be stop(slow(…)). A derivative outside stop( ) needs a second-order backward pass,
which is said as a note.""",
    _run,
    Example(
        good="""\
network       u(z, t, r); slow = ema(u, decay = 0.99)
differentiate r
target        match d/dr[map(z, t, r)] to stop(slow(map(z, t, r), r, r))
anchor        match u(z, t, t) to velocity""",
        bad="""\
network       u(z, t, r); slow = ema(u, decay = 0.99)
differentiate r
target        match d/dr[map(z, t, r)] to slow(map(z, t, r), r, r)
anchor        match u(z, t, t) to velocity""",
        status="refuted",
    ),
)
