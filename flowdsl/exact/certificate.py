"""Certificates: a right loss, evaluated where the answer is known, has no mean gradient.

Data come from a Gaussian mixture, networks from its exact flow map, and the gradient is taken in a
few random directions in which the networks could move. It says nothing about why an objective is
right; it is independent of every symbolic step, and sees the code that will run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from flowdsl.exact.estimation import Estimation, LossLike, Moment, RowField, Sampling
from flowdsl.exact.networks import ExactNetwork, Truth
from flowdsl.runtime.contract import NetworkSignature, ObjectiveSignature


@dataclass(frozen=True)
class Certificate:
    """Mean gradients at the truth, by direction (`u[0]` is the first direction of the network `u`).

    `scale` is the gradient that a network displaced by one unit of the direction would see, targets
    held: the loss's curvature. So `relative = mean / scale` is, to first order, how far the
    objective pushes a right network away. A relative gradient below `resolution` is not told from
    zero: it is where integration error may stand. `combined` is the z-score of all directions at
    once.
    """

    directions: tuple[str, ...]
    mean: tuple[float, ...]
    standard_error: tuple[float, ...]
    scale: tuple[float, ...]
    resolution: float
    rows: int
    batches: int
    seconds: float
    value: float
    combined: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    #: The gradients of each batch, (batches, directions): with one sampling they are paired, two
    #: moments of training see the same rows.
    table: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def z_scores(self) -> tuple[float, ...]:
        """`mean / standard error`, the error never less than what the resolution allows."""
        triples = zip(self.mean, self.standard_error, self.scale, strict=True)
        return tuple(m / max(math.hypot(e, self.resolution * s), 1e-300) for m, e, s in triples)

    @property
    def relative(self) -> tuple[float, ...]:
        """Mean gradient in units of `scale`."""
        return tuple(m / s if s > 0 else 0.0 for m, s in zip(self.mean, self.scale, strict=True))

    @property
    def relative_error(self) -> tuple[float, ...]:
        """Standard error in units of `scale`: what the certificate could have seen."""
        pairs = zip(self.standard_error, self.scale, strict=True)
        return tuple(e / s if s > 0 else 0.0 for e, s in pairs)

    @property
    def worst(self) -> float:
        """The largest |z|, the combined direction included."""
        return max((abs(z) for z in (*self.z_scores, self.combined)), default=0.0)

    def vanishes(self, threshold: float = 5.0) -> bool:
        """No direction is more than `threshold` standard errors from zero."""
        return self.worst <= threshold

    def stands_out(self, threshold: float = 8.0, relative: float = 0.01) -> bool:
        """Clearly not zero: a |z| past `threshold`, a gradient past `relative` of its scale."""
        large = any(abs(r) > relative for r in self.relative)
        return large and self.worst > threshold

    def as_dict(self) -> dict[str, object]:
        """The record as plain data, with the derived columns."""
        plain = asdict(replace(self, table=None))
        del plain["table"]
        return {**plain, "z_scores": self.z_scores, "relative": self.relative}


def certify(
    loss: LossLike,
    field: RowField,
    truths: Mapping[str, Truth],
    *,
    sampling: Sampling | None = None,
    moment: Moment | None = None,
    directions: int = 8,
    resolution: float = 1e-4,
) -> Certificate:
    """The mean gradient of `loss` at the truth, in random directions of each learned network.

    `field` holds the mixture and the path of the objective; `truths` gives the exact function of
    every network of the spec, by role (an average of a network may be left out: it has the
    network's truth). A network whose truth returns no state head is not moved. Raises KeyError when
    a role has no truth.
    """
    began = time.perf_counter()
    sampling, moment = sampling or Sampling(), moment or Moment()
    networks = build_networks(loss.signature, truths, directions=directions, seed=sampling.seed)
    run = Estimation(loss, field, networks, sampling, moment)
    rows: list[Tensor] = []
    values: list[float] = []
    metrics: dict[str, float] = {}
    for number in range(sampling.batches):
        value, metrics = run.value(number)
        rows.append(run.gradient(value))
        values.append(float(value.detach()))
    table = torch.stack(rows)
    scale = run.curvature(run.value(0)[0])
    return Certificate(
        directions=tuple(run.names),
        mean=tuple(table.mean(0).tolist()),
        standard_error=tuple((table.std(0) / math.sqrt(len(table))).tolist()),
        scale=tuple(scale.tolist()),
        resolution=resolution,
        rows=run.rows * sampling.batches,
        batches=sampling.batches,
        seconds=time.perf_counter() - began,
        value=sum(values) / len(values),
        combined=combined_score(table, resolution * scale),
        metrics=metrics,
        table=table,
    )


def combined_score(table: Tensor, floor: Tensor) -> float:
    """One z-score for all directions: of the direction that one half of the batches points to.

    `table` is (batches, directions), `floor` (directions,) the least standard error. The mean
    gradient of one half, in units of its variance, is a direction; the other half, which had no
    part in choosing it, tests it. Both ways, averaged. Many directions that are each barely off
    zero show here.
    """
    first, second = table[: len(table) // 2], table[len(table) // 2 :]
    return (_held_out(first, second, floor) + _held_out(second, first, floor)) / math.sqrt(2)


def _held_out(choose: Tensor, test: Tensor, floor: Tensor) -> float:
    variance = choose.var(0) / len(choose) + floor**2 + 1e-300
    direction = choose.mean(0) / variance
    seen = test @ direction
    error = math.hypot(float(seen.std()) / math.sqrt(len(seen)), float((floor * direction).norm()))
    return float(seen.mean()) / max(error, 1e-300)


def build_networks(
    signature: ObjectiveSignature, truths: Mapping[str, Truth], *, directions: int, seed: int = 0
) -> dict[str, ExactNetwork]:
    """An exact network per role, by name; only the learned ones carry directions."""
    networks: dict[str, ExactNetwork] = {}
    for index, network in enumerate(signature.networks):
        truth = truths[_truth_name(network, truths)]
        learned = not network.frozen and network.average_of is None
        networks[network.name] = ExactNetwork(
            network, truth, directions=directions if learned else 0, seed=seed + 1009 * index
        )
    return networks


def _truth_name(network: NetworkSignature, truths: Mapping[str, Truth]) -> str:
    if network.name not in truths and network.average_of is not None:
        return network.average_of
    return network.name
