"""Is the expected gradient zero at the truth, given that samples are random?"""

from __future__ import annotations

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.state import State
from flowdsl.checks.check import Check, Example, condition_text, per_case
from flowdsl.checks.matching import vanishes
from flowdsl.checks.report import Verdict
from flowdsl.diagnostics import Diagnostic
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.chance import Covariance, Size, covariance, measured, reductions, sizes
from flowdsl.proof.judge import Finding, judge
from flowdsl.proof.orders import Order, order_of
from flowdsl.proof.show import Printer, times
from flowdsl.proof.weight import course, marked, moves_without_error, moving_weights
from flowdsl.spec.core import Expr
from flowdsl.spec.objective import Objective
from flowdsl.truth.cases import Case

NAME = "unbiased"
ROBUST = (
    "the weight depends on the sample's own error: the loss is robust, "
    "its solution not quite the mean"
)


def _run(objective: Objective, analysis: Analysis) -> list[Verdict]:
    return per_case(NAME, analysis, analysis.matched, lambda case: _decide(analysis, case))


def _decide(analysis: Analysis, case: Case) -> Verdict:
    step = vanishes(NAME, analysis, case)
    if step is not None:
        return step
    finding = judge(analysis, case)
    match finding.outcome:
        case "undecided":
            return Verdict(NAME, "undecided", finding.reason)
        case "refuted" | "biased":
            return Verdict(NAME, "biased", "the mean of the residual is not zero: see identity")
    assert finding.study is not None
    known = sizes(finding.study, analysis.base(case))
    if finding.outcome == "order":
        return _order(analysis, case, finding, known)
    if finding.exact:
        return _exact(analysis, case)
    found = _product(analysis, case, finding.study, known)
    return found or _weighted(analysis, case, finding.study) or _selected(
        analysis, case, finding.study
    ) or Verdict(NAME, "proved", "the noise has mean zero and meets no moving factor")  # fmt: skip


# one verdict per reason


def _exact(analysis: Analysis, case: Case) -> Verdict:
    """No error, hence no weight and no distance matters; a penalty that moves the network does."""
    if moving_weights(analysis, case) and moves_without_error(analysis, case):
        return _moved(analysis, case)
    return Verdict(NAME, "proved", "the residual is zero for every sample")


def _product(
    analysis: Analysis, case: Case, study: Study, known: dict[int, Size]
) -> Verdict | None:
    """Products of two random factors, within the term."""
    printer = Printer.of(analysis, case)
    found = covariance(study, known)
    if found is None:
        return None
    left = _product_text(printer, found)
    if not found.sizes:
        message = "the conditional velocity stands in a factor through which gradient flows"
        hint = "put stop( ) around the derivative or the target, or use the network's own velocity"
        return _biased(case, message, left, hint)
    names = ", ".join(dict.fromkeys(size.text for size in found.sizes))
    if all(size.own for size in found.sizes):
        message = (
            f"{names} depends on the conditional velocity: dividing by it makes the loss robust, "
            "its solution not quite the mean"
        )
        return Verdict(NAME, "note", message, left_over=left)
    message = f"{names} and the residual depend on the same noise"
    return _biased(case, message, left, "use a number that is known with the state and the times")


def _weighted(analysis: Analysis, case: Case, study: Study) -> Verdict | None:
    """The row's loss: a weight by the sample, by the network, by the error itself."""
    own = False
    for expr in _factors(analysis, case):
        size = measured(study, analysis.base(case), expr)
        if not size.noises or not _shared(study, size):
            continue
        if not size.own:
            message = f"the weight {size.text} and the residual depend on the same noise"
            left = f"E {size.text} * {_gradient_text(analysis, case, study)}"
            return _biased(case, message, left, "weigh by times, labels or the state, or take the "
                                                "mean over the batch")  # fmt: skip
        own = True
    if moving_weights(analysis, case):
        return _moved(analysis, case)
    way = course(analysis, case)
    if way == "constant" and not own:
        return None
    left = f"E {times(_slope_text(analysis, case), '(prediction - target)')}"
    if way == "growing":
        message = "the weight grows with the sample's own error: the solution is not the mean"
        return _biased(case, message, left, "let the loss be a multiple of the error")
    if way == "unknown":
        return Verdict(NAME, "undecided", "how the loss depends on the error is not known")
    return Verdict(NAME, "note", ROBUST, left_over=left)


def _moved(analysis: Analysis, case: Case) -> Verdict:
    """Gradient through the weight pushes the network wherever the error has a variance."""
    node = moving_weights(analysis, case)[0]
    name = Printer.of(analysis, case).call_text(node)
    message = f"gradient flows into {name} through the loss beside the error"
    left = f"E error * change of the weight with {name}"
    return _biased(case, message, left, "put stop( ) around the weight")


def _selected(analysis: Analysis, case: Case, study: Study) -> Verdict | None:
    """Rows picked by a number of the sample: the noise has another mean on them."""
    for condition, value in case.facts.items():
        size = measured(study, analysis.base(case), condition)
        if size.noises and _shared(study, size):
            shown = condition_text(analysis, case, condition, value)
            shown = shown if "…" not in shown else size.text
            message = f"which rows there are and their residual depend on the same noise: {shown}"
            left = f"E[{_linear_text(analysis, case, study)} on {shown}]"
            return _biased(case, message, left, "pick rows by draws, times or the state")
    return None


