"""Networks that hand features to another, times that condition different blocks, and text."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowdsl import pipeline
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.contract import Argument, NetworkSignature
from flowdsl.runtime.nets import NetworkConfig, build_network

SHAPE, REAL = (1, 8, 8), torch.float64
KINDS = {"z": "state", "y": "state", "t": "time", "s": "time", "r": "time", "q": "time"}


def arguments(names: str) -> tuple[Argument, ...]:
    return tuple(Argument(n, KINDS.get(n, n)) for n in names.split())


def role(name: str, call: str, heads: str = "state", conditions: str = "label"):
    return NetworkSignature(
        name,
        arguments(call),
        arguments(conditions),
        tuple(Argument(f"{name}_{i}", kind) for i, kind in enumerate(heads.split())),
    )


def build(signature: NetworkSignature, *, trained: bool = True, seed: int = 0, **more):
    generator = torch.Generator().manual_seed(seed)
    net = build_network(signature, shape=SHAPE, classes=3, patch=4, generator=generator, **more)
    if trained:
        for p in net.parameters():
            nn.init.normal_(p, std=0.2, generator=generator)
    return net.double()


def inputs(count: int = 3, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    z, y = torch.randn(2, count, *SHAPE, generator=g, dtype=REAL)
    return z, y, *torch.rand(3, count, generator=g, dtype=REAL), torch.tensor([0, 2, -1])[:count]


BACKBONE = role("backbone", "z t", "features")
HEAD = role("head", "y s r", "state", "features")
JUDGE = NetworkSignature("judge", arguments("features"), (), (Argument("judge", "scalar"),))


def test_backbone_and_head_are_together_as_deep_as_one_network() -> None:
    backbone, head, judge = build(BACKBONE), build(HEAD), build(JUDGE)
    whole = build(role("v", "z t"))
    assert len(backbone.blocks) + len(head.blocks) == len(whole.blocks)
    z, y, t, s, r, label = inputs()
    features = backbone(z, t, label=label)
    assert features.shape == (3, 4, 96)
    assert head(y, s, r, features=features).shape == z.shape
    assert judge(features).shape == (3,)


def test_gradient_reaches_every_part_through_the_features() -> None:
    backbone, head, judge = (build(signature) for signature in (BACKBONE, HEAD, JUDGE))
    z, y, t, s, r, label = inputs()
    features = backbone(z, t, label=label)
    (head(y, s, r, features=features).square().mean() + judge(features).sum()).backward()
    for net in (backbone, head, judge):
        for name, p in net.named_parameters():
            # a network that sees features alone is conditioned by nothing: only biases modulate it
            silent = net is judge and name.endswith("modulation.weight")
            assert (float(p.grad.abs().max()) > 0) is not silent, name


def test_a_teacher_cut_in_two_begins_as_it_was() -> None:
    """What a head sees beside the features joins them by a layer that is zero at first."""
    teacher = build(role("v", "z t"))
    backbone = build(BACKBONE, trained=False, seed=1)
    head = build(role("head", "y s r", "state", "features label"), trained=False, seed=2)
    for net in (backbone, head):
        net.adopt(teacher.state_dict(), teacher.config.as_dict())
    z, y, t, _, r, label = inputs()
    found = head(y, t, r, features=backbone(z, t, label=label), label=label)
    expected = teacher(z, t, label=label)
    assert expected.abs().max() > 0.1
    assert torch.allclose(found, expected, atol=1e-12)


def test_features_from_inside_a_network_are_those_of_its_middle_blocks() -> None:
    net = build(role("teacher", "z t", "state features"))
    z, _, t, *_, label = inputs()
    tokens = []
    net.blocks[1].register_forward_hook(lambda module, given, result: tokens.append(result))
    velocity, features = net(z, t, label=label)
    assert velocity.shape == z.shape
    assert torch.equal(features, tokens[0])
    plain = build(role("teacher", "z t", "state"))
    plain.adopt(net.state_dict(), net.config.as_dict())
    assert torch.equal(plain(z, t, label=label), velocity)


def test_the_derivative_of_a_head_is_that_of_finite_differences() -> None:
    head = build(HEAD)
    _, y, _, s, r, _ = inputs()
    features = torch.randn(3, 4, 96, generator=torch.Generator().manual_seed(3), dtype=REAL)
    way = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=REAL)

    def along(y, s):
        return head(y, s, r, features=features)

    _, slope = torch.func.jvp(along, (y, s), (way, torch.ones_like(s)))
    h = 1e-5
    expected = (along(y + h * way, s + h) - along(y - h * way, s - h)) / (2 * h)
    assert torch.allclose(slope, expected, atol=1e-7)


def test_features_of_another_shape_are_refused() -> None:
    _, y, _, s, r, _ = inputs()
    with pytest.raises(DiagnosticError, match="features"):
        build(HEAD)(y, s, r, features=torch.zeros(3, 4, 95, dtype=REAL))


# -- decoupled times -----------------------------------------------------------------------------

PARTS = {"times": "decoupled"}


def test_a_flow_model_becomes_a_map_s_network_without_training() -> None:
    flow = build(role("v", "z t"), parts=PARTS)
    net = build(role("u", "z t r"), trained=False, seed=1, parts=PARTS)
    net.adopt(flow.state_dict(), flow.config.as_dict())
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in flow.state_dict().items()
    }
    z, _, t, r, _, label = inputs()
    assert torch.allclose(net(z, t, t, label=label), flow(z, t, label=label), atol=1e-12)
    assert not torch.allclose(net(z, t, r, label=label), flow(z, t, label=label), atol=1e-3)


def test_the_first_time_conditions_the_encoder_and_the_second_the_decoder() -> None:
    net = build(role("u", "z t r"), parts=PARTS)
    z, _, t, r, q, label = inputs()
    seen: list[list[torch.Tensor]] = [[] for _ in net.blocks]
    for block, log in zip(net.blocks, seen, strict=True):
        block.register_forward_hook(lambda m, given, result, log=log: log.append(given[1]))
    net(z, t, r, label=label)
    net(z, t, q, label=label)
    net(z, q, r, label=label)
    decoder = net.config.decoder
    assert 0 < decoder < len(net.blocks)
    for number, (one, other_end, other_start) in enumerate(seen):
        early = number < len(net.blocks) - decoder
        assert torch.equal(one, other_end) is early
        assert torch.equal(one, other_start) is not early


def test_decoupled_times_survive_a_round_trip_and_leave_numbers_alone() -> None:
    net = build(role("u", "z t r"), parts=PARTS)
    assert NetworkConfig.from_dict(net.config.as_dict()) == net.config
    phi = NetworkSignature("phi", arguments("t r"), (), (Argument("phi", "scalar"),))
    numbers = build(phi, parts=PARTS)
    _, _, t, r, q, _ = inputs()
    assert not torch.allclose(numbers(t, r), numbers(t, q))
    with pytest.raises(DiagnosticError, match="unknown times"):
        build(role("u", "z t r"), parts={"times": "apart"})


# -- in a spec -----------------------------------------------------------------------------------

SPEC = """objective inner
path z(t) = (1 - t) * data + t * noise
     y(s) = (1 - s) * (noise - data) + s * noise'
