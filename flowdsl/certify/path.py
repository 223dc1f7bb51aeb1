"""The spec's path as numbers: its schedules read off its body, whichever way it runs."""

from __future__ import annotations

import torch

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.inverse import SHOWN, inverted
from flowdsl.certify.linear import combination
from flowdsl.certify.numbers import Numbers
from flowdsl.certify.shape import quotient
from flowdsl.exact.paths import AffinePath, Schedule, asinh_clock
from flowdsl.exact.told import Telling
from flowdsl.spec.core import ZERO, Expr, Formal, Kind
from flowdsl.spec.objective import Objective, Path

DATA_STD = 0.5  # where the clock of a path without an end turns from linear to logarithmic
ENDS = (Formal("data", Kind.STATE), Formal("noise", Kind.STATE))


def affine_path(objective: Objective, path: Path, numbers: Numbers) -> AffinePath:
    """`z(t) = alpha(t) data + sigma(t) noise` of a spec, with the derivatives that it resolved.

    Raises `Uncertified` where the path is not linear in its ends, or its schedules need more than
    the time.
    """
    alpha, sigma = _schedules(objective, path, path.body, numbers)
    alpha_dot, sigma_dot = _schedules(objective, path, path.velocity, numbers)
    probe = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    still = bool((alpha(probe) - 1).abs().max() < 1e-12)
    return AffinePath(
        name=path.state,
        alpha=alpha,
        alpha_dot=alpha_dot,
        sigma=sigma,
        sigma_dot=sigma_dot,
        clock=asinh_clock(DATA_STD) if still else None,
    )


def telling(objective: Objective, path: Path, numbers: Numbers) -> Telling:
    """The entry of states that tells their time. Raises `Uncertified` where the factor of the noise
    cannot be turned around."""
    own, time = affine_path(objective, path, numbers), Formal(path.time, Kind.TIME)
    factor = combination(path.body, objective.networks).get(ENDS[1], ZERO)
    tree = inverted(factor, time)
    if tree is None:
        raise Uncertified("a network is not shown the time, and no state tells it", path.span)
    rates = own.sigma_dot(torch.linspace(0.1, 0.9, 5, dtype=torch.float64))
    steady = bool((rates - rates[0]).abs().max() < 1e-12)
    return Telling(
        own,
        lambda entry: numbers.rows(tree, {SHOWN: entry}, entry),
        (lambda t, s: own.sigma_dot(t)) if steady else lambda t, s: quotient(own.sigma, t, s),
    )


def _schedules(
    objective: Objective, path: Path, body: Expr, numbers: Numbers
) -> tuple[Schedule, Schedule]:
    """The factors of data and noise, as functions of a time (rows,)."""
    terms = combination(body, objective.networks)
    time = Formal(path.time, Kind.TIME)
    if not set(terms) <= set(ENDS):
        raise Uncertified(f"the path {path.state} is made of more than data and noise", path.span)

    def schedule(end: Expr) -> Schedule:
        factor = terms.get(end, ZERO)
        return lambda t: numbers.rows(factor, {time: t}, t)

    return schedule(ENDS[0]), schedule(ENDS[1])
