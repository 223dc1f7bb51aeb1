"""The metrics against independent references, the features they use, and whole evaluations."""

from __future__ import annotations

import json

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_sampling import WithPath
from torch import nn
from training_support import MeanFlow, TinyNet, network_signature, tiny_dataset

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.contract import ObjectiveSignature
from flowdsl.runtime.data import load_dataset, mixture
from flowdsl.runtime.dataset import Batch
from flowdsl.runtime.evaluation import EvaluationOptions, evaluate
from flowdsl.runtime.features import Features, features_of
from flowdsl.runtime.metrics import Evidence, load_metric, metric_names
from flowdsl.runtime.metrics.frechet import frechet_distance
from flowdsl.runtime.metrics.precision_recall import covered
from flowdsl.runtime.metrics.sliced_wasserstein import sliced_wasserstein
from flowdsl.runtime.randomness import generator
from flowdsl.runtime.samplers import SampleOptions
from flowdsl.runtime.truth import exact_flow

RAW = Features("points", "", None, None)  # states are their own features


def normal(count, dimension, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimension, generator=random, dtype=torch.float64)


def evidence(generated, real, **more):
    return Evidence(Batch(generated, None), Batch(real, None), RAW, **more)


# -- each metric --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_frechet_distance_is_that_of_the_textbook(dimension, seed):
    one = normal(40, dimension, seed) @ normal(dimension, dimension, seed + 1) + 0.3
    two = normal(30, dimension, seed + 2) @ normal(dimension, dimension, seed + 3)
    c1, c2 = (torch.atleast_2d(torch.cov(x.T)).numpy() for x in (one, two))
    root = scipy.linalg.sqrtm(c1 @ c2).real
    mean = float((one.mean(0) - two.mean(0)).square().sum())
    expected = mean + (c1 + c2 - 2 * root).trace()
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one), abs=1e-8)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_of_a_shift_and_of_broken_samples():
    rows = normal(50, 5)
    shift = torch.tensor([1.0, 0, 2, 0, 0], dtype=torch.float64)
    assert frechet_distance(rows, rows + shift) == pytest.approx(5.0)
    assert frechet_distance(rows, 3 * rows) == pytest.approx(
        float(4 * torch.cov(rows.T).trace() + (2 * rows.mean(0)).square().sum())
    )
    rows[3, 3] = float("nan")
    assert frechet_distance(rows, normal(5, 5)) == float("inf")


def test_frechet_distance_of_fewer_rows_than_features_stays_finite():
    assert 0 < frechet_distance(normal(5, 30), normal(100, 30, 1)) < 100


def test_sliced_wasserstein_of_a_shift_in_one_dimension_is_the_shift():
    rows = normal(60, 1)
    assert sliced_wasserstein(rows, rows + 0.7) == pytest.approx(0.7)
    assert sliced_wasserstein(rows, rows.flip(0)) == pytest.approx(0, abs=1e-12)


def test_sliced_wasserstein_of_gaussians_is_that_of_the_formula():
    # along any direction the laws are N(0, 1) and N(0, 4), whose distance is 1
    one, two = normal(10_000, 3), 2 * normal(10_000, 3, 1)
    assert sliced_wasserstein(one, two, directions=32) == pytest.approx(1.0, abs=0.03)


def test_sliced_wasserstein_compares_unequal_counts_by_quantiles():
    rows = normal(500, 4)
    twice = rows.repeat(2, 1)
    assert sliced_wasserstein(rows, twice) < 0.03
    assert sliced_wasserstein(rows, twice) == pytest.approx(sliced_wasserstein(twice, rows))
    assert sliced_wasserstein(rows + 1, twice) > 0.4
    rows[0, 0] = float("inf")
    assert sliced_wasserstein(rows, twice) == float("inf")


def test_coverage_counts_balls_like_a_slow_loop():
    points, support = normal(30, 2), normal(40, 2, 1) + 2.5
    inside = 0
    for point in points:
        for k, centre in enumerate(support):
            others = [float((centre - x).norm()) for j, x in enumerate(support) if j != k]
            if float((point - centre).norm()) <= sorted(others)[2]:
                inside += 1
                break
    assert covered(points, support) == pytest.approx(inside / 30)
    assert 0 < inside < 30