rows dropped ~ bernoulli(0.25)
times t ~ uniform(0, 1); s ~ uniform(0.1, 1); noise' ~ normal(0, 1)
conditions text = null on dropped
network backbone(z, t | text) -> features; head(y, s, r | features)
        teacher(z, t | text) -> v, inside features frozen; judge(features) -> scalar
let guess = head(y(s), s, s | features = backbone(z, t))
target regress: match guess to noise - data
       fool: minimise softplus(-judge(inside(z, t)))
critic minimise softplus(judge(inside(z - guess, t)))
players student: backbone, head on target; critics: judge on critic
"""


def test_features_and_text_in_a_compiled_loss() -> None:
    loss = pipeline.compiled(pipeline.load_text(SPEC))
    signature = loss.signature
    assert [c.kind for c in signature.network("backbone").conditions] == ["label"]
    assert [c.kind for c in signature.network("head").conditions] == ["features"]
    nets = {n.name: build(n, seed=i) for i, n in enumerate(signature.networks)}
    data, label = inputs()[0], inputs()[-1]
    draws = loss.draw(data, generator=torch.Generator().manual_seed(5))
    value, parts = loss(nets, data, draws=draws, label=label, terms=("regress",))
    value.backward()
    t, s, noise, fresh = (draws[k] for k in ("t", "s", "noise", "noise'"))
    wide = [x.view(-1, 1, 1, 1) for x in (t, s)]
    z = (1 - wide[0]) * data + wide[0] * noise
    y = (1 - wide[1]) * (noise - data) + wide[1] * fresh
    mine = {n.name: build(n, seed=i) for i, n in enumerate(signature.networks)}
    seen = torch.where(draws["dropped"], -1, label)
    guess = mine["head"](y, s, s, features=mine["backbone"](z, t, text=seen))
    expected = (guess - (noise - data)).square().flatten(1).sum(1).mean()
    expected.backward()
    assert set(parts) == {"regress"}
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for name in ("backbone", "head"):
        for a, b in zip(nets[name].parameters(), mine[name].parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    other, _ = loss(nets, data, draws=draws, label=label, terms=("critic",))
    judged = mine["judge"](mine["teacher"](z - guess, t, text=seen)[1])
    assert other.item() == pytest.approx(nn.functional.softplus(judged).mean().item(), rel=1e-9)
