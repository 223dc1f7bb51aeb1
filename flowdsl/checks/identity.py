"""Is `prediction - target` zero at the truth, and which identity makes it so?"""

from __future__ import annotations

from itertools import combinations

from flowdsl.calculus.errors import Undecided
from flowdsl.calculus.expand import parts
from flowdsl.calculus.interpret import Reader
from flowdsl.checks.check import Check, Example, per_case
from flowdsl.checks.matching import otherwise, vanishes
from flowdsl.checks.minimised import minimised
from flowdsl.checks.report import Status, Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.derive import derived_text
from flowdsl.proof.generated import misses_data, reused_noise
from flowdsl.proof.judge import Finding, judge
from flowdsl.proof.numeric import witness
from flowdsl.proof.show import Printer, times
from flowdsl.proof.small import times_of
from flowdsl.spec.core import Evaluate, Expr, PathState, walk
from flowdsl.spec.notation import Notation
from flowdsl.spec.objective import Objective
from flowdsl.truth.cases import Case
from flowdsl.truth.live import learning_calls, taught
from flowdsl.truth.sample import NOISES, X, outer_name

NAME = "identity"
LONG = 400  #: a message longer than this says less, so that one can read it
#: In this order of preference where several identities would each do.
SWITCHED = ("tangent", "eulerian", "lagrangian", "semigroup")


def _run(objective: Objective, analysis: Analysis) -> list[Verdict]:
    verdicts = per_case(NAME, analysis, analysis.matched, lambda case: _decide(analysis, case))
    if not analysis.matched:
        verdicts.append(Verdict(NAME, "not applicable", "no term matches one thing to another"))
    verdicts += minimised(objective, NAME)
    notes = [*sorted(analysis.notes), *_unused(objective), *_assumed(objective)]
    return verdicts + [Verdict(NAME, "note", text) for text in notes]


def _unused(objective: Objective) -> list[str]:
    """`differentiate` says what moves in a derivative that no term takes."""
    found = (n for t in objective.terms for n in walk(t.loss) if isinstance(n, Evaluate))
    if objective.moving is None or any(node.directions for node in found):
        return []
    return [f"`differentiate {objective.moving.time}` is not used: no term takes a derivative"]


def _assumed(objective: Objective) -> list[str]:
    """A frozen network that no stage trains is what the proof takes it to be."""
    shown = {n.network for t in objective.terms for n in walk(t.loss) if isinstance(n, Evaluate)}
    carried = {name for stage in objective.stages for name, _ in stage.carried}
    return [
        f"{name} is frozen and no stage trains it: it is taken to be exact"
        for name, network in objective.networks.items()
        if network.frozen and name in shown and name not in carried
    ]


def _decide(analysis: Analysis, case: Case) -> Verdict:
    generated = misses_data(analysis, case)
    if generated is not None:
        return _not_the_data(case, generated)
    reused = reused_noise(analysis, case)
    if reused is not None:
        return _reused(case, *reused)
    step = otherwise(NAME, analysis, case) or vanishes(NAME, analysis, case)
    if step is not None:
        return step
    finding = judge(analysis, case)
    printer = Printer.of(analysis, case)
    match finding.outcome:
        case "proved":
            return _proved(analysis, case, finding, printer)
        case "order":
            return _order(finding, printer)
        case "undecided":
            return Verdict(NAME, "undecided", finding.reason)
    return _wrong(analysis, case, finding, printer)


def _not_the_data(case: Case, generated: Expr) -> Verdict:
    message = "what stands in the place of the data does not have their law at the truth"
    hint = "let the map lead from the noise, at its time, to the data's time"
    diagnostic = Diagnostic(NAME, message, generated.span or case.term.span, hint=hint)
    return Verdict(NAME, "refuted", message, diagnostic=diagnostic)


def _reused(case: Case, noise: Expr, state: PathState) -> Verdict:
    name, where = Notation().text(noise), outer_name(state)
    message = f"given {where}, {name} is not fresh: the flow does not start where samples will"
    hint = f"draw a noise of its own for the inner path, as {where} is made of {name}"
    diagnostic = Diagnostic(NAME, message, state.span or case.term.span, hint=hint)
    return Verdict(NAME, "refuted", message, diagnostic=diagnostic)