def _shared(study: Study, size: Size) -> bool:
    """Does the residual contain noise that is in this number?"""
    inside = {n for s in (study.parts.linear, study.parts.higher) for n in _noises(s)}
    return bool(size.noises & inside or "?" in size.noises)


def _noises(state: State) -> set[str]:
    return {a.name for a in state.atoms() if hasattr(a, "name") and isinstance(a.name, str)}


def _factors(analysis: Analysis, case: Case) -> list[Expr]:
    """The sizes of the sample in a row's weight, the error itself left out."""
    try:
        slope = analysis.weight(case).slope
    except (Undecided, Pole):
        return list(reductions(marked(case)))
    scalars = analysis.loss_scalars
    keys = [scalars.opaques.get(i) for i in sorted(scalars.generators_in(slope))]
    return [node for key in keys if isinstance(key, Expr) for node in reductions(key)]


# orders


def _order(analysis: Analysis, case: Case, finding: Finding, known: dict[int, Size]) -> Verdict:
    """What is left of the gradient, beside what another flow leaves: by how much the solution is
    off."""
    strange = {i: size for i, size in known.items() if not size.own}
    found = order_of(analysis, case, finding, strange)
    name = finding.small
    left = _product_text(Printer.of(analysis, case), found.gradient.leading)
    left = f"{_power(name, found.gradient.order)} * {left}"
    if found.relative < 1:
        message = (
            f"residual O({_power(name, finding.order)}), but its gradient is as large as "
            f"that of another flow, O({_power(name, found.signal)})"
        )
        return _biased(case, message, left, "put stop( ) around the target")
    message = _order_text(name, finding, found, known)
    if course(analysis, case) == "falling":
        message += "; the loss is robust besides, its solution not quite the mean"
    return Verdict(NAME, "order", message, order=found.relative, left_over=left)


def _order_text(name: str, finding: Finding, found: Order, known: dict[int, Size]) -> str:
    parts = [f"residual O({_power(name, finding.order)})"]
    bias = found.gradient.order + (found.weight or 0)
    if found.weight is None:
        parts.append(f"gradient bias O({_power(name, bias)}) before the row's weight")
    elif found.weight:
        parts.append(f"gradient bias O({_power(name, bias)}) after the weight")
    else:
        parts.append(f"gradient bias O({_power(name, bias)})")
    text = ", ".join(parts)
    signal = found.signal + (found.weight or 0)
    text += f", against O({_power(name, signal)}) of another flow: the solution is off by "
    text += f"O({_power(name, found.relative)})"
    owned = [size.text for size in known.values() if size.own]
    if owned:
        text += f", with {', '.join(owned)} taken as a number that does not depend on the sample"
    return text


def _power(name: str, order: int) -> str:
    if order == 0:
        return "1"
    return name if order == 1 else f"{name}^{order}"


# text


def _biased(case: Case, message: str, left: str, hint: str) -> Verdict:
    diagnostic = Diagnostic(
        NAME,
        message,
        case.term.span,
        facts=(
            ("left over", left),
            ("where", "ξ = velocity - v, g a free change of the network"),
        ),
        hint=hint,
    )
    return Verdict(NAME, "biased", message, left_over=left, diagnostic=diagnostic)


def _product_text(printer: Printer, found: Covariance) -> str:
    return f"E <{printer.state(found.variation)}, {printer.state(found.residual)}>"


def _gradient_text(analysis: Analysis, case: Case, study: Study) -> str:
    printer = Printer.of(analysis, case)
    return f"<{printer.state(study.variation)}, {_linear_text(analysis, case, study)}>"


def _linear_text(analysis: Analysis, case: Case, study: Study) -> str:
    return Printer.of(analysis, case).state(study.parts.linear + study.parts.higher)


def _slope_text(analysis: Analysis, case: Case) -> str:
    try:
        return analysis.loss_scalars.text(analysis.weight(case).slope)
    except (Undecided, Pole):
        return "weight(error)"


CHECK = Check(
    NAME,
    3,
    "Is the expected gradient zero when every network computes the truth?",
    """The conditional velocity is v + ξ with a random ξ of mean zero. Where ξ enters linearly it
vanishes in the mean, unless gradient flows through what multiplies it, or a weight contains it too:
then a covariance survives and the solution is another one.

    target  match u(z, t, r) to velocity - (t - r) * d/dt[u(z, t, r)]        # no stop
    loss    mse / norm(velocity)

are biased: (t - r)^2 E <J g[ξ], J u[ξ]> and its like are left over. A weight that falls with the
sample's own error is a note, not an error: authors use it all the same. In a small quantity the
verdict says of which order the mean gradient is, and of which that of another flow: their quotient
is how far off the solution is.""",
    _run,
    Example(
        good="target        match u(z, t, r) to stop(velocity - (t - r) * d/dt[u(z, t, r)])",
        bad="target        match u(z, t, r) to velocity - (t - r) * d/dt[u(z, t, r)]",
        status="biased",
    ),
)
