"""Sampling against flows known in closed form, and the pictures of samples."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from training_support import MeanFlow, TinyNet, network_signature, tiny_dataset

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.contract import NULL_LABEL, Condition, ObjectiveSignature
from flowdsl.runtime.data import load_dataset
from flowdsl.runtime.dataset import DataCard, Pixels
from flowdsl.runtime.grid import GAP, TILE, Block, picture, save_picture
from flowdsl.runtime.pictures import data_block, layout, sample_blocks, sample_picture
from flowdsl.runtime.randomness import derive_seed, generator
from flowdsl.runtime.samplers import SampleOptions
from flowdsl.runtime.sampling import check_sampler, sample, time_grid

STD = 0.3  # of the data: a centred Gaussian, whose flow on the linear path only scales


class GaussianFlow:
    """The exact flow of N(0, STD^2) data as if it were a loss. The network is unused, but is
    called.
    """

    source = ""

    def __init__(self, sampler="map", *, fixed_end=None, reverse=False, conditions=()) -> None:
        self.reverse = reverse
        self.calls: list[dict] = []
        self.signature = ObjectiveSignature(
            name="gaussian",
            title="",
            networks=(network_signature(),),
            terms=("target",),
            draws=(),
            data_time=1.0 if reverse else 0.0,
            noise_time=0.0 if reverse else 1.0,
            sampler=sampler,
            conditions=tuple(Condition(n, v) for n, v in conditions),
            fixed_end=fixed_end,
        )

    def _time(self, t):
        return 1 - t if self.reverse else t

    def _std(self, t):
        return torch.sqrt((1 - t) ** 2 * STD**2 + t**2)

    def jump(self, network, z, start, end, *, label=None, **conditions):
        self.calls.append({"start": start, "end": end, "label": label, **conditions})
        scale = self._std(self._time(end)) / self._std(self._time(start))
        return z * scale.view(-1, *[1] * (z.ndim - 1)).to(z.dtype)

    def velocity(self, network, z, time, *, label=None, **conditions):
        self.calls.append({"time": time, "label": label, **conditions})
        t = self._time(time)
        rate = (t - (1 - t) * STD**2) / self._std(t) ** 2
        rate = -rate if self.reverse else rate
        push = torch.zeros(len(z)) if label is None else (label.float() + 1)  # null: nothing
        shape = [-1, *[1] * (z.ndim - 1)]
        return z * rate.view(shape).to(z.dtype) + push.view(shape).to(z.dtype)


class WithPath(GaussianFlow):
    scale = 1.0

    def path(self, data, noise, time):
        t = self._time(time).view(-1, *[1] * (data.ndim - 1)).to(data.dtype)
        return (1 - t) * data + t * self.scale * noise


NET = nn.Identity()


def draw(loss, steps, sampler="auto", count=50, **more):
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 2, 1, 1, generator=random, dtype=torch.float64)
    options = SampleOptions(sampler=sampler, **more)
    return noise, sample(loss, NET, (2, 1, 1), count, steps, noise=noise, options=options)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_jumps_of_an_exact_map_reach_the_data_in_any_number_of_steps(steps, reverse):
    loss = GaussianFlow(reverse=reverse)
    noise, found = draw(loss, steps)
    assert torch.allclose(found, STD * noise, atol=1e-12)
    starts = [float(call["start"][0]) for call in loss.calls]
    ends = [float(call["end"][0]) for call in loss.calls]
    grid = [1 - k / steps for k in range(steps + 1)]
    grid = [1 - t for t in grid] if reverse else grid
    assert starts == pytest.approx(grid[:-1])
    assert ends == pytest.approx(grid[1:])
    assert all(call["start"].dtype == torch.float64 for call in loss.calls)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("reverse", [False, True])
def test_integration_has_its_order(sampler, order, reverse):
    loss = GaussianFlow("velocity", reverse=reverse)
    errors = []
    for steps in (40, 80, 160):
        noise, found = draw(loss, steps, sampler)
        errors.append(float((found - STD * noise).abs().max()))
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_velocities_are_integrated_by_euler_unless_asked_otherwise():
    loss = GaussianFlow("velocity")
    draw(loss, 7)
    assert len(loss.calls) == 7
    loss.calls.clear()
    draw(loss, 7, "heun")
    assert len(loss.calls) == 14


def test_a_map_can_be_sampled_by_its_velocity():
    loss = GaussianFlow()
    noise, found = draw(loss, 400, "heun")
    assert torch.allclose(found, STD * noise, atol=1e-4)


def test_a_fixed_end_predicts_the_clean_state_and_renoises_it():
    loss = WithPath(fixed_end=0.0)
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(6, 2, 1, 1, generator=random)
    options = SampleOptions()
    found = sample(
        loss, NET, (2, 1, 1), 6, 3, noise=noise, options=options,
        generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    assert [float(c["start"][0]) for c in loss.calls] == pytest.approx([1, 2 / 3, 1 / 3])
    assert all(float(c["end"][0]) == 0 for c in loss.calls)
    fresh = torch.Generator().manual_seed(9)
    clean = STD * noise
    for t in (2 / 3, 1 / 3):
        z = (1 - t) * clean + t * torch.randn(6, 2, 1, 1, generator=fresh)
        clean = z * STD / math.sqrt((1 - t) ** 2 * STD**2 + t**2)
    assert torch.allclose(found, clean, atol=1e-6)


def test_a_path_that_scales_its_noise_scales_the_start():
    loss = WithPath()
    loss.scale = 0.5
    noise, found = draw(loss, 1)
    assert torch.allclose(found, 0.5 * STD * noise, atol=1e-12)


def test_guidance_mixes_the_labelled_and_the_unlabelled_velocity():
    loss = GaussianFlow("velocity")
    z = torch.zeros(3, 2, 1, 1)
    label = torch.tensor([0, 1, 2])
    found = sample(
        loss, NET, (2, 1, 1), 3, 1, noise=z, label=label, options=SampleOptions(guidance=2.5)
    )
    # from z = 0 the velocity is label + 1, without a label 0; one Euler step of length -1
    assert torch.allclose(found[:, 0, 0, 0], -2.5 * (label + 1.0))
    assert loss.calls[1]["label"].tolist() == [NULL_LABEL] * 3


def test_conditions_have_the_values_of_the_spec_unless_set():
    loss = GaussianFlow(conditions=(("omega", 1.5), ("lo", 0.0)))
    draw(loss, 1, count=4, conditions={"omega": 3.0})
    call = loss.calls[0]
    assert call["omega"].tolist() == [3.0] * 4
    assert call["lo"].tolist() == [0.0] * 4


def test_custom_times():
    loss = GaussianFlow()
    draw(loss, 1, times=(1.0, 0.3, 0.0))
    assert [float(c["start"][0]) for c in loss.calls] == pytest.approx([1.0, 0.3])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 200), st.sampled_from([(0.0, 1.0), (1.0, 0.0), (0.0, math.pi / 2), (0.002, 80)])
)
def test_the_grid_is_uniform_and_ends_exactly(steps, ends):
    data, noise = ends
    signature = replace(GaussianFlow().signature, data_time=data, noise_time=noise)
    times = time_grid(signature, steps)
    assert times[0] == noise
    assert times[-1] == data
    assert len(times) == steps + 1
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps == pytest.approx([(data - noise) / steps] * steps)


@pytest.mark.parametrize(
    ("loss", "options", "words"),
    [
        (GaussianFlow("velocity"), {"sampler": "jump"}, ["velocity, not a map", "euler or heun"]),
        (GaussianFlow(fixed_end=0.0), {"sampler": "jump"}, ["time 0 only", "renoise"]),
        (GaussianFlow(), {"sampler": "renoise"}, ["does not tell its path"]),
        (GaussianFlow(), {"sampler": "eular"}, ['did you mean "euler"?']),
        (GaussianFlow(), {"guidance": 2.0}, ["learned with the map"]),
        (GaussianFlow("velocity"), {"guidance": 2.0}, ["needs labels"]),
        (GaussianFlow(conditions=(("omega", 1.0),)), {"conditions": {"omga": 1.0}}, ['"omega"?']),
        (GaussianFlow(), {"times": (1.0, 0.5)}, ["do not lead from noise to data"]),
        (GaussianFlow(), {"times": (1.0, 0.2, 0.4, 0.0)}, ["strictly ordered, from 1 to 0"]),
    ],
)
def test_what_cannot_be_sampled_is_said(loss, options, words):
    with pytest.raises(DiagnosticError) as caught:
        sample(loss, NET, (2, 1, 1), 3, 2, options=SampleOptions(**options))
    for word in words:
        assert word in str(caught.value)


def test_steps_must_be_positive_and_checks_need_no_network():
    with pytest.raises(DiagnosticError, match="at least one step"):
        sample(GaussianFlow(), NET, (2, 1, 1), 3, 0)
    with pytest.raises(DiagnosticError, match="does not tell its path"):
        check_sampler(GaussianFlow(fixed_end=0.0))
    check_sampler(WithPath(fixed_end=0.0))


def test_modes_are_restored_and_no_gradient_is_kept():
    net = TinyNet(dropout=0.5)
    net.second.eval()
    loss = MeanFlow()
    label = torch.tensor([0, 1, 2, 0])
    one, two = (
        sample(loss, net, (1, 4, 4), 4, 2, label=label, generator=generator(0, "x"))
        for _ in range(2)
    )
    assert torch.equal(one, two)  # no dropout while sampling
    assert not one.requires_grad
    assert net.drop.training
    assert not net.second.training


def test_many_samples_go_in_chunks_with_their_own_labels(monkeypatch):
    net, loss = TinyNet(), MeanFlow()
    label = torch.arange(50) % 3
    noise = torch.randn(50, 1, 4, 4, generator=generator(1, "x"))
    whole = sample(loss, net, (1, 4, 4), 50, 3, label=label, noise=noise)
    monkeypatch.setattr("flowdsl.runtime.sampling.CHUNK", 7)
    parts = sample(loss, net, (1, 4, 4), 50, 3, label=label, noise=noise)
    assert torch.allclose(whole, parts, atol=1e-6)


def test_seeds_of_different_purposes_differ():
    seeds = {derive_seed(s, name, k) for s in range(5) for name in "ab" for k in range(20)}
    assert len(seeds) == 200
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


# -- pictures -----------------------------------------------------------------------------------


def tiles_of(image: Image.Image) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_a_grid_shows_every_pixel_enlarged(tmp_path):
    states = torch.zeros(2, 3, 1, 8, 8)
    states[1, 2, 0, 5, 6] = 1.0  # one white pixel
    image = picture([Block("1 step", states)], Pixels(), title="a title", row_names=("a", "b"))
    save_picture(image, tmp_path / "deep" / "grid.png")
    pixels = tiles_of(Image.open(tmp_path / "deep" / "grid.png"))
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "grid.png"]
    scale = TILE // 8
    grey = (pixels == 128).all(0)
    rows, columns = grey.any(1).nonzero().flatten(), grey.any(0).nonzero().flatten()
    top, left = int(rows[0]), int(columns[0])
    assert int(rows[-1]) - top + 1 == 2 * TILE + GAP
    assert int(columns[-1]) - left + 1 == 3 * TILE + 2 * GAP
    y, x = top + TILE + GAP + 5 * scale, left + 2 * (TILE + GAP) + 6 * scale
    block = pixels[:, y : y + scale, x : x + scale]
    assert bool((block == 255).all())
    assert bool(grey[y - 1, x])
    assert bool(grey[y, x - 1])
    assert bool((pixels[:, :top] < 100).any())  # the title's ink
    assert bool((pixels[:, :, : left - 1] < 100).any())  # the rows' names


def test_blocks_stand_side_by_side_under_their_captions():
    one = torch.full((1, 1, 3, 64, 64), -1.0)
    image = picture([Block("1 step", one), Block("2 steps", -one)], Pixels(), title="t")
    pixels = tiles_of(image)
    black = (pixels == 0).all(0)
    white_right = pixels[:, -60:, -40:-20]
    assert int(black.sum()) == 64 * 64
    assert bool((white_right == 255).all())


def test_points_become_a_scatter_plot():
    corner = torch.tensor([0.5, 0.5]).view(1, 1, 2, 1, 1)
    pixels = Pixels(-1, 1, "points")
    image = tiles_of(
        picture([Block("1 step", corner)], pixels, title="", backdrop=-corner.flatten(0, 1))
    )
    red = ((image[0] > 150) & (image[1] < 100)).nonzero().float().mean(0)
    grey = ((image[0] == 205) & (image[2] == 212)).nonzero().float().mean(0)
    assert (red - grey).tolist() == pytest.approx([-149.5, 149.5], abs=2)  # up and to the right


def test_the_layout_follows_the_data():
    digits = DataCard("digits", "digits", (1, 8, 8), 10, tuple("0123456789"))
    assert layout(digits, labelled=True).labels == tuple(range(10))
    assert layout(digits, labelled=True, labels=(3,)).rows == 1
    assert layout(digits, labelled=False).labels is None
    many = DataCard("many", "many", (1, 8, 8), 1000)
    assert layout(many, labelled=True).rows == 10
    assert layout(DataCard("p", "p", (2, 1, 1), pixels=Pixels(kind="points")), labelled=False) == (
        layout(DataCard("p", "p", (2, 1, 1), pixels=Pixels(kind="points")), labelled=True)
    )


def test_samples_are_shown_beside_held_out_data_of_their_classes():
    digits = load_dataset("digits")
    block = data_block(digits, layout(digits.card, labelled=True, labels=(7, 2)))
    assert block.states.shape == (2, 4, 1, 8, 8)
    held_out = digits.held_out.first(1000)
    for row, label in zip(block.states, (7, 2), strict=True):
        for state in row:
            (index,) = (held_out.data == state).flatten(1).all(1).nonzero().flatten().tolist()
            assert held_out.label[index] == label
    unlabelled = data_block(digits, layout(digits.card, labelled=False))
    assert unlabelled.states.shape == (8, 4, 1, 8, 8)
    assert len(unlabelled.states.flatten(0, 1).unique(dim=0)) == 32
    few = tiny_dataset(20)
    assert data_block(few, layout(few.card, labelled=False)) is None


def test_rows_are_classes_and_blocks_share_their_noise():
    card = DataCard("tiny", "tiny", (1, 4, 4), 3)
    loss, net = MeanFlow(), TinyNet()
    plan = layout(card, labelled=True)
    blocks = sample_blocks(loss, net, card, plan, (1, 2), seed=4, device=torch.device("cpu"))
    assert [b.caption for b in blocks] == ["1 step", "2 steps"]
    noise = torch.randn(24, 1, 4, 4, generator=generator(4, "picture"))
    label = torch.arange(3).repeat_interleave(8)
    for block, steps in zip(blocks, (1, 2), strict=True):
        expected = sample(loss, net, (1, 4, 4), 24, steps, noise=noise, label=label)
        assert torch.allclose(block.states.flatten(0, 1), expected)
    image = sample_picture(blocks, card, plan, title="t")
    assert image.width > 2 * 8 * TILE
