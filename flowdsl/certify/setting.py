"""Where an objective is measured: its path, a mixture with labels, and its exact networks there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from flowdsl.certify.errors import Uncertified
from flowdsl.certify.guided import GuidedField, Strength, strength_of
from flowdsl.certify.means import MeanReader
from flowdsl.certify.numbers import Numbers
from flowdsl.certify.path import affine_path, telling
from flowdsl.certify.places import Place, RowKind, places, row_kinds
from flowdsl.certify.regression import Guide
from flowdsl.certify.shape import MapShape
from flowdsl.certify.solution import Solution
from flowdsl.certify.truth import Truths
from flowdsl.exact.estimation import LossLike, RowField
from flowdsl.exact.field import MixtureField
from flowdsl.exact.flow import FlowMap
from flowdsl.exact.mixture import GaussianMixture
from flowdsl.exact.networks import Truth
from flowdsl.exact.paths import AffinePath
from flowdsl.exact.told import ToldField
from flowdsl.exact.variation import Memo
from flowdsl.spec.core import Expr, Kind, Level
from flowdsl.spec.kinds import level_of
from flowdsl.spec.objective import Objective

Law = Callable[[GaussianMixture], GaussianMixture]
Learn = Callable[[AffinePath], Mapping[str, Guide]]
STEPS = 1_000_000  #: a long run, so that a warm-up counted in steps ends within it
ACCURATE = 5e-5  #: mean error of an average velocity at which a flow's steps are fine enough
COARSEST = 1e-2
TRIED = (2, 3, 4, 6, 8, 12, 16)
PROBES = 128
OTHER = 8  #: seed of the mixture whose flow is not to be learned


def training(progress: float) -> dict[str, float]:
    """`progress`, `step` and `steps` at a share of training."""
    return {"progress": progress, "step": round(progress * STEPS), "steps": STEPS}


@dataclass(frozen=True)
class Setting:
    """Exact networks for one objective; `error` is that of their flows, `kinds` are its rows.

    `elsewhere` are the networks of another field's flow: with them, a term that vanishes ties
    nothing to the data.
    """

    field: RowField
    truths: dict[str, Truth]
    elsewhere: dict[str, Truth]
    error: float
    kinds: tuple[RowKind, ...]
    places: tuple[Place, ...]
    numbers: Numbers


def mixture(seed: int = 5) -> GaussianMixture:
    """Three long Gaussians, turned by a third of a half turn each, in two classes.

    Jacobians of two halves of its flow, swapped, differ by three per cent of their size. They
    overlap enough for guidance to be gentle: its flow is then accurate in few steps.
    """
    return GaussianMixture.random(
        dimension=2, components=3, classes=2, spread=1.0, stds=(0.3, 1.2), seed=seed
    )


@dataclass(frozen=True)
class Made:
    """The truths of an objective's networks, and where its rows stand."""

    truths: Truths
    kinds: tuple[RowKind, ...]
    places: tuple[Place, ...]
    numbers: Numbers
    error: float


def _itself(own: GaussianMixture) -> GaussianMixture:
    return own


def _nobody(path: AffinePath) -> Mapping[str, Guide]:
    del path
    return {}


def setting(
    objective: Objective, loss: LossLike, law: Law = _itself, learn: Learn = _nobody
) -> Setting:
    """The setting of an objective that `bare` has made; `law` is what the data's law is made of a
    mixture, `learn` tells what networks given from outside compute. Raises `Uncertified`."""
    own = made(objective, loss, law, learn)
    truths, path = own.truths, own.truths.data.path
    other = replace(truths, data=MixtureField(law(mixture(OTHER)), path), memo=Memo())
    networks = objective.networks.values()
    exact = {n.name: truths.of(n) for n in networks}
    away = {n.name: (truths if n.frozen else other).of(n) for n in networks}
    told = truths.telling
    rows = truths.data if told is None else ToldField(truths.data, told)
    return Setting(rows, exact, away, own.error, own.kinds, own.places, own.numbers)


