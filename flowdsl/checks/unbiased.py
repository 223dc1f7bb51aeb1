"""Is the expected gradient zero at the truth, given that samples are random?"""

from __future__ import annotations

from flowdsl.checks.check import Check, per_case
from flowdsl.checks.report import Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.cases import Case
from flowdsl.proof.errors import Undecided
from flowdsl.proof.expand import parts
from flowdsl.proof.judge import Finding, judge
from flowdsl.proof.sample import NOISES
from flowdsl.proof.show import Printer
from flowdsl.spec.core import Apply, Expr, Given, PathState, PathVelocity, children, walk
from flowdsl.spec.objective import Objective
from flowdsl.spec.operations import OPERATIONS

NAME = "unbiased"


def _run(objective: Objective, analysis: Analysis) -> list[Verdict]:
    return per_case(NAME, analysis, analysis.matched, lambda case: _decide(analysis, case))


def _decide(analysis: Analysis, case: Case) -> Verdict:
    finding = judge(analysis, case)
    match finding.outcome:
        case "undecided":
            return Verdict(NAME, "undecided", finding.reason)
        case "refuted" | "biased":
            return Verdict(NAME, "biased", "the mean of the residual is not zero: see identity")
        case "order":
            return _order(analysis, case, finding)
    return _proved(analysis, case, finding)


def _order(analysis: Analysis, case: Case, finding: Finding) -> Verdict:
    """The weight may divide by the small quantity: say what is left of the bias."""
    message = f"the mean gradient is of order {finding.order} in {finding.small}"
    if _weight_note(analysis, case):
        message += ", before the row's weight"
    size = _sized(analysis, case)
    if size:
        message += f", with {size} taken as a number that does not depend on the sample"
    return Verdict(NAME, "order", message, order=finding.order)


def _proved(analysis: Analysis, case: Case, finding: Finding) -> Verdict:
    study = finding.study
    assert study is not None
    if finding.exact:
        return Verdict(NAME, "proved", "the residual is zero for every sample")
    printer = Printer.of(analysis, case)
    moves = parts(study.variation, NOISES)
    if moves.inside:
        return Verdict(
            NAME, "undecided", "the gradient depends on the conditional velocity's place"
        )
    if moves.linear or moves.higher:
        left = (
            f"E <{printer.state(moves.linear + moves.higher)}, "
            f"{printer.state(study.parts.linear + study.parts.higher)}>"
        )
        return _covariance(case, left)
    note = _weight_note(analysis, case) or _size_note(analysis, case)
    if note:
        return Verdict(NAME, "note", note)
    return Verdict(NAME, "proved", "the noise has mean zero and meets no moving factor")


def _covariance(case: Case, left: str) -> Verdict:
    message = "the conditional velocity stands in a factor through which gradient flows"
    diagnostic = Diagnostic(
        NAME,
        message,
        case.term.span,
        facts=(
            ("left over", left),
            ("where", "ξ = velocity - v, g a free change of the network"),
        ),
        hint="put stop( ) around the derivative or the target, or use the network's own velocity",
    )
    return Verdict(NAME, "biased", message, left_over=left, diagnostic=diagnostic)


def _weight_note(analysis: Analysis, case: Case) -> str:
    """A weight that depends on the sample's own error makes the loss robust: the solution moves."""
    try:
        own = analysis.weight(case).own_error
    except Undecided:
        return "the loss is no rational function of the error: it may act as a robust distance"
    if own:
        return (
            "the weight depends on the sample's own error: the loss is robust, "
            "its solution not quite the mean"
        )
    return ""


def _size_note(analysis: Analysis, case: Case) -> str:
    """A residual divided by its own size is robust too: its mean is not what it was."""
    size = _sized(analysis, case)
    if not size:
        return ""
    return (
        f"{size} depends on the conditional velocity: dividing by it makes the loss robust, "
        "its solution not quite the mean"
    )


def _sized(analysis: Analysis, case: Case) -> str:
    """A norm, or another size, of something random inside the term; empty when there is none."""
    base = analysis.base(case)
    for expr in (case.prediction, case.target):
        for node in walk(expr) if expr is not None else ():
            if not isinstance(node, Apply) or OPERATIONS[node.op].shape != "reduction":
                continue
            if _random(node, base):
                return node.span.text if node.span is not None else f"{node.op}(…)"
    return ""


def _random(node: Expr, base: Expr) -> bool:
    """Does anything in a tree vary when the row's state is known?"""
    if node == base:
        return False
    if isinstance(node, PathVelocity | PathState) or node in (Given("data"), Given("noise")):
        return True
    return any(_random(child, base) for child in children(node))


CHECK = Check(
    NAME,
    3,
    "Is the expected gradient zero when every network computes the truth?",
    """The conditional velocity is v + ξ with a random ξ of mean zero. Where ξ enters linearly it
vanishes in the mean, unless gradient flows through what multiplies it: then a covariance survives
and the solution is another one.

    target  match u(z, t, r) to velocity - (t - r) * d/dt[u(z, t, r)]        # no stop

is biased: (t - r)^2 E <J g[ξ], J u[ξ]> and its like are left over. A weight made of the sample's
own error is a note, not an error: authors use it all the same.""",
    _run,
)