def test_precision_and_recall_tell_collapse_from_noise():
    measure = load_metric("precision_recall").measure
    real = normal(300, 2)
    collapsed = measure(evidence(0.05 * normal(300, 2, 1), real))
    spread = measure(evidence(6 * normal(300, 2, 1), real))
    assert collapsed["precision"] > 0.95
    assert collapsed["recall"] < 0.1
    assert spread["precision"] < 0.4
    assert spread["recall"] > 0.6
    assert measure(evidence(real[:3], real)) == {}


class Signs(nn.Module):
    """Classifies by the sign of the first number."""

    def forward(self, states):
        return torch.stack([-states.flatten(1)[:, 0], states.flatten(1)[:, 0]], 1)

    features = forward


def test_accuracy_counts_the_class_asked_for():
    features = Features("signs", "", Signs(), 2)
    states = torch.tensor([-1.0, 2.0, 3.0, -4.0]).view(4, 1, 1, 1)
    asked = torch.tensor([0, 1, 0, 0])
    measure = load_metric("accuracy").measure
    real = Batch(states, None)
    assert measure(Evidence(Batch(states, asked), real, features)) == {"accuracy": 0.75}
    assert measure(Evidence(Batch(states, None), real, features)) == {}
    assert measure(Evidence(Batch(states, asked), real, RAW)) == {}


def test_exact_flow_error_is_the_root_mean_square_distance():
    measure = load_metric("exact_flow").measure
    there = torch.zeros(4, 2, 1, 1)
    here = there + torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    here[2:] = 0
    found = measure(evidence(here, there, noise=there, carried=there))
    assert found["exact-flow error"] == pytest.approx((25 / 2) ** 0.5)
    assert measure(evidence(here, there)) == {}


def test_every_file_of_the_folder_is_a_metric():
    assert set(metric_names()) == {
        "accuracy",
        "exact_flow",
        "frechet",
        "precision_recall",
        "sliced_wasserstein",
    }
    for name in metric_names():
        assert load_metric(name).summary
        assert load_metric(name).better in ("lower", "higher")
    with pytest.raises(DiagnosticError, match="did you mean"):
        load_metric("freche")


# -- features -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_features(tmp_path_factory):
    return features_of(load_dataset("digits"), tmp_path_factory.mktemp("cache"))


def test_the_digits_classifier_is_good_enough_to_judge(digits_features):
    dataset = load_dataset("digits")
    held_out = dataset.held_out.first(1000)
    seen = digits_features.classify(held_out.data)
    assert float((seen == held_out.label).double().mean()) > 0.94
    assert digits_features.name == "digits-cnn"
    assert digits_features.embed(held_out.data).shape == (dataset.held_out.count, 64)
    assert digits_features.embed(held_out.data).dtype == torch.float64


def test_digits_metrics_rank_damage(digits_features):
    dataset = load_dataset("digits")
    held_out, real = dataset.held_out.first(1000), dataset.train.first(2000)
    noise = torch.randn(held_out.data.shape, generator=generator(0, "noise"))

    def distance(data):
        seen = Evidence(Batch(data, held_out.label), real, digits_features)
        return load_metric("frechet").measure(seen)["FD-digits-cnn"]

    few = held_out.data[held_out.label < 3]
    ladder = [distance(held_out.data + s * noise) for s in (0.0, 0.4, 0.8, 3.0)]
    assert ladder == sorted(ladder)
    assert ladder[-1] > 10 * ladder[0]
    assert distance(few) > 10 * ladder[0]


def test_features_are_trained_once_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr("flowdsl.runtime.features.STEPS", 5)
    dataset = tiny_dataset(shape=(1, 8, 8))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = features_of(dataset, tmp_path / "cache")
    assert torch.equal(torch.get_rng_state(), before)
    (file,) = (tmp_path / "cache").iterdir()
    torch.manual_seed(2)
    other = features_of(dataset, tmp_path / "other")
    assert one.digest == other.digest  # trained again, from another global seed
    written = file.stat().st_mtime_ns
    assert features_of(dataset, tmp_path / "cache").digest == one.digest
    assert file.stat().st_mtime_ns == written
    file.write_bytes(b"broken")
    assert features_of(dataset, tmp_path / "cache").digest == one.digest
    # a cache that cannot be written is no error
    (tmp_path / "file").write_text("")
    assert features_of(dataset, tmp_path / "file").digest == one.digest