def made(objective: Objective, loss: LossLike, law: Law = _itself, learn: Learn = _nobody) -> Made:
    """The truths of an objective that `bare` has made. Raises `Uncertified`."""
    if len(objective.paths) != 1:
        raise Uncertified("more than one path, and no inner flow under a state of the first")
    constants = {name: float(value) for name, value in objective.constants.items()}
    numbers = Numbers(constants, training(1.0))
    (path,) = objective.paths.values()
    data_field = MixtureField(law(mixture()), affine_path(objective, path, numbers))
    data, _ = data_field.mixture.sample(512, torch.Generator().manual_seed(11))
    kinds = row_kinds(objective, loss, data)
    found = tuple(places(objective, kinds, numbers))
    if not found:
        raise Uncertified("no network that learns sees a state of the path")
    shapes: dict[str, MapShape] = {}
    for flow_map in objective.maps.values():
        shape = MapShape(objective, flow_map, numbers)
        shape.check()  # before what the field is: a network without a time has no truth to ask for
        shapes.setdefault(shape.network, shape)
    reader = MeanReader(objective, numbers, {path.state: data_field.path})
    span, drawn = _drawn(objective, loss, data, found, numbers)
    guides = learn(data_field.path)
    solution = Solution(objective, reader, shapes, found, span, drawn, guides)
    strength = strength_of(solution)
    steps, error = (0, 0.0) if not shapes else _steps(solution, data_field, strength)
    told = telling(objective, path, numbers) if solution.blind else None
    truths = Truths(solution, data_field, strength, steps, told)
    return Made(truths, tuple(kinds), found, numbers, error)


def _drawn(
    objective: Objective,
    loss: LossLike,
    data: Tensor,
    found: tuple[Place, ...],
    numbers: Numbers,
) -> tuple[tuple[float, float], dict[Expr, Tensor]]:
    """The span of the times of the states that networks see, on rows that the loss draws; and what
    else is drawn on them."""
    draws = loss.draw(
        data,
        generator=torch.Generator().manual_seed(13),
        progress=1.0,
        step=STEPS,
        steps=STEPS,
    )
    bound: dict[Expr, Tensor] = {
        d.symbol: draws[d.name].double()
        for d in objective.draws.values()
        if d.kind in (Kind.TIME, Kind.SCALAR) and d.name in draws
    }
    seen = []
    for place in found:
        if level_of(place.base.time) is Level.ROW:
            seen.append(numbers.rows(place.base.time, bound, data[:, 0]))
    if not seen:
        return (0.02, 0.98), bound
    times = torch.cat(seen)
    return (float(times.quantile(0.002)), float(times.quantile(0.998))), bound


def _steps(solution: Solution, field: MixtureField, strength: Strength) -> tuple[int, float]:
    """How many steps make the flow and its derivatives accurate over the times that are drawn, and
    their error: how much they change with finer steps."""
    low, high = solution.span
    generator = torch.Generator().manual_seed(17)
    data, label = field.mixture.sample(PROBES, generator)
    noise = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    start, end = low + (high - low) * torch.rand(2, PROBES, generator=generator).double()
    state = field.path.state(data, noise, start)
    equation = solution.equation(False)
    scalars = {} if equation is None else solution.parameters(equation.place, start)
    guided = GuidedField.under(field, strength, scalars, start)

    def table(steps: int) -> Tensor:
        flow = FlowMap(guided, steps)
        moving = (noise, torch.ones_like(start), torch.zeros_like(start))
        value, move = torch.func.jvp(
            lambda x, t, s: flow.average_velocity(x, t, s, label), (state, start, end), moving
        )[:2]
        return torch.cat([value, (end - start)[:, None] * move], 1)

    before, error = table(TRIED[0]), float("inf")
    for steps, finer in pairwise(TRIED):
        after = table(finer)
        error = float((after - before).norm(dim=1).mean())
        if error < ACCURATE:
            return steps, error
        before = after
    if not error < COARSEST:
        raise Uncertified("the flow cannot be integrated accurately over the times that are drawn")
    return TRIED[-1], error
