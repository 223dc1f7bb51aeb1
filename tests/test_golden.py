"""The compiled losses against the published ones, written out in plain torch by someone else.

Same draws, float64: the value, every term, and the gradient of every parameter agree to 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import flowdsl
from tests.reference import (
    alphaflow,
    flow_matching,
    meanflow,
    shortcut,
    trajectory_flow_matching,
    tvm,
)
from tests.reference.networks import SmoothNetwork

#: Whole specs, again and again: line coverage is measured by the tests of each part.
pytestmark = pytest.mark.untraced

SHAPE, BATCH, CLASSES = (2, 4, 4), 24, 5

Reference = Callable[..., tuple[Tensor, dict[str, Tensor]]]

#: Reference, scalar conditions of the networks, constants to try beside the spec's own.
CASES: dict[str, tuple[Reference, int, tuple[str, ...], dict[str, float]]] = {
    "flow_matching": (flow_matching.loss, 1, (), {}),
    "meanflow": (meanflow.loss, 2, (), {"omega": 0.2, "kappa": 0.92, "hi": 0.8}),
    "tvm": (tvm.loss, 2, ("w",), {"w": 1.5}),
    "alphaflow": (alphaflow.loss, 2, (), {"omega": 0.2, "kappa": 0.92, "lo": 0.1, "hi": 0.75}),
    "trajectory_flow_matching": (trajectory_flow_matching.loss, 2, (), {"kappa": 0.3}),
    "shortcut": (shortcut.loss, 2, (), {}),
}


def networks_for(loss: flowdsl.Loss, times: int, scalars: tuple[str, ...]) -> dict[str, nn.Module]:
    return {
        role.name: SmoothNetwork(SHAPE, times, scalars=scalars, classes=CLASSES, seed=i)
        for i, role in enumerate(loss.signature.networks)
    }


def gradients(value: Tensor, networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    named = {f"{r}.{n}": p for r, m in networks.items() for n, p in m.named_parameters()}
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    zero = {name: torch.zeros_like(p) for name, p in named.items()}
    return {n: zero[n] if g is None else g for n, g in zip(named, found, strict=True)}


@pytest.mark.parametrize("optimize", [True, False], ids=["optimised", "as written"])
@pytest.mark.parametrize("progress", [0.0, 0.45, 1.0])
@pytest.mark.parametrize("own_constants", [True, False], ids=["shipped", "other constants"])
@pytest.mark.parametrize("name", list(CASES))
def test_compiled_equals_published(
    name: str, own_constants: bool, progress: float, optimize: bool
) -> None:
    reference, times, scalars, other = CASES[name]
    constants = {} if own_constants else other
    loss = flowdsl.load(name).compile(optimize=optimize, constants=constants)
    generator = torch.Generator().manual_seed(hash((progress, own_constants)) % 1000)
    data = torch.randn(BATCH, *SHAPE, generator=generator, dtype=torch.float64)
    label = torch.randint(CLASSES, (BATCH,), generator=generator)
    networks = networks_for(loss, times, scalars)
    draws = loss.draw(data, generator=generator, progress=progress)

    given = networks if len(networks) > 1 else next(iter(networks.values()))
    step = partial(loss, given, data, draws=draws, label=label, progress=progress)
    value, metrics = step()
    finding = loss.finding(next(iter(networks.values())))
    if finding is not None:  # a derivative was taken beside its value, and looked at
        assert finding.refusal is None
        assert finding.error is not None
        assert finding.error < 1e-12
        value, metrics = step()  # from now on it is trusted
    expected, terms = partial(reference, **constants)(networks, data, draws, label, progress)

    assert set(metrics) == set(terms) == set(loss.signature.terms)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    for term in terms:
        torch.testing.assert_close(metrics[term], terms[term].detach(), rtol=1e-10, atol=1e-12)
    found, wanted = gradients(value, networks), gradients(expected, networks)
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 1e-3  # the comparison would mean nothing on vanishing gradients
    for parameter in wanted:
        torch.testing.assert_close(
            found[parameter], wanted[parameter], rtol=1e-10, atol=1e-10 * largest, msg=parameter
        )


@pytest.mark.parametrize("name", list(CASES))
def test_a_slip_would_be_seen(name: str) -> None:
    """The comparison is sharp: other draws of one time change the value beyond any tolerance."""
    reference, times, scalars, _ = CASES[name]
    loss = flowdsl.load(name).compile()
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(BATCH, *SHAPE, generator=generator, dtype=torch.float64)
    networks = networks_for(loss, times, scalars)
    draws = loss.draw(data, generator=generator)
    moved = {**draws, "noise": draws["noise"] * (1 + 1e-6)}
    one, _ = reference(networks, data, draws, None, 0.45)
    two, _ = reference(networks, data, moved, None, 0.45)
    assert abs(float(one - two)) > 1e-10 * abs(float(one))


@pytest.mark.parametrize(("name", "progress"), [("meanflow", 0.0), ("alphaflow", 1.0)])
def test_derivatives_are_taken_beside_their_values(name: str, progress: float) -> None:
    """What the comparison above rests on: these objectives do go this way."""
    loss = flowdsl.load(name).compile()
    (network,) = networks_for(loss, 2, ()).values()
    loss(network, torch.randn(BATCH, *SHAPE, dtype=torch.float64), progress=progress)
    finding = loss.finding(network)
    assert finding is not None
    assert finding.refusal is None
    written = flowdsl.load(name).compile(optimize=False)
    written(network, torch.randn(BATCH, *SHAPE, dtype=torch.float64), progress=progress)
    assert written.finding(network) is None