def _proved(analysis: Analysis, case: Case, finding: Finding, printer: Printer) -> Verdict:
    assert finding.study is not None
    learner = taught(analysis.objective, case.prediction, case.target)
    if learner is not None and learner.head in finding.study.networks.regression:
        return _regression(case, finding, printer, learner)
    message = "zero" if finding.exact else "zero in the mean"
    if finding.values_only:
        message += ", at these values of the constants only"
        return Verdict(NAME, "proved", message)
    return Verdict(NAME, "proved", message, identities=used(analysis, case))


def _regression(case: Case, finding: Finding, printer: Printer, learner: Evaluate) -> Verdict:
    """A head that no map uses: what it predicts must determine the velocity."""
    assert finding.study is not None
    learnt = finding.study.networks.regression[learner.head]
    study = finding.study
    mean = f"E[velocity | {printer.state_name}]"
    state = study.context.calculus.symbol(X).scaled(learnt.p)
    predicted = _plus(printer.state(state), times(printer.scalar(learnt.q), mean))
    plain = learnt.scale == 1 and learnt.shown == learnt.time
    call = f"{learner.head}({printer.state_name}, {printer.scalar(study.row.time)})"
    call = call if plain else printer.call_text(learner)
    if not learnt.q:
        message = "what the network predicts does not determine the velocity"
        diagnostic = Diagnostic(NAME, message, facts=(("predicts", printer.state(state)),),
                                hint="predict the velocity, the noise or the data")  # fmt: skip
        return Verdict(NAME, "refuted", message, left_over=printer.state(state),
                       diagnostic=diagnostic)  # fmt: skip
    if not learnt.p and learnt.q == 1:
        return Verdict(NAME, "proved", f"{call} learns {mean}")
    negative = learnt.q != 1 and printer.scalar(learnt.q).startswith("-")
    divisor = printer.scalar(-learnt.q if negative else learnt.q)
    simple = divisor.isidentifier() or divisor.isdigit() or divisor.count("(") == 1
    divisor = divisor if simple and " " not in divisor else f"({divisor})"
    top = _plus(call, printer.state(-state)) if not negative else _plus(
        printer.state(state), f"-{call}")  # fmt: skip
    solved = f"({top})" if learnt.p else f"-{call}" if negative else call
    solved += "" if divisor == "1" else f" / {divisor}"
    message = f"{call} learns {predicted}, hence velocity = {solved}"
    if len(message) > LONG:  # a path of many terms
        goal = Notation().text(case.prediction if case.target is None else case.target)
        message = f"{call} learns E[{goal} | {printer.state_name}], which determines the velocity"
    return Verdict(NAME, "proved", message)


def _plus(left: str, right: str) -> str:
    """`left + right` of two texts, either of which may be 0 or begin with a minus."""
    if left == "0":
        return right
    if right == "0":
        return left
    return f"{left} - {right[1:]}" if right.startswith("-") else f"{left} + {right}"


def _order(finding: Finding, printer: Printer) -> Verdict:
    assert finding.left is not None
    assert finding.study is not None
    left = printer.left_over(finding.study, finding.left)
    if finding.expanded is not None and finding.expanded.higher:
        left = f"E {left}"
    power = f"^{finding.order}" if finding.order > 1 else ""
    message = f"holds to order {finding.order} in {finding.small}, exact where it is 0"
    return Verdict(
        NAME, "order", message, left_over=f"{finding.small}{power} * [{left}]", order=finding.order
    )


