"""What the metrics look at: the features of a small classifier trained on the same training rows.

Frechet distances and precision are taken in these features. They are NOT the FID, whose network is
Inception; the names say so (`FD-digits-cnn`). Data without labels train the network to tell by how
much an image was turned; points in the plane are their own features.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flowdsl.diagnostics import DiagnosticError
from flowdsl.runtime.dataset import DataCard, Dataset
from flowdsl.runtime.randomness import derive_seed
from flowdsl.runtime.training.checkpoints import save_tensors

PROTOCOL = "cnn-1"  # goes up with any change that moves the numbers
WIDTH, FEATURES = 32, 64
STEPS, BATCH, LEARNING_RATE = 400, 128, 3e-3
SEED = 1


@dataclass(frozen=True, eq=False)
class Features:
    """The feature network of a dataset. `digest` names its weights, for comparing two results."""

    name: str
    digest: str
    network: FeatureNet | None
    classes: int | None

    def embed(self, states: Tensor) -> Tensor:
        """Features (n, d) in float64 of states (n, *shape)."""
        if self.network is None:
            return states.detach().cpu().flatten(1).double()
        parts = [self.network.features(part) for part in _parts(states)]
        return torch.cat(parts).double()

    def classify(self, states: Tensor) -> Tensor | None:
        """The most likely class (n,) of each state; None where the data have no classes."""
        if self.network is None or self.classes is None:
            return None
        return torch.cat([self.network(part).argmax(1) for part in _parts(states)])


class FeatureNet(nn.Module):
    """Three convolutions, four cells of average pooling, 64 features, one layer of classes."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, _ = shape
        stride = 1 if height <= 8 else 2
        self.body = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 3, stride, 1),
            nn.GELU(),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, stride, 1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * WIDTH, FEATURES),
            nn.GELU(),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, states: Tensor) -> Tensor:
        features: Tensor = self.body(states)
        return features

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(states))
        return logits


def features_of(dataset: Dataset, cache: Path | None = None) -> Features:
    """The dataset's features: read from the cache folder, or trained in some seconds and put there.

    The cache is `$FLOWDSL_CACHE`, else the user's cache folder; one that cannot be written is no
    error.
    """
    card = dataset.card
    if card.pixels.kind == "points":
        return Features("points", "", None, None)
    with torch.random.fork_rng(devices=[]):
        network = FeatureNet(card.shape, card.classes or _turns(card))
    file = (cache or cache_folder()) / f"{_fingerprint(dataset)}.safetensors"
    if not _loaded(network, file):
        _train(network, dataset)
        with suppress(OSError, DiagnosticError):  # a cache is a convenience
            file.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(file, network.state_dict())
    network.requires_grad_(False).eval()
    return Features(f"{card.name}-cnn", _digest(network), network, card.classes)


def cache_folder() -> Path:
    """Where feature networks are kept: `$FLOWDSL_CACHE`, or flowdsl in the user's cache folder."""
    own = os.environ.get("FLOWDSL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowdsl"


def _train(network: FeatureNet, dataset: Dataset) -> None:
    """Deterministic on one machine: own seeds, own order, torch's generators left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(SEED, "features"))
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for step in range(STEPS):
            batch = dataset.batch(step, SEED, BATCH)
            data, label = batch.data, batch.label
            if label is None:
                data, label = _turned(data, _turns(dataset.card), step)
            loss = cross_entropy(network(data), label, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _turns(card: DataCard) -> int:
    """Quarter turns that keep the shape: four of a square, two (halves) of a rectangle."""
    return 4 if card.shape[-1] == card.shape[-2] else 2


def _turned(data: Tensor, turns: int, step: int) -> tuple[Tensor, Tensor]:
    label = (torch.arange(len(data)) + step) % turns
    quarter = 4 // turns
    parts = [
        torch.rot90(image, int(k) * quarter, (-2, -1)) for image, k in zip(data, label, strict=True)
    ]
    return torch.stack(parts), label


def _fingerprint(dataset: Dataset) -> str:
    """Names the network of one protocol on one training set."""
    card = dataset.card
    text = f"{PROTOCOL} {card.spec} {card.shape} {card.classes} {dataset.train.count}"
    rows = dataset.train.first(64).data.contiguous().numpy().tobytes()
    return f"{card.name}-{hashlib.sha256(text.encode() + rows).hexdigest()[:16]}"


def _loaded(network: FeatureNet, file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        network.load_state_dict(load_file(file))
    except (OSError, RuntimeError, SafetensorError):  # a broken cache is made again
        return False
    return True


def _digest(network: FeatureNet) -> str:
    """Eight hexadecimal digits of the weights, rounded so that only real differences show."""
    state = network.state_dict()
    numbers = torch.cat([state[key].flatten() for key in sorted(state)])
    return hashlib.sha256(numbers.half().numpy().tobytes()).hexdigest()[:8]


def _parts(states: Tensor) -> tuple[Tensor, ...]:
    return torch.split(states.detach().cpu().float(), 1000)
