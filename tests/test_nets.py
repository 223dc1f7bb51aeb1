"""The bundled networks: their shapes, how they start, sizes, rebuilding, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from net_support import SHAPE, TINY, arguments, batch, closed, config, gap, stirred
from torch import Tensor
from torch.func import jvp

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.contract import NetworkSignature
from flowdsl.runtime.nets import (
    SIZES,
    DiT,
    NetworkConfig,
    Size,
    build_network,
    configure,
    dit,
    network_from_config,
)
from flowdsl.runtime.nets.build import initialise


class TestShapes:
    @given(
        channels=st.integers(1, 3),
        grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
        patch=st.integers(1, 3),
        rows=st.integers(1, 3),
        seed=st.integers(0, 99),
    )
    @settings(max_examples=20)
    def test_any_picture_any_patch(
        self, channels: int, grid: tuple[int, int], patch: int, rows: int, seed: int
    ) -> None:
        shape = (channels, grid[0] * patch, grid[1] * patch)
        network = stirred(config(shape=shape, patch=patch, size=replace(TINY, depth=1)), seed=seed)
        z, t, r, w, label, dz = batch(rows, shape, seed)
        f, h = closed(network, label, w), 1e-5
        pair = jvp(f, (z, t, r), (dz, torch.ones_like(t), 0 * r))
        assert pair[0].shape == z.shape
        with torch.no_grad():
            slope = (f(z + h * dz, t + h, r) - f(z - h * dz, t - h, r)) / (2 * h)
        assert gap([pair[1]], [slope]) < 1e-6

    def test_patches_go_back_where_they_came_from(self) -> None:
        network = network_from_config(config())
        z = torch.randn(2, *SHAPE)
        cut = network._cut((z,))
        assert cut.shape == (2, 6, 8)
        assert torch.equal(network._paste(cut, "state"), z)
        corner = z[:, :, :2, 2:4].permute(0, 2, 3, 1).reshape(2, -1)
        assert torch.equal(cut[:, 1], corner)

    def test_positions_are_all_different(self) -> None:
        positions = dit.grid_positions(5, 7, 32)
        distances = torch.cdist(positions, positions) + 10 * torch.eye(35)
        assert positions.shape == (35, 32)
        assert float(distances.min()) > 0.1

    def test_several_states_are_joined(self) -> None:
        network = stirred(config("y:state s:time z:state", ""))
        y, s, *_, z = batch()
        changed = network(y, s, z + 1) - network(y, s, z)
        assert network(y, s, z).shape == y.shape
        assert float(changed.abs().max()) > 1e-3

    def test_without_times(self) -> None:
        network = stirred(config("z:state", "", "score:scalar"))
        assert network(batch()[0]).shape == (3,)

    @pytest.mark.parametrize("own", [0, 1, 2])
    def test_several_heads(self, own: int) -> None:
        network = stirred(config(heads="u:state v:state p:scalar", own_blocks=own))
        z, t, r, w, label, dz = batch()
        u, v, p = network(z, t, r, label=label, w=w)
        assert u.shape == v.shape == z.shape
        assert p.shape == (3,)
        outputs, tangents = jvp(closed(network, label, w), (z, t, r), (dz, 1 + 0 * t, 0 * r))
        assert gap(outputs, (u, v, p)) < 1e-12
        h = 1e-5
        f = closed(network, label, w)
        with torch.no_grad():
            ahead, behind = f(z + h * dz, t + h, r), f(z - h * dz, t - h, r)
        slopes = [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]
        assert gap(tangents, slopes) < 1e-7

    def test_heads_share_the_trunk_and_nothing_else(self) -> None:
        network = stirred(config(heads="u:state v:state", own_blocks=1))
        z, t, r, w, label, _ = batch()
        network(z, t, r, label=label, w=w)[0].sum().backward()
        with_grad = {n.split(".")[0] for n, p in network.named_parameters() if p.grad is not None}
        assert "blocks" in with_grad
        assert all(p.grad is None for p in network.heads[1].parameters())
        assert len(network.blocks) == 1
        assert len(network.heads[0].blocks) == 1


class TestStart:
    @pytest.mark.parametrize("heads", ["u:state", "u:state v:state p:scalar"])
    def test_outputs_are_zero(self, heads: str) -> None:
        network = network_from_config(config(heads=heads))
        z, t, r, w, label, _ = batch(dtype=torch.float32)
        outputs = network(z, t, r, label=label, w=w)
        for x in outputs if isinstance(outputs, tuple) else (outputs,):
            assert not x.any()

    @pytest.mark.parametrize("width", [16, 256])
    def test_conditions_have_size_one(self, width: int) -> None:
        size = Size("wide", depth=1, width=width, heads=2)
        network = network_from_config(config(size=size), generator=torch.Generator().manual_seed(0))
        t = torch.linspace(0, 1, 500)
        for embed in network.numbers:
            assert 0.5 < float(embed(t).square().mean().sqrt()) < 2
        assert 0.7 < float(network.labels.table.square().mean().sqrt()) < 1.4

    def test_blocks_are_the_identity(self) -> None:
        network = network_from_config(config())
        tokens, condition = torch.randn(2, 6, 16), torch.randn(2, 16)
        assert torch.equal(network.blocks[0](tokens, condition), tokens)

    def test_a_seed_or_a_generator_decides_the_weights(self) -> None:
        def build(seed: int) -> list[Tensor]:
            return list(
                network_from_config(
                    config(), generator=torch.Generator().manual_seed(seed)
                ).parameters()
            )

        before = torch.get_rng_state()
        first, again, other = build(1), build(1), build(2)
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        seeded = []
        for _ in range(2):
            torch.manual_seed(3)
            seeded.append(network_from_config(config()).state_dict())
        assert all(torch.equal(seeded[0][k], seeded[1][k]) for k in seeded[0])

    def test_nothing_is_left_unset(self) -> None:
        """Weights are made of uninitialised memory; `initialise` must reach them all."""
        with torch.device("meta"):
            count = len(list(network_from_config(config()).parameters()))
        network = network_from_config(config(positions="learned"))
        for p in network.parameters():
            p.data.fill_(torch.nan)
        network.positions.data.zero_()  # filled where it is made, from the grid
        initialise(network)
        assert all(bool(p.isfinite().all()) for p in network.parameters())
        assert count == len(list(network.parameters())) - 1


class TestRebuilding:
    def test_through_json(self) -> None:
        first = stirred(config(heads="u:state v:state", own_blocks=1, qk_norm=True), torch.float32)
        plain = json.loads(json.dumps(first.config.as_dict()))
        again = network_from_config(NetworkConfig.from_dict(plain))
        assert again.config == first.config
        again.load_state_dict(first.state_dict())
        z, t, r, w, label, _ = batch(dtype=torch.float32)
        for a, b in zip(*(n(z, t, r, label=label, w=w) for n in (first, again)), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"nrom": "rms"}, 'did you mean "norm"'),
            ({"size": {"name": "S"}}, "broken"),
            ({"norm": "batch"}, 'unknown norm "batch"'),
        ],
    )
    def test_a_broken_description(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(DiagnosticError, match=message):
            NetworkConfig.from_dict(config().as_dict() | change)

    def test_a_missing_part(self) -> None:
        plain = config().as_dict()
        del plain["patch"]
        with pytest.raises(DiagnosticError, match="patch"):
            NetworkConfig.from_dict(plain)


class TestSizes:
    signature = NetworkSignature("v", arguments("z:state t:time"), arguments("label:label"))

    @pytest.mark.parametrize(("name", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
    def test_published_sizes_have_the_published_weights(self, name: str, millions: int) -> None:
        with torch.device("meta"):
            network = build_network(self.signature, shape=(4, 32, 32), classes=1000, size=name)
        assert network.config.patch == 2
        assert network.parameter_count / 1e6 == pytest.approx(millions, rel=0.015)
        assert f"DiT {name}" in network.describe()

    def test_smaller_ones_are_smaller(self) -> None:
        with torch.device("meta"):
            counts = [
                build_network(self.signature, shape=(1, 8, 8), size=name).parameter_count
                for name in SIZES
            ]
        assert all(a < b for a, b in pairwise(counts))

    @pytest.mark.parametrize(
        ("size", "height", "width", "patch"),
        [
            ("nano", 4, 4, 1),
            ("nano", 8, 8, 2),
            ("nano", 8, 7, 1),
            ("nano", 16, 16, 2),
            ("nano", 28, 28, 4),
            ("nano", 32, 32, 4),
            ("nano", 7, 7, 1),
            ("nano", 30, 30, 2),
            ("XL", 32, 32, 2),
            ("XL", 64, 64, 4),
        ],
    )
    def test_patch_by_default(self, size: str, height: int, width: int, patch: int) -> None:
        settings = configure(self.signature, shape=(1, height, width), size=size)
        assert settings.patch == patch

    @pytest.mark.parametrize(
        ("asked", "meant"), [("namo", "nano"), ("xl", "XL"), ("b", "B"), ("mikro", "micro")]
    )
    def test_unknown(self, asked: str, meant: str) -> None:
        with pytest.raises(DiagnosticError, match=f'did you mean "{meant}"'):
            build_network(self.signature, shape=(1, 8, 8), size=asked)

    def test_records_are_frozen(self) -> None:
        with pytest.raises(AttributeError):
            SIZES["nano"].depth = 3  # type: ignore[misc]
        assert asdict(SIZES["S"]) == {
            "name": "S",
            "depth": 12,
            "width": 384,
            "heads": 6,
            "tokens": 256,
        }


class TestRefusals:
    """Every mistake ends in a diagnostic with its cause, and a remedy where there is one."""

    def refused(self, call: Callable[[], Any]) -> str:
        with pytest.raises(DiagnosticError) as caught:
            call()
        return str(caught.value)

    def test_a_patch_that_does_not_fit(self) -> None:
        signature = TestSizes.signature
        text = self.refused(lambda: build_network(signature, shape=(1, 28, 28), patch=8))
        assert "28 x 28" in text
        assert "1, 2, 4, 7, 14, 28" in text
        assert "32 x 32" in text

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"conditions": "text:features more:features"}, "features of several networks"),
            ({"conditioning": "prefix"}, 'unknown conditioning "prefix"'),
            ({"modulation": "rms"}, 'unknown modulation "rms"'),
            ({"start": "zero"}, 'unknown start "zero"'),
            ({"conditioning": "in_context", "times": "decoupled"}, "decoupled times are not"),
            ({"conditioning": "in_context", "modulation": "normalised"}, "no condition modulates"),
            ({"heads": "v:time"}, "returns a time"),
            ({"call": "t:time", "conditions": ""}, "returns a state but sees none"),
            ({"conditions": "a:label b:label"}, "several labels"),
            ({"shape": (8, 8)}, "(channels, height, width)"),
            ({"classes": 0}, "number of classes"),
            ({"own_blocks": 3}, "3 own blocks"),
            ({"size": replace(TINY, heads=3)}, "multiple of 4"),
            ({"positions": "rotary"}, 'unknown positions "rotary"'),
        ],
    )
    def test_what_cannot_be_built(self, changes: dict[str, Any], message: str) -> None:
        assert message in self.refused(lambda: config(**changes))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.update(z=c["z"][:, :1]), "(batch, 2, 4, 6), not (3, 1, 4, 6)"),
            (lambda c: c.update(z=c["z"][0]), "not (2, 4, 6)"),
            (lambda c: c.update(t=c["t"][:2]), "(3,), not (2,)"),
            (lambda c: c.update(t=c["t"][:, None]), "not (3, 1)"),
            (lambda c: c.update(t=torch.ones(3, dtype=torch.long)), "of int64"),
            (lambda c: c.update(z=c["z"].float()), "float64 weights"),
        ],
    )
    def test_wrong_arguments(self, change: Callable[[dict[str, Any]], None], message: str) -> None:
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        given = {"z": z, "t": t, "r": r}
        change(given)
        assert message in self.refused(lambda: network(*given.values(), label=label, w=w))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("w"), 'misses the condition "w"'),
            (lambda c: c.update(lable=c.pop("label")), 'did you mean "label"'),
            (lambda c: c.update(omega=c["w"]), 'has no condition "omega"'),
            (lambda c: c.update(label=torch.tensor([0, 3, 1])), "the label 3"),
            (lambda c: c.update(label=torch.tensor([0, -2, 1])), "the label -2"),
            (lambda c: c.update(label=torch.tensor([0, 1])), "not (2,)"),
            (lambda c: c.update(label=torch.ones(3)), "of float32"),
        ],
    )
    def test_wrong_conditions(self, change: Callable[[dict[str, Any]], Any], message: str) -> None:
        network = stirred(config())
        z, t, r, w, label, _ = batch()
        given = {"label": label, "w": w}
        change(given)
        assert message in self.refused(lambda: network(z, t, r, **given))

    def test_too_few_arguments(self) -> None:
        network = stirred(config())
        z, t, *_ = batch()
        text = self.refused(lambda: network(z, t))
        assert "2 positional arguments, not 3" in text
        assert "u(z, t, r | label, w)" in text

    def test_labels_for_a_network_without_classes(self) -> None:
        network = stirred(config(classes=None))
        z, t, r, w, label, _ = batch()
        assert "number of classes" in self.refused(lambda: network(z, t, r, label=label, w=w))

    def test_labels_are_read_once_where_that_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reads: list[str] = []
        monkeypatch.setattr(dit, "check_labels", lambda _, label: reads.append(label.device.type))
        network = network_from_config(config())
        for device in ("meta", "meta", "cpu", "cpu", "meta"):
            network._check_labels(torch.zeros(3, dtype=torch.long, device=device))
        assert reads == ["meta", "cpu", "cpu"]

    def test_labels_are_checked_inside_a_derivative(self) -> None:
        network = stirred(config())
        z, t, r, w, _, dz = batch()
        f = closed(network, torch.tensor([0, 9, 1]), w)
        assert "the label 9" in self.refused(lambda: jvp(f, (z, t, r), (dz, t, r)))


def test_is_a_plain_module() -> None:
    network = build_network(TestSizes.signature, shape=(1, 8, 8), classes=10)
    assert isinstance(network, DiT)
    assert not any("positions" in name for name in network.state_dict())
    assert network.config.classes == 10