def _wrong(analysis: Analysis, case: Case, finding: Finding, printer: Printer) -> Verdict:
    assert finding.left is not None
    assert finding.study is not None
    assert case.target is not None
    left = printer.left_over(finding.study, finding.left)
    status: Status = "biased" if finding.outcome == "biased" else "refuted"
    facts = []
    if status == "biased":
        mean = parts(finding.study.context.series.at_zero(
            finding.study.target, finding.study.context.eta), NOISES).mean  # fmt: skip
        solution = printer.state(mean)
        message = f"learns {solution} instead of the map"
        facts.append(("learns", solution))
    else:
        message = "the target is not what the map implies"
    straight = _on_diagonal(analysis, case, finding.study)
    derived = "" if straight else derived_text(analysis)
    if derived:
        facts.append(("derived", derived))
    example = witness(analysis, finding.study, finding.left)
    facts.append(("left over", left + (f"      {example}" if example else "")))
    facts += _legend(" ".join(value for _, value in facts))
    diagnostic = Diagnostic(
        NAME, message, case.target.span or case.term.span, "here" if case.target.span else "",
        tuple(facts),
        "write the derived target" if derived else
        "where its times are equal the network is the velocity" if straight else "",
    )  # fmt: skip
    return Verdict(NAME, status, message, left_over=left, diagnostic=diagnostic)


def _legend(text: str) -> list[tuple[str, str]]:
    """What the signs of a left-over mean that no spec is written with."""
    signs = {
        "J ": "J u[w]: the derivative of u in the state, along w",
        "∂": "∂t u: the derivative in the time alone",
        "D2 ": "D2 u[w, w']: the second derivative in the state",
        "along none": "along none: the state stays where it is",
        "ξ": "ξ = velocity - E[velocity | z]",
    }
    found = [meaning for sign, meaning in signs.items() if sign in text]
    return [("where", "; ".join(found))] if found else []


def _on_diagonal(analysis: Analysis, case: Case, study: Study) -> bool:
    """Are the times equal wherever a network is evaluated?"""
    reader = Reader(study.context, study.networks, study.row)
    calls = learning_calls(analysis.objective, case.prediction, case.target)
    if not analysis.objective.maps or not calls:
        return False
    try:
        return all(
            study.networks.jumps(call) and start == end
            for call in calls
            for start, end in (times_of(study, reader, call),)
        )
    except (Undecided, KeyError):
        return False


def holds(analysis: Analysis, case: Case, names: frozenset[str]) -> bool:
    """Is the residual zero in the mean with only these identities (and the boundary) in force?"""
    try:
        sorted_parts = analysis.study(case, rules=names | {"boundary"}).parts
    except Undecided:
        return False
    return sorted_parts.affine and not sorted_parts.mean


def used(analysis: Analysis, case: Case) -> tuple[tuple[str, ...], ...]:
    """The minimal sets of identities that prove a case, smallest first.

    Found with the constants at their values, which is faster and cannot need fewer identities by
    accident: the identities do not know the constants.
    """
    analysis = analysis.values
    switched = [n for n in SWITCHED if any(r.name == n for r in analysis.identities)]
    everything = frozenset(switched)
    needed = frozenset(n for n in switched if not holds(analysis, case, everything - {n}))
    if holds(analysis, case, needed):
        return (_ordered(needed),)
    rest = [n for n in switched if n not in needed]
    minimal: list[frozenset[str]] = []
    for size in range(1, len(rest) + 1):
        for extra in combinations(rest, size):
            candidate = needed | set(extra)
            if any(known <= candidate for known in minimal):
                continue
            if holds(analysis, case, candidate):
                minimal.append(candidate)
    return tuple(_ordered(names) for names in minimal)


def _ordered(names: frozenset[str]) -> tuple[str, ...]:
    return tuple(n for n in SWITCHED if n in names)


CHECK = Check(
    NAME,
    2,
    "Is prediction - target zero when every network computes the truth?",
    """The map is solved for its network with the exact flow in its place, the result is put into
the term, and the identities of flow maps reduce it to a normal form. The conditional velocity is
replaced by its mean. What remains must be zero.

    target  match u(z, t, r) to stop(velocity + (t - r) * d/dt[u(z, t, r)])

is refuted, because the Eulerian identity has a minus there; the left-over is 2 * (t - r) *
d/dt[u(z, t, r)].""",
    _run,
    Example(
        good="target        match u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])",
        bad="target        match u(z, t, r) to stop(velocity + (t - r) * d/dt[u(z, t, r)])",
        status="refuted",
    ),
)