def test_other_training_rows_have_other_features(tmp_path, monkeypatch):
    monkeypatch.setattr("flowdsl.runtime.features.STEPS", 2)
    features_of(tiny_dataset(60, shape=(1, 8, 8)), tmp_path)
    features_of(tiny_dataset(61, shape=(1, 8, 8)), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("shape", "turns"), [((1, 8, 8), 4), ((2, 8, 4), 2)])
def test_data_without_labels_learn_how_they_were_turned(tmp_path, monkeypatch, shape, turns):
    monkeypatch.setattr("flowdsl.runtime.features.STEPS", 3)
    features = features_of(tiny_dataset(classes=None, shape=shape), tmp_path)
    assert features.network.head.out_features == turns
    assert features.classify(torch.zeros(2, *shape)) is None
    assert features.embed(torch.zeros(2, *shape)).shape == (2, 64)


# -- evaluations --------------------------------------------------------------------------------


class Remembers(WithPath):
    """A "map" that lands on training rows of the class asked for: a model that copies its data."""

    def __init__(self, dataset, spoil=0.0):
        super().__init__()
        self.rows = dataset.train.rows(torch.arange(dataset.train.count))
        self.spoil = spoil

    def jump(self, network, z, start, end, *, label=None, **conditions):
        self.calls.append({"label": label})
        picks = []
        for k, wanted in enumerate(label.tolist()):
            mine = (self.rows.label == wanted).nonzero().flatten()
            picks.append(mine[k % len(mine)])
        return self.rows.data[torch.stack(picks)] + self.spoil * z


def test_a_model_that_copies_its_data_is_at_the_floor(digits_features):
    dataset = load_dataset("digits")
    options = EvaluationOptions(steps=(1, 2))
    good = evaluate(Remembers(dataset), nn.Identity(), dataset, digits_features, options)
    bad = evaluate(Remembers(dataset, 0.7), nn.Identity(), dataset, digits_features, options)
    assert good.count == dataset.held_out.count
    assert [row.steps for row in good.rows] == [1, 2]
    values, spoilt = good.rows[0].values, bad.rows[0].values
    assert set(values) == set(good.floor) == set(good.better)
    assert values["accuracy"] > 0.95
    assert values["FD-digits-cnn"] < 2 * good.floor["FD-digits-cnn"]
    assert values["precision"] > good.floor["precision"] - 0.02
    for name, better in good.better.items():
        if name != "recall":  # noise may well reach every real row
            worse = (
                spoilt[name] > values[name] if better == "lower" else spoilt[name] < values[name]
            )
            assert worse, name
    assert good.floor == bad.floor


def test_an_evaluation_can_be_read_by_people_and_programs(digits_features):
    dataset = load_dataset("digits")
    options = EvaluationOptions(steps=(1, 4), count=20, metrics=("accuracy", "frechet"))
    found = evaluate(
        Remembers(dataset), nn.Identity(), dataset, digits_features, options,
        weights="ema-0.99", step=7,
    )  # fmt: skip
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found.table())
    text = console.export_text()
    assert "accuracy ↑" in text
    assert "FD-digits-cnn ↓" in text
    assert "held-out data" in text
    assert "20 samples each" in text
    plain = json.loads(found.json())
    assert plain["rows"][1]["steps"] == 4
    assert plain["features"].startswith("digits-cnn ")
    assert plain["floor"]["accuracy"] == found.floor["accuracy"]


def test_numbers_that_are_not_finite_are_null_in_json(digits_features):
    dataset = load_dataset("digits")
    options = EvaluationOptions(steps=(1,), count=20)
    found = evaluate(
        Remembers(dataset, float("nan")), nn.Identity(), dataset, digits_features, options
    )
    assert found.rows[0].values["FD-digits-cnn"] == float("inf")
    assert json.loads(found.json())["rows"][0]["values"]["FD-digits-cnn"] is None


