"""The datasets: what they contain, which rows a step sees, what is held out, and what is said when
files are wrong.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from training_support import tiny_dataset

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime import data as datasets
from flowdsl.runtime.data import dataset_names, dataset_summary, fashion_mnist, load_dataset
from flowdsl.runtime.data.mixture import COVARIANCES, MEANS, WEIGHTS
from flowdsl.runtime.dataset import Pixels, in_memory, permutation, split, step_indices


def said(call, *words: str) -> str:
    """The message of the diagnostic that `call` raises; it must hold all the words."""
    with pytest.raises(DiagnosticError) as caught:
        call()
    text = str(caught.value)
    for word in words:
        assert word in text, text
    return text


# -- which rows a step sees ---------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40), size=st.integers(1, 100), step=st.integers(0, 50), seed=st.integers(0)
)
def test_steps_read_the_endless_sequence_of_epochs(count, size, step, seed):
    first = step * size
    epochs = range(first // count, (first + size - 1) // count + 1)
    sequence = torch.cat([permutation(count, seed, epoch) for epoch in epochs])
    offset = first - epochs[0] * count
    assert torch.equal(step_indices(count, step, seed, size), sequence[offset : offset + size])


def test_an_epoch_shows_every_row_once_and_epochs_differ():
    dataset = tiny_dataset(50)  # 40 rows to train on
    batches = [dataset.batch(step, seed=3, size=8) for step in range(10)]
    epochs = [torch.cat([b.data for b in batches[k : k + 5]]).flatten(1) for k in (0, 5)]
    rows = dataset.train.rows(torch.arange(40)).data.flatten(1)
    for epoch in epochs:
        found = (epoch[:, None] == rows).all(-1).sum(0)
        assert torch.equal(found, torch.ones(40, dtype=found.dtype))
    assert not torch.equal(*epochs)


def test_a_batch_is_a_function_of_seed_and_step():
    dataset = load_dataset("photos")
    one, again = dataset.batch(7, 1, 16), load_dataset("photos").batch(7, 1, 16)
    assert torch.equal(one.data, again.data)
    assert not torch.equal(one.data, dataset.batch(7, 2, 16).data)
    assert not torch.equal(one.data, dataset.batch(8, 1, 16).data)


def test_mirroring_flips_about_half_of_the_rows_and_only_where_it_is_allowed():
    photos = load_dataset("photos")
    plain = photos.train.rows(step_indices(photos.train.count, 0, 0, 400)).data
    seen = photos.batch(0, 0, 400).data
    same = (seen == plain).flatten(1).all(1)
    mirrored = (seen == plain.flip(-1)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert 140 < int(mirrored.sum()) < 260
    digits = load_dataset("digits")
    rows = digits.train.rows(step_indices(digits.train.count, 0, 0, 100))
    assert torch.equal(digits.batch(0, 0, 100).data, rows.data)


def test_splits_are_disjoint_complete_and_fixed():
    numbers = torch.arange(100.0).view(100, 1, 1, 1)
    train, held_out = split(numbers, torch.arange(100))
    one, two = train.rows(torch.arange(train.count)), held_out.rows(torch.arange(held_out.count))
    assert (train.count, held_out.count) == (80, 20)
    assert sorted([*one.label.tolist(), *two.label.tolist()]) == list(range(100))
    assert torch.equal(one.data.flatten().long(), one.label)
    assert torch.equal(split(numbers)[1].rows(torch.arange(20)).data, two.data)
    assert [part.count for part in split(numbers[:2])] == [1, 1]


# -- each dataset -------------------------------------------------------------------------------


def test_every_file_of_the_folder_is_a_dataset():
    assert {"digits", "photos", "fashion_mnist", "folder", "array", "mixture"} <= set(
        dataset_names()
    )
    assert all(dataset_summary(name) for name in dataset_names())


def test_digits_are_those_of_scikit_learn():
    dataset = load_dataset("digits")
    raw = load_digits()
    parts = [s.rows(torch.arange(s.count)) for s in (dataset.train, dataset.held_out)]
    data = torch.cat([p.data for p in parts])
    label = torch.cat([p.label for p in parts])
    assert data.shape == (1797, 1, 8, 8)
    assert data.dtype == torch.float32
    assert label.dtype == torch.int64
    assert (float(data.min()), float(data.max())) == (-1.0, 1.0)
    assert torch.equal(label.bincount(), torch.from_numpy(np.bincount(raw.target)))
    expected = sorted(zip(raw.target.tolist(), raw.data.tolist(), strict=True))
    found = sorted(zip(label.tolist(), ((data + 1) * 8).flatten(1).tolist(), strict=True))
    assert found == expected
    assert (dataset.card.shape, dataset.card.classes) == ((1, 8, 8), 10)
    assert dataset.card.class_name(3) == "3"


def test_photo_crops_are_windows_and_held_out_ones_touch_no_training_pixel():
    size = 16
    dataset = load_dataset("photos", size)
    images = torch.stack([torch.from_numpy(i.copy()) for i in load_sample_images().images])
    images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    border = int(640 * 0.8)
    for part, left, wide in ((dataset.train, 0, border), (dataset.held_out, border, 640 - border)):
        high, across = 427 - size + 1, wide - size + 1
        assert part.count == 2 * high * across
        rows = torch.tensor([0, across, high * across + 5, part.count - 1])
        crops = part.rows(rows)
        assert crops.label is None
        for row, crop in zip(rows.tolist(), crops.data, strict=True):
            photo, rest = divmod(row, high * across)
            y, x = divmod(rest, across)
            window = images[photo, :, y : y + size, left + x : left + x + size]
            assert torch.equal(crop, window)


def test_mixture_has_the_law_it_states():
    dataset = load_dataset("mixture")
    points = dataset.train.rows(torch.arange(dataset.train.count)).data.flatten(1).double()
    mean = (WEIGHTS[:, None] * MEANS).sum(0)
    spread = MEANS - mean
    within = (WEIGHTS[:, None, None] * COVARIANCES).sum(0)
    covariance = within + torch.einsum("k,ki,kj->ij", WEIGHTS, spread, spread)
    errors = (covariance.diagonal() / len(points)).sqrt()
    assert bool(((points.mean(0) - mean).abs() < 4 * errors).all())
    assert torch.allclose(torch.cov(points.T), covariance, atol=0.01)
    assert dataset.card.shape == (2, 1, 1)
    assert dataset.card.pixels.kind == "points"


def write_idx(path: Path, values: np.ndarray, *, cut: int = 0) -> None:
    content = struct.pack(f">4B{values.ndim}i", 0, 0, 8, values.ndim, *values.shape)
    content += values.astype(np.uint8).tobytes()
    content = content[: len(content) - cut]
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def clothes(tmp_path, monkeypatch):
    """A folder of four small IDX files, packed and not, that FLOWDSL_DATA names."""
    random = np.random.default_rng(0)
    for part, count, suffix in (("train", 12, ".gz"), ("t10k", 5, "")):
        images = random.integers(0, 256, (count, 28, 28))
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    monkeypatch.setenv("FLOWDSL_DATA", str(tmp_path))
    return tmp_path


def test_fashion_mnist_reads_idx_files(clothes):
    dataset = load_dataset("fashion_mnist")
    assert (dataset.train.count, dataset.held_out.count) == (12, 5)
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28))
    rows = dataset.train.rows(torch.arange(12))
    assert np.allclose(rows.data.numpy()[:, 0], images / 127.5 - 1, atol=1e-6)
    assert rows.label.tolist() == [k % 10 for k in range(12)]
    assert dataset.card.class_names[9] == "boot"
    assert dataset.flip


def test_fashion_mnist_is_padded_to_32_and_resampled_below(clothes):
    whole = load_dataset("fashion_mnist").train.rows(torch.arange(3)).data
    padded = load_dataset("fashion_mnist", 32).train.rows(torch.arange(3)).data
    assert torch.equal(padded[..., 2:30, 2:30], whole)
    assert bool((padded[..., :2] == -1).all())
    small = load_dataset("fashion_mnist", 14).train.rows(torch.arange(3)).data
    assert small.shape == (3, 1, 14, 14)
    assert float((small.mean((1, 2, 3)) - whole.mean((1, 2, 3))).abs().max()) < 0.02


def test_fashion_mnist_looks_in_torchvisions_folder(clothes, tmp_path, monkeypatch):
    root = tmp_path / "elsewhere"
    (root / "FashionMNIST").mkdir(parents=True)
    (root / "FashionMNIST" / "raw").symlink_to(clothes)
    monkeypatch.setenv("FLOWDSL_DATA", str(root))
    assert load_dataset("fashion_mnist").train.count == 12


def test_missing_files_say_where_was_looked_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWDSL_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.chdir(tmp_path)
    said(
        lambda: load_dataset("fashion_mnist"),
        "apt install dataset-fashion-mnist",
        "FLOWDSL_DATA",
        str(tmp_path / "debian"),
    )


def test_broken_idx_files_are_told_apart(tmp_path):
    path = tmp_path / "x"
    write_idx(path, np.zeros((3, 4, 4)), cut=5)
    said(lambda: fashion_mnist.read_idx(path, 3), "43 bytes", "promises 48")
    path.write_bytes(b"PNG!")
    said(lambda: fashion_mnist.read_idx(path, 3), "not an IDX file")
    packed = tmp_path / "x.gz"
    packed.write_bytes(b"\x1f\x8bnonsense")
    said(lambda: fashion_mnist.read_idx(packed, 3), "cannot be read")


def test_a_missing_labels_file_is_named(clothes):
    (clothes / "t10k-labels-idx1-ubyte").unlink()
    said(lambda: load_dataset("fashion_mnist"), "t10k-labels-idx1-ubyte is missing")


def picture_file(path: Path, colour, size=(20, 10), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_folder_with_classes(tmp_path):
    for k in range(6):
        picture_file(tmp_path / "red" / f"{k}.png", (255, 0, 0))
        picture_file(tmp_path / "blue" / "deep" / f"{k}.jpg", (0, 0, 255))
    (tmp_path / "red" / "notes.txt").write_text("not an image")
    dataset = load_dataset(f"folder:{tmp_path}", 8)
    assert dataset.card.class_names == ("blue", "red")
    assert dataset.card.shape == (3, 8, 8)
    assert dataset.train.count + dataset.held_out.count == 12
    rows = dataset.train.rows(torch.arange(dataset.train.count))
    for image, label in zip(rows.data, rows.label.tolist(), strict=True):
        channel = 0 if label == 1 else 2
        assert float(image[channel].min()) > 0.9
        assert float(image[1].max()) < -0.9


def test_folder_without_classes_is_grey_when_every_file_is(tmp_path):
    for k in range(4):
        picture_file(tmp_path / f"{k}.png", 255 * (k % 2), mode="L")
    dataset = load_dataset(f"folder:{tmp_path}", 8)
    assert dataset.card.classes is None
    assert dataset.card.shape == (1, 8, 8)
    assert dataset.train.rows(torch.tensor([0])).label is None
    picture_file(tmp_path / "9.png", (1, 2, 3))
    assert load_dataset(f"folder:{tmp_path}", 8).card.shape == (3, 8, 8)


def test_folder_crops_the_centre_and_turns_photographs_upright(tmp_path):
    wide = Image.new("RGB", (40, 20), (0, 0, 0))
    wide.paste((255, 255, 255), (10, 0, 30, 20))  # the centred square is white
    wide.save(tmp_path / "wide.png")
    turned = Image.new("RGB", (16, 16), (0, 0, 0))
    turned.paste((255, 255, 255), (0, 0, 16, 8))  # white above
    exif = turned.getexif()
    exif[0x0112] = 3  # stored upside down
    turned.save(tmp_path / "turned.png", exif=exif)
    dataset = load_dataset(f"folder:{tmp_path}", 16)
    parts = [s.rows(torch.arange(s.count)).data for s in (dataset.train, dataset.held_out)]
    images = torch.cat(parts)
    white = images[images.flatten(1).mean(1) > 0.9]
    assert len(white) == 1
    other = images[images.flatten(1).mean(1) < 0.9][0]
    assert float(other[:, :8].max()) < -0.9  # black above after turning
    assert float(other[:, 8:].min()) > 0.9


def test_folder_decodes_again_when_memory_is_short(tmp_path, monkeypatch):
    for k in range(5):
        picture_file(tmp_path / f"{k}.png", (40 * k, 0, 0))
    kept = load_dataset(f"folder:{tmp_path}", 8).train.rows(torch.arange(4)).data
    monkeypatch.setattr("flowdsl.runtime.data.folder.MEMORY_LIMIT", 0)
    assert torch.equal(load_dataset(f"folder:{tmp_path}", 8).train.rows(torch.arange(4)).data, kept)


def test_folder_errors(tmp_path):
    said(lambda: load_dataset("folder"), "needs a path", "folder:/")
    said(lambda: load_dataset(f"folder:{tmp_path / 'no'}"), "is not a folder")
    said(lambda: load_dataset(f"folder:{tmp_path}"), "0 images", ".png")
    picture_file(tmp_path / "1.png", (1, 1, 1))
    picture_file(tmp_path / "a" / "2.png", (1, 1, 1))
    said(lambda: load_dataset(f"folder:{tmp_path}"), "beside subfolders")
    (tmp_path / "1.png").unlink()
    broken = tmp_path / "a" / "3.png"
    broken.write_bytes((tmp_path / "a" / "2.png").read_bytes()[:40])
    picture_file(tmp_path / "a" / "4.png", (1, 1, 1))
    dataset = load_dataset(f"folder:{tmp_path}", 8)
    parts = (dataset.train, dataset.held_out)
    said(lambda: [p.rows(torch.arange(p.count)) for p in parts], str(broken))
    first = tmp_path / "a" / "0.png"
    first.write_bytes(b"no image at all")
    said(lambda: load_dataset(f"folder:{tmp_path}", 8), str(first))


def test_arrays_are_used_as_they_are(tmp_path):
    values = np.random.default_rng(0).normal(3, 2, (20, 4, 6, 6)).astype(np.float32)
    labels = np.arange(20) % 5
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", latents=values, y=labels)
    torch.save({"data": torch.from_numpy(values)}, tmp_path / "a.pt")
    from safetensors.torch import save_file

    save_file({"x": torch.from_numpy(values)}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.npz", "a.pt", "a.safetensors"):
        dataset = load_dataset(f"array:{tmp_path / name}")
        parts = (dataset.train, dataset.held_out)
        rows = torch.cat([p.rows(torch.arange(p.count)).data for p in parts])
        assert sorted(rows.flatten().tolist()) == sorted(values.flatten().tolist())
        assert dataset.card.shape == (4, 6, 6)
        assert (dataset.card.classes == 5) == (name == "a.npz")
        picture = dataset.card.pixels.picture(rows[:2])
        assert picture.shape == (2, 3, 6, 6)


def test_arrays_of_other_ranks_and_bytes(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((5, 7)))
    assert load_dataset(f"array:{tmp_path / 'flat.npy'}").card.shape == (7, 1, 1)
    np.save(tmp_path / "plane.npy", np.random.default_rng(0).normal(size=(50, 2)))
    assert load_dataset(f"array:{tmp_path / 'plane.npy'}").card.pixels.kind == "points"
    np.save(tmp_path / "bytes.npy", np.full((5, 4, 4), 255, np.uint8))
    dataset = load_dataset(f"array:{tmp_path / 'bytes.npy'}")
    assert dataset.card.shape == (1, 4, 4)
    assert bool((dataset.train.rows(torch.arange(3)).data == 1).all())


class Bomb:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_array_files_run_no_code(tmp_path):
    trace = tmp_path / "ran"
    torch.save({"data": Bomb(trace)}, tmp_path / "bomb.pt")
    np.save(tmp_path / "bomb.npy", np.array([Bomb(trace)], dtype=object), allow_pickle=True)
    for name in ("bomb.pt", "bomb.npy"):
        said(lambda name=name: load_dataset(f"array:{tmp_path / name}"), "cannot be read")
    assert not trace.exists()


def test_array_errors(tmp_path):
    def with_values(values, **more):
        np.savez(tmp_path / "x.npz", data=values, **more)
        return lambda: load_dataset(f"array:{tmp_path / 'x.npz'}")

    said(with_values(np.full((3, 1, 2, 2), np.nan)), "not finite")
    said(with_values(np.zeros(3)), "1 axes")
    said(with_values(np.zeros((1, 2))), "at least two")
    said(with_values(np.zeros((4, 2)), labels=np.zeros(3, int)), "labels of shape (3,)")
    said(with_values(np.zeros((4, 2)), labels=-np.ones(4, int)), "whole numbers from 0")
    np.savez(tmp_path / "y.npz", pictures=np.zeros((4, 2)))
    said(lambda: load_dataset(f"array:{tmp_path / 'y.npz'}"), "pictures", "latents")
    (tmp_path / "z.csv").write_text("1,2")
    said(lambda: load_dataset(f"array:{tmp_path / 'z.csv'}"), '".csv"', ".npz")
    said(lambda: load_dataset("array:/no/such/file.npy"), "is not a file")
    said(lambda: load_dataset(f"array:{tmp_path / 'x.npz'}", 16), "without a size")


def test_names_and_sizes_that_do_not_exist():
    said(lambda: load_dataset("digit"), 'did you mean "digits"?', "photos")
    said(lambda: load_dataset("digits", 16), "8x8")
    said(lambda: load_dataset("digits:/x"), "nothing after its name")
    said(lambda: load_dataset("photos", 500), "too small")
    said(lambda: load_dataset("photos", 2), "4 to 1024")
    said(lambda: load_dataset("mixture", 8), "no size")
    assert datasets.dataset_names() == tuple(sorted(datasets.dataset_names()))


# -- pixels -------------------------------------------------------------------------------------


def test_bytes_survive_the_way_to_states_and_back():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    states = in_memory(every).rows(torch.tensor([0])).data
    assert torch.equal(Pixels().picture(states), every)


def test_pixels_clamp_and_choose_channels():
    states = torch.tensor([-9.0, 0.0, 9.0, float("nan")]).view(1, 4, 1, 1)
    assert Pixels(-1, 1).picture(states).flatten().tolist() == [0, 128, 255]
    assert Pixels(-1, 1).picture(states[:, 3:]).flatten().tolist() == [0]
    assert Pixels().picture(states[:, :2]).shape == (1, 1, 1, 1)
