"""Certificates of inner flows: the outer state held fixed, the posterior of a mixture as data."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from flowdsl import pipeline
from flowdsl.certify.held import MOMENT, held
from flowdsl.checks.certificate import TermCertificate
from flowdsl.exact.mixture import GaussianMixture
from flowdsl.sources import shipped_folder
from tests.compiler_support import Net, batch

SPECS = ("meta_flow_maps", "tmd_meanflow")


@cache
def measured(name: str, old: str = "", new: str = "") -> TermCertificate:
    spec = (shipped_folder() / f"{name}.flow").read_text()
    assert old in spec
    (found,) = pipeline.certified(pipeline.load_text(spec.replace(old, new, 1))).terms
    return found


@pytest.mark.parametrize("name", SPECS)
def test_shipped_inner_flows_are_certified(name: str) -> None:
    found = measured(name)
    assert found.outcome == "zero", found
    assert found.elsewhere is not None
    assert found.elsewhere.outcome == "nonzero"  # another field's flow does not pass


WRONG = [
    ("meta_flow_maps", "velocity(y) - (s - r)", "velocity(y) + (s - r)"),
    ("meta_flow_maps", "stop(velocity(y)", "stop((noise' - noise)"),
    ("meta_flow_maps", "stop(velocity(y)", "stop(velocity"),
    ("tmd_meanflow", "y + (r - s) * (y - head", "y + (s - r) * (y - head"),
    ("tmd_meanflow", "along guided\n", "along velocity(y)\n"),
]


@pytest.mark.parametrize(("name", "old", "new"), WRONG)
def test_wrong_twins_are_seen(name: str, old: str, new: str) -> None:
    assert measured(name, old, new).outcome == "nonzero"


def test_a_target_through_the_outer_state_is_the_same() -> None:
    through = measured("meta_flow_maps", "stop(velocity(y)",
                       "stop((noise' - (x(t) - t * noise) / (1 - t))")  # fmt: skip
    assert through.outcome == "zero"


def test_what_cannot_be_held_says_why() -> None:
    other = measured("meta_flow_maps", "d/ds[v(y, s, r, x(t), t)]", "d/ds[v(y, s, r, x(r), t)]")
    assert (other.outcome, other.reason) == (
        "not measured", "the outer path is needed at more than one drawn time",
    )  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_the_loss_with_the_outer_state_held_is_the_loss_there(name: str) -> None:
    """The very loss, with draws that put every row's outer state at the origin."""
    objective = pipeline.load(name)
    under = held(objective)
    assert under is not None
    whole, part = pipeline.compiled(objective), pipeline.compiled(under.objective)
    nets = {n: Net(role) for n, role in objective.networks.items()}
    data, label = batch(16)
    draws = whole.draw(data, generator=torch.Generator().manual_seed(3))
    t = torch.full_like(draws["t"], float(MOMENT))
    draws |= {"t": t, "noise": -(1 - t)[:, None] / t[:, None] * data}
    shown = {"label": label} if "label" in str(objective.networks) else {}
    wanted, _ = whole(nets if len(nets) > 1 else nets["v"], data, draws=draws, **shown)

    def fixed(y: Tensor, s: Tensor, r: Tensor, **conditions: Tensor) -> Tensor:
        origin, when = torch.zeros_like(y), torch.full_like(s, float(MOMENT))
        if "backbone" not in nets:
            return nets["v"](y, s, r, origin, when)
        return nets["head"](y, s, r, features=nets["backbone"](origin, when, **conditions))

    own = {k: v for k, v in draws.items() if k not in ("t", "noise", "noise'")}
    found, _ = part(fixed, data, draws=own | {"noise": draws["noise'"]}, **shown)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    parameters = [p for net in nets.values() for p in net.parameters()]
    for a, b in zip(
        *(torch.autograd.grad(v, parameters, allow_unused=True) for v in (found, wanted)),
        strict=True,
    ):
        if b is not None:
            assert a is not None
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_the_posterior_of_a_mixture_is_bayes_rule() -> None:
    mixture, alpha, sigma = GaussianMixture.random(components=3, classes=2, seed=4), 0.4, 0.7
    state = torch.tensor([0.3, -0.2], dtype=torch.float64)
    found = mixture.given(state, alpha, sigma)
    points = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def density(law: GaussianMixture, x: Tensor) -> Tensor:
        parts = [
            torch.distributions.MultivariateNormal(m, c).log_prob(x) + w.log()
            for w, m, c in zip(law.weights, law.means, law.covariances, strict=True)
        ]
        return torch.stack(parts).logsumexp(0)

    joint = density(mixture, points) - ((state - alpha * points) ** 2).sum(1) / (2 * sigma**2)
    ratio = density(found, points) - joint
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=0, atol=1e-10)
