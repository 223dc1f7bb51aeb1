"""Orders in a small quantity: of the mean gradient at the truth, of the weight, and of the gradient
that another flow would leave.

The residual alone does not say how far off the solution is: AlphaFlow's is O(alpha^2) at the truth,
but O(alpha) for any other flow, so that its solution is off by O(alpha).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.field import Element
from flowdsl.proof.analysis import Analysis
from flowdsl.proof.chance import Size, Slope, mean_gradient
from flowdsl.proof.judge import Finding
from flowdsl.proof.weight import weight_of
from flowdsl.truth.cases import Case
from flowdsl.truth.setting import ERROR


@dataclass(frozen=True)
class Order:
    """Leading orders of the mean gradient: `gradient` at the truth, `signal` with another flow in
    the networks; both without the row's `weight`, whose order is None where it is not known."""

    gradient: Slope
    signal: int
    weight: int | None

    @property
    def relative(self) -> int:
        """The order of the distance between the solution and the truth."""
        return self.gradient.order - self.signal


def order_of(analysis: Analysis, case: Case, finding: Finding, known: Mapping[int, Size]) -> Order:
    """The orders of a case that holds to some order. Raises `Undecided`."""
    assert finding.study is not None
    gradient = mean_gradient(analysis, finding.study, known, finding.order + 1)
    if gradient is None:
        raise Undecided(f"the mean gradient vanishes beyond order {finding.order + 1}")
    other = analysis.study(case, kind="hat", bindings=finding.bindings)
    signal = mean_gradient(analysis, other, known, gradient.order)
    if signal is None:
        raise Undecided("another flow leaves nothing over")
    return Order(gradient, signal.order, _weight(analysis, case, finding))


def _weight(analysis: Analysis, case: Case, finding: Finding) -> int | None:
    """The order of the row's weight, where the error is of the order of its residual."""
    assert finding.study is not None
    scalars = analysis.loss_scalars
    series, e = finding.study.context.series, analysis.small
    size = next(
        (k for k in range(series.lowest(finding.study.residual, e), finding.order + 1)
         if series.coefficient(finding.study.residual, e, k)), 0,
    )  # fmt: skip
    index = scalars.small()
    try:
        step = scalars.generator(index)
        bindings = {x: _translated(analysis, value, step) for x, value in finding.bindings.items()}
        slope = weight_of(analysis, case, bindings).slope
        error = scalars.index(ERROR)
        slope = scalars.substitute(slope, error, scalars.generator(error) * step ** (2 * size))
        return scalars.valuation(slope, index)
    except (Undecided, Pole):
        return None
    finally:
        scalars.release()


def _translated(analysis: Analysis, bound: Element, step: Element) -> Element:
    """A polynomial in symbols and the small quantity, in the loss's field."""
    own, scalars = analysis.scalars, analysis.loss_scalars
    total = scalars.zero
    for monomial, c in bound.numer.items():
        term = scalars.one * c
        for index, power in enumerate(monomial):
            if power:
                name = own.name_of(index)
                factor = step if index == analysis.small else scalars.symbol(name)
                term = term * factor**power
        total = total + term
    return total
