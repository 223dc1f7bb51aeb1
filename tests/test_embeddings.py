"""Images with embeddings of their captions: from the file to the samples of a run."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from flowdsl.cli import app
from flowdsl.cli.runs import compile_saved
from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.conditions import read_conditions
from flowdsl.runtime.data import load_dataset
from flowdsl.runtime.nets.vectors import VectorEmbedding
from flowdsl.runtime.runs import load_run

WIDTH, COUNT = 6, 24
SPEC = """objective captions
path          z(t) = (1 - t) * data + t * noise
rows          dropped ~ bernoulli(0.1)
times         t ~ uniform(0, 1)
conditions    text = null on dropped
network       u(z, t | text)
target        match u(z, t) to velocity
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Grey images whose brightness is their number."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(COUNT):
        Image.new("L", (9, 8), 10 * k).save(folder / f"{k:02}.png")
    return folder


def table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype("float32")


def brightness(states: torch.Tensor) -> list[int]:
    return [round((float(s.mean()) + 1) * 127.5 / 10) for s in states]


def written(folder: Path, form: str) -> Path:
    path = folder / f"captions.{form}"
    if form == "npy":
        np.save(path, table())
    elif form == "safetensors":
        save_file({"embeddings": torch.tensor(table())}, path)
    else:
        lines = [
            {"file": f"{k:02}.png", "embedding": row.tolist(), "text": f"brightness {k}"}
            for k, row in enumerate(table())
        ]
        path.write_text("\n".join(json.dumps(line) for line in reversed(lines)))
    return path


@pytest.mark.parametrize("form", ["npy", "safetensors", "jsonl"])
def test_every_image_has_its_own_row(photos: Path, tmp_path: Path, form: str) -> None:
    path = written(tmp_path, form)
    vectors = read_conditions(path).vectors
    dataset = load_dataset(f"folder:{photos}", 8, str(path))
    assert dataset.card.classes == COUNT
    seen = []
    for part in (dataset.train, dataset.held_out):
        batch = part.rows(torch.arange(part.count))
        assert batch.label is not None
        numbers = brightness(batch.data)
        assert torch.equal(vectors[batch.label], torch.tensor(table()[numbers]))
        seen += numbers
    assert sorted(seen) == list(range(COUNT))
    assert dataset.card.class_name(0) == ("brightness 23" if form == "jsonl" else "0")


def test_rows_of_an_array_have_theirs(tmp_path: Path) -> None:
    data = np.tile(np.arange(COUNT, dtype="float32")[:, None, None, None], (1, 1, 8, 8))
    np.save(tmp_path / "data.npy", data)
    dataset = load_dataset(f"array:{tmp_path}/data.npy", None, str(written(tmp_path, "npy")))
    batch = dataset.train.rows(torch.arange(dataset.train.count))
    assert batch.label is not None
    assert torch.equal(batch.label.float(), batch.data[:, 0, 0, 0])


def test_the_network_sees_the_vectors_and_a_null_of_its_own() -> None:
    part = VectorEmbedding(COUNT, WIDTH, 5).double()
    for p in part.parameters():
        torch.nn.init.normal_(p)
    vectors = torch.tensor(table())
    part.show(vectors)
    label = torch.tensor([3, -1, 0])
    scaled = vectors / (vectors.square().mean(1, keepdim=True) + torch.finfo().eps).sqrt()
    expected = scaled.double() @ part.projection.weight.T + part.projection.bias
    found = part(label)
    torch.testing.assert_close(
        found[[0, 2]], expected[[3, 0]], rtol=1e-5, atol=1e-6
    )  # a float32 table
    torch.testing.assert_close(found[1], part.null)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    other = copy.deepcopy(part)
    assert other.vectors is part.vectors  # once in memory, however many averages
    assert set(part.state_dict()) == {"projection.weight", "projection.bias", "null"}


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_spec_with_text_trains_samples_and_is_evaluated(photos: Path, tmp_path: Path) -> None:
    path, spec, folder = written(tmp_path, "jsonl"), tmp_path / "my.flow", tmp_path / "run"
    spec.write_text(SPEC)
    told = run("train", spec, f"data=folder:{photos}", "resolution=8", "steps=3", "batch=4",
               "sample_steps=1", "tensorboard=no", "--conditions", path, "-o", folder)  # fmt: skip
    assert f"24 conditions from {path}" in told
    assert "2 held-out rows are few" in told
    run("sample", folder, "--steps", 1, "--classes", "brightness 3,5", "-o", tmp_path / "a.png")
    np.save(tmp_path / "new.npy", table()[:2] * 3)
    run("sample", folder, "--steps", 1, "--conditions", tmp_path / "new.npy",
        "-o", tmp_path / "b.png")  # fmt: skip
    told = run("evaluate", folder, "--steps", 1)
    assert "accuracy" not in told  # its classifier knows no captions
    assert "compared with 22 training rows; last line: 2 rows drawn from 2 held out" in told
    old, new = (load_run(folder, compile_saved, conditions=c)
                for c in (None, str(tmp_path / "new.npy")))  # fmt: skip
    z, time = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 0.5])
    label = torch.tensor([23, 22])  # lines are in the reverse order
    first = old.loss.velocity(old.networks, z, time, label=label)
    torch.testing.assert_close(
        new.loss.velocity(new.networks, z, time, label=torch.tensor([0, 1])), first
    )
    assert not torch.equal(first, old.loss.velocity(old.networks, z, time))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.zeros((5, 3), "float32"), "5 rows for 24 images"),
        ("a.npy", np.zeros((24, 3, 2), "float32"), "pool the tokens"),
        ("a.npy", np.full((24, 3), np.nan), "not finite"),
        ("a.txt", "x", "no known form"),
        ("a.jsonl", '{"text": "x"}', "a.jsonl:1 has no embedding"),
        ("a.jsonl", '{"file": "0.png", "embedding": [1, 2]}', "no line for 24 of 24 images"),
        ("a.jsonl", '{"embedding": [1]}\n{"embedding": [1, 2]}', "2 widths"),
        ("a.jsonl", "{", "cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    photos: Path, tmp_path: Path, name: str, content: object, message: str
) -> None:
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_text(str(content))
    with pytest.raises(DiagnosticError, match=message):
        load_dataset(f"folder:{photos}", 8, str(path))


def test_data_without_an_order_and_specs_without_text_are_refused(
    photos: Path, tmp_path: Path
) -> None:
    path = written(tmp_path, "npy")
    with pytest.raises(DiagnosticError, match="take no conditions from a file"):
        load_dataset("mixture", None, str(path))
    spec = tmp_path / "my.flow"
    spec.write_text(
        SPEC.replace(" | text", "").replace("conditions    text = null on dropped\n", "")
    )
    with pytest.raises(DiagnosticError, match="no network of captions sees a condition"):
        run("train", spec, f"data=folder:{photos}", f"conditions={path}", "resolution=8")
