"""What can be said of terms that are minimised: they claim no identity.

A distribution-level term is at its truth when the generated samples have the law of the data. Then
an auxiliary velocity of renoised samples is v, and a discriminator, which cannot tell the two
apart, is constant, so that no gradient reaches the samples through it.
"""

from __future__ import annotations

from flowdsl.checks.report import Verdict
from flowdsl.spec.core import Evaluate, Expr, Given, Kind, PathState, PathVelocity, walk
from flowdsl.spec.objective import Objective, Term
from flowdsl.truth.live import live_calls

OPENING = "no identity is claimed"


def minimised(objective: Objective, check: str) -> list[Verdict]:
    """One verdict for each term without a target."""
    return [
        Verdict(check, "note", _said(objective, term), term.name)
        for term in objective.terms
        if term.target is None
    ]


def _said(objective: Objective, term: Term) -> str:
    """The verdict's sentence, from what the term's numbers are made of."""
    nodes = list(walk(term.prediction))
    judges = [n.head for n in nodes if isinstance(n, Evaluate) and _judges(objective, n)]
    generated = any(
        isinstance(n, PathState | PathVelocity) and _is_generated(n.data) for n in nodes
    )
    generated = generated or any(_judges_a_sample(objective, n) for n in nodes)
    if judges and generated:
        names = ", ".join(dict.fromkeys(judges))
        return (
            f"{OPENING}: at the truth generated samples have the data's law, where {names} is "
            "constant and passes no gradient to them; that the law is reached is not proved"
        )
    if judges:
        return f"{OPENING}: {', '.join(dict.fromkeys(judges))} learns a number, not a flow"
    if generated:
        return (
            f"{OPENING}: at the truth generated samples have the data's law; whether this term "
            "is then at its minimum is not proved"
        )
    if not live_calls(objective, term.prediction):
        return f"{OPENING}, and no network learns from it"
    return f"{OPENING}: where this term is at its minimum is not proved"


def _judges(objective: Objective, node: Evaluate) -> bool:
    """A learning network that answers with a number for a sample, or for its features."""
    network = objective.networks[node.network]
    seen = {kind for _, kind in network.arguments}
    gives_number = objective.kind(node) is Kind.SCALAR
    return gives_number and not network.frozen and bool(seen & {Kind.STATE, Kind.FEATURES})


def _judges_a_sample(objective: Objective, node: Expr) -> bool:
    """Is a number asked for a sample that another network made?"""
    if not isinstance(node, Evaluate) or not _judges(objective, node):
        return False
    return any(
        isinstance(inner, Evaluate) and objective.kind(inner) is Kind.STATE
        for arg in node.args
        for inner in walk(arg)
    )


def _is_generated(data: Expr) -> bool:
    """Does something other than the data stand at the path's end?"""
    return not isinstance(data, Given)
