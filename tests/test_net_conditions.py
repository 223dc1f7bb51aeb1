"""What the bundled networks are shown: labels, numbers, features, as modulation or as tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from net_support import SHAPE, arguments, batch, closed, config, gap, stirred
from torch import Tensor
from torch.func import jvp

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.contract import NULL_LABEL, NetworkSignature
from flowdsl.runtime.nets import (
    ScalarNetwork,
    Size,
    build_network,
    configure,
    layers,
    network_from_config,
)
from flowdsl.runtime.nets.layers import Linear


class TestConditions:
    def test_further_times_are_seen_as_gaps(self) -> None:
        network = stirred(config())
        seen: dict[int, Tensor] = {}
        for i, part in enumerate(network.numbers):
            part.register_forward_pre_hook(lambda m, inputs, i=i: seen.update({i: inputs[0]}))
        z, t, r, w, label, _ = batch()
        network(z, t, r, label=label, w=w)
        assert list(network.config.numbers) == ["t", "r", "w"]
        assert torch.equal(seen[0], t)
        assert torch.equal(seen[1], t - r)
        assert torch.equal(seen[2], w)

    def test_times_that_are_conditions_are_seen_as_they_are(self) -> None:
        network = stirred(config("z:state t:time", "lo:time hi:time"))
        seen: dict[int, Tensor] = {}
        for i, part in enumerate(network.numbers):
            part.register_forward_pre_hook(lambda m, inputs, i=i: seen.update({i: inputs[0]}))
        z, t, r, w, _, _ = batch()
        network(z, t, hi=w, lo=r)
        assert torch.equal(seen[1], r)
        assert torch.equal(seen[2], w)

    def test_no_label_is_the_null_label(self) -> None:
        network = stirred(config())
        z, t, r, w, _, _ = batch()
        null = torch.full((3,), NULL_LABEL)
        without = network(z, t, r, w=w)
        assert torch.equal(without, network(z, t, r, w=w, label=None))
        assert torch.equal(without, network(z, t, r, w=w, label=null))
        labelled = network(z, t, r, w=w, label=torch.tensor([0, 1, 2]))
        assert float((labelled - without).abs().amax((1, 2, 3)).min()) > 1e-4

    def test_rows_are_independent(self) -> None:
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        whole = network(z, t, r, label=label, w=w)
        rows = [
            network(*(x[i : i + 1] for x in (z, t, r)), label=label[i : i + 1], w=w[i : i + 1])
            for i in range(3)
        ]
        assert gap([torch.cat(rows)], [whole]) < 1e-12

    def test_data_without_labels(self) -> None:
        network = stirred(config(classes=None))
        z, t, r, w, _, _ = batch()
        assert network.labels is None
        null = torch.full((3,), NULL_LABEL)
        assert torch.equal(network(z, t, r, w=w), network(z, t, r, w=w, label=null))

    def test_single_numbers_stand_for_all_rows(self) -> None:
        network = stirred(config(), torch.float32)
        z, t, r, _, label, _ = batch(dtype=torch.float32)
        wanted = network(z, t, r, label=label, w=torch.full((3,), 2.0))
        assert torch.equal(network(z, t, r, label=label, w=2), wanted)
        assert torch.equal(network(z, t, r, label=label, w=torch.tensor(2.0)), wanted)

    def test_every_condition_matters(self) -> None:
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        base = network(z, t, r, label=label, w=w)
        for other in (
            network(z, t + 0.1, r, label=label, w=w),
            network(z, t, r - 0.1, label=label, w=w),
            network(z, t, r, label=label, w=w + 0.1),
        ):
            assert float((other - base).abs().max()) > 1e-4


class TestNumbersAlone:
    phi = NetworkSignature("phi", arguments("t:time r:time"), (), arguments("phi:scalar"))

    def test_starts_at_zero_and_learns(self) -> None:
        network = build_network(self.phi, shape=SHAPE)
        t, r = torch.rand(5), torch.rand(5)
        assert isinstance(network, ScalarNetwork)
        assert torch.equal(network(t, r), torch.zeros(5))
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            loss = (network(t, r) - (t - 2 * r)).square().mean()
            loss.backward()
            optimiser.step()
        assert float(loss) < 1e-2

    def test_derivative(self) -> None:
        network = stirred(configure(self.phi, shape=SHAPE))
        _, t, r, *_ = batch()
        _, found = jvp(network, (t, r), (torch.ones_like(t), torch.zeros_like(r)))
        h = 1e-5
        assert gap([found], [(network(t + h, r) - network(t - h, r)) / (2 * h)]) < 1e-7

    def test_several(self) -> None:
        network = stirred(config("t:time", "", "a:scalar b:scalar"))
        a, b = network(batch()[1])
        assert a.shape == b.shape == (3,)
        assert not torch.equal(a, b)


class TestTokensInContext:
    """Conditions as tokens before those of the picture."""

    context = config(conditioning="in_context")

    def test_how_many_there_are(self) -> None:
        assert self.context.prefixes == (4, 4, 4, 8)
        assert replace(self.context, classes=None).prefixes == (4, 4, 4)
        assert config().prefix == 0
        seen: list[Tensor] = []
        network = stirred(self.context)
        network.blocks[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
        z, t, r, w, label, _ = batch()
        network(z, t, r, label=label, w=w)
        assert seen[0].shape == (3, 20 + 6, 16)

    def test_they_are_cheaper_than_modulation(self) -> None:
        """A third of a transformer block modulates it; tokens need no such weights."""
        size = Size("wide", depth=12, width=192, heads=3)
        counts = [
            network_from_config(config(size=size, conditioning=kind)).parameter_count
            for kind in ("in_context", "adaptive")
        ]
        assert counts[0] < 0.7 * counts[1]

    def test_every_condition_matters_and_rows_are_independent(self) -> None:
        network = stirred(self.context)
        z, t, r, w, label, _ = batch()
        base = network(z, t, r, label=label, w=w)
        for other in (
            network(z, t + 0.1, r, label=label, w=w),
            network(z, t, r - 0.1, label=label, w=w),
            network(z, t, r, label=label, w=w + 0.1),
            network(z, t, r, label=(label + 2) % 3, w=w),
        ):
            assert float((other - base).abs().amax((1, 2, 3)).min()) > 1e-5
        alone = network(z[1:2], t[1:2], r[1:2], label=label[1:2], w=w[1:2])
        assert gap([alone], [base[1:2]]) < 1e-12

    def test_features_are_tokens_of_the_picture_alone(self) -> None:
        inside = config(heads="u:state f:features", conditioning="in_context", own_blocks=1)
        z, t, r, w, label, _ = batch()
        output, features = stirred(inside)(z, t, r, label=label, w=w)
        assert output.shape == z.shape
        assert features.shape == (3, 6, 16)
        head = config("y:state s:time", "f:features", conditioning="in_context")
        assert stirred(head)(z, t, f=features).shape == z.shape

    def test_recomputed_blocks_give_the_same_gradients(self) -> None:
        z, t, r, w, label, _ = batch()
        found = []
        for again in (False, True):
            network = stirred(self.context)
            network.recompute = again
            output = network(z, t, r, label=label, w=w)
            found.append(torch.autograd.grad(output.square().sum(), list(network.parameters())))
        assert gap(*found) < 1e-12

    def test_under_autocast(self) -> None:
        z, t, r, w, label, dz = batch(dtype=torch.float32)
        network, double = stirred(self.context, torch.float32), stirred(self.context)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = jvp(closed(network, label, w), (z, t, r), (dz, 1 + 0 * t, 0 * r))
        wide = (x.double() for x in (z, t, r, dz))
        z, t, r, dz = wide
        wanted = jvp(closed(double, label, w.double()), (z, t, r), (dz, 1 + 0 * t, 0 * r))
        for mine, right in zip(found, wanted, strict=True):
            assert mine.dtype == torch.float32
            assert float((mine - right).norm() / right.norm()) < 0.03

    def test_it_starts_with_weights_of_a_network_that_sees_the_same(self) -> None:
        other = config("z:state b:time a:time", "label:label w:scalar", conditioning="in_context")
        teacher, network = stirred(other, seed=1), stirred(self.context)
        network.adopt(teacher.state_dict(), teacher.config.as_dict())
        z, t, r, w, label, _ = batch()
        found, wanted = (n(z, t, r, label=label, w=w) for n in (network, teacher))
        assert torch.equal(found, wanted)

    def test_scalars_keep_their_names_when_they_change_places(self) -> None:
        call = "z:state t:time"
        source = config(call, "a:scalar label:label b:scalar", conditioning="in_context")
        target = config(call, "b:scalar a:scalar label:label", conditioning="in_context")
        teacher, network = stirred(source, seed=1), stirred(target)
        network.adopt(teacher.state_dict(), source.as_dict())
        z, t, r, w, label, _ = batch()
        found, wanted = (n(z, t, a=r, b=w, label=label) for n in (network, teacher))
        assert gap([found], [wanted]) < 1e-12

    def test_it_does_not_start_with_weights_of_one_that_sees_less(self) -> None:
        less = config("z:state t:time", conditioning="in_context")
        network = stirred(self.context)
        with pytest.raises(DiagnosticError, match="further tokens in context"):
            network.adopt(stirred(less).state_dict(), less.as_dict())
        with pytest.raises(DiagnosticError, match="conditioning"):
            network.adopt(stirred(config()).state_dict(), config().as_dict())


class TestNormalisedModulation:
    """How far a condition moves a network doesn't depend on the size of the modulation."""

    def test_only_its_direction_counts(self) -> None:
        z, t, r, w, label, _ = batch()
        for kind, same in (("normalised", True), ("plain", False)):
            network = stirred(config(modulation=kind))
            before = network(z, t, r, label=label, w=w)
            with torch.no_grad():
                for part in network.modules():
                    if isinstance(part, layers.Modulation):
                        part.weight *= 1e3
                        part.bias *= 1e3
            after = network(z, t, r, label=label, w=w)
            assert (gap([after], [before]) < 1e-3) == same

    def test_each_vector_has_size_one(self) -> None:
        part = layers.Modulation(16, 6, normal=True)
        torch.nn.init.normal_(part.weight)
        torch.nn.init.zeros_(part.bias)
        vectors = part(torch.randn(5, 16))
        assert vectors.shape == (5, 1, 6, 16)
        assert float((vectors.square().mean(-1) - 1).abs().max()) < 1e-3

    def test_spectral_start(self) -> None:
        network = network_from_config(config(start="spectral"))
        for name, part in network.named_modules():
            if isinstance(part, Linear) and part.weight.any() and not name.startswith("numbers"):
                assert float(torch.linalg.svdvals(part.weight)[0]) == pytest.approx(1, abs=1e-4)
