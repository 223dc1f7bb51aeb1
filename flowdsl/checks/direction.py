"""Does gradient descent lead towards the truth, where a target contains the network itself?

`match F to stop(F - c R)` is satisfied where R is zero, whatever the sign of c; but descent moves F
by -c R. A change g of the network at one place changes the residual there by k g, through targets
under stop too, while gradient flows through p g: descent diminishes the residual only if p k > 0.
"""

from __future__ import annotations

from dataclasses import replace

from flowdsl.calculus.errors import Pole, Undecided
from flowdsl.calculus.state import Atom, FunctionAtom
from flowdsl.proof.analysis import Analysis, Study
from flowdsl.proof.numeric import example
from flowdsl.spec.core import Expr, Stop, transform, walk
from flowdsl.truth.cases import Case


def repels(analysis: Analysis, case: Case) -> bool:
    """Does descent of a case's error move its network away from the truth?"""
    if case.target is None or not any(isinstance(n, Stop) for n in walk(case.target)):
        return False
    own = analysis.values  # a constant decides the sign of what it multiplies
    try:
        study = own.study(case, kind="free")
        whole = own.study(_without_stops(case), kind="free")
        signs = [
            _sign(own, study, p * whole.variation.terms[atom])
            for atom, p in study.variation.terms.items()
            if _is_change(atom) and atom in whole.variation.terms
        ]
    except (Undecided, Pole):
        return False
    return bool(signs) and all(sign < 0 for sign in signs)


def _without_stops(case: Case) -> Case:
    def bare(expr: Expr) -> Expr:
        return transform(expr, lambda node: node.body if isinstance(node, Stop) else node)

    target = None if case.target is None else bare(case.target)
    return replace(case, prediction=bare(case.prediction), target=target)


def _is_change(atom: Atom) -> bool:
    """The change of a network itself, not of a derivative of it."""
    if not isinstance(atom, FunctionAtom) or any(atom.orders) or atom.directions:
        return False
    return str(atom.name[0]).startswith("δ")


def _sign(analysis: Analysis, study: Study, x: object) -> float:
    """The sign of a coefficient at times in their usual order; 0 where it has no value."""
    here = example(analysis, study)
    try:
        value = here.scalar(x)
    except (ArithmeticError, ValueError, KeyError):
        return 0.0
    return (value > 1e-12) - (value < -1e-12)