def test_heun_counts_two_evaluations_a_step(digits_features):
    dataset = load_dataset("digits")
    net = TinyNet((1, 8, 8), 10)
    options = EvaluationOptions(
        steps=(3,), count=10, metrics=("accuracy",), sampling=SampleOptions(sampler="heun")
    )
    found = evaluate(MeanFlow(), net, dataset, digits_features, options)
    assert found.rows[0].evaluations == 6
    with pytest.raises(DiagnosticError, match="at least two"):
        evaluate(MeanFlow(), net, dataset, digits_features, EvaluationOptions(count=1))


# -- the exact flow of the mixture --------------------------------------------------------------


class LinearPath:
    """A loss that tells the linear path; `jump` is whatever the test sets."""

    source = ""

    def __init__(self) -> None:
        self.signature = ObjectiveSignature(
            "linear", "", (network_signature(),), ("target",), (), data_time=0.0, noise_time=1.0
        )

    def path(self, data, noise, time):
        t = time.view(-1, *[1] * (data.ndim - 1)).to(data.dtype)
        return (1 - t) * data + t * noise


def mixture_velocity(z: torch.Tensor, t: float) -> torch.Tensor:
    """E[noise - data | z] for the linear path, component by component; (n, 2) -> (n, 2)."""
    logs, means = [], []
    eye = torch.eye(2, dtype=torch.float64)
    for weight, mean, cov in zip(mixture.WEIGHTS, mixture.MEANS, mixture.COVARIANCES, strict=True):
        total = (1 - t) ** 2 * cov + t**2 * eye
        gap = z - (1 - t) * mean
        solved = torch.linalg.solve(total, gap.T).T
        logs.append(weight.log() - 0.5 * (gap * solved).sum(1) - 0.5 * torch.logdet(total))
        data = mean + (1 - t) * solved @ cov
        noise = t * solved
        means.append(noise - data)
    weights = torch.softmax(torch.stack(logs), 0)
    return (weights[:, :, None] * torch.stack(means)).sum(0)


def test_the_exact_flow_of_the_mixture_agrees_with_a_slow_integration():
    loss = LinearPath()
    flow = exact_flow(loss, load_dataset("mixture").card)
    noise = normal(20, 2)
    steps = 400
    z = noise.clone()
    for k in range(steps):  # Runge-Kutta of order four
        t, h = 1 - k / steps, -1 / steps
        k1 = mixture_velocity(z, t)
        k2 = mixture_velocity(z + h / 2 * k1, t + h / 2)
        k3 = mixture_velocity(z + h / 2 * k2, t + h / 2)
        k4 = mixture_velocity(z + h * k3, t + h)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    one, zero = torch.ones(20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)
    found = flow(noise.view(20, 2, 1, 1), one, zero)
    assert found.shape == (20, 2, 1, 1)
    assert torch.allclose(found.flatten(1), z, atol=1e-6)


def test_the_exact_flow_is_known_only_for_the_mixture_and_with_a_path():
    assert exact_flow(LinearPath(), load_dataset("digits").card) is None
    assert exact_flow(MeanFlow(), load_dataset("mixture").card) is None


def test_exact_flow_error_of_an_exact_map_and_of_a_coarse_integration():
    loss = LinearPath()
    dataset = load_dataset("mixture")
    flow = exact_flow(loss, dataset.card)
    loss.jump = lambda network, z, start, end, label=None: flow(
        z.double(), start.double(), end.double()
    ).to(z.dtype)
    loss.velocity = lambda network, z, time, label=None: (
        mixture_velocity(z.flatten(1).double(), float(time[0])).to(z.dtype).view_as(z)
    )

    def error(sampler, steps):
        options = EvaluationOptions(
            steps=steps, count=40, metrics=("exact_flow",), sampling=SampleOptions(sampler=sampler)
        )
        found = evaluate(loss, nn.Identity(), dataset, RAW, options, exact=flow)
        assert found.floor == {}
        return [row.values["exact-flow error"] for row in found.rows]

    assert max(error("jump", (1, 2))) < 1e-4
    one, many = error("euler", (1, 32))
    assert one > 0.3
    assert many < one / 5
