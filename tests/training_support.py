"""A hand-written MeanFlow loss, a tiny network and quick runs of both, for testing the runtime
without the compiler.

The loss has the methods of a compiled one (`flowdsl.runtime.protocols`) and follows "Mean Flows for
One-step Generative Modeling" (arXiv:2505.13447) as its authors trained ImageNet: guided velocity as
target and tangent, sorted logit-normal times, three quarters of the rows on the diagonal, the
adaptive weight.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flowdsl.runtime.contract import NULL_LABEL, Argument, NetworkSignature, ObjectiveSignature
from flowdsl.runtime.dataset import DataCard, Dataset, split
from flowdsl.runtime.training.log import read_metrics
from flowdsl.runtime.training.overrides import make_config
from flowdsl.runtime.training.trainer import resume, train

STATE, TIME, LABEL = "state", "time", "label"


def network_signature(
    name: str = "u",
    *,
    arguments: str = "z t r",
    frozen: bool = False,
    average_of: str | None = None,
) -> NetworkSignature:
    kinds = {"z": "state", "t": "time", "r": "time"}
    return NetworkSignature(
        name,
        tuple(Argument(a, kinds[a]) for a in arguments.split()),
        (Argument("label", "label"),),
        (Argument(name, "state"),),
        frozen=frozen,
        average_of=average_of,
        decay=0.9 if average_of else None,
        line=f"{name}({', '.join(arguments.split())} | label)",
    )


def rows(times: Tensor, like: Tensor) -> Tensor:
    return times.view(-1, *[1] * (like.ndim - 1)).to(like.dtype)


class MeanFlow:
    """u(z, t, r | label), data at time 0. `slow=True` adds an average of u that a second term
    follows.
    """

    source = "# written by hand\n"

    def __init__(
        self, *, omega: float = 1.0, kappa: float = 0.0, drop: float = 0.1, slow: bool = False
    ) -> None:
        self.omega, self.kappa, self.drop, self.slow = omega, kappa, drop, slow
        networks = [network_signature()]
        if slow:
            networks.append(network_signature("slow", average_of="u"))
        self.signature = ObjectiveSignature(
            name="meanflow",
            title="Mean Flows for One-step Generative Modeling",
            networks=tuple(networks),
            terms=("target", "follow") if slow else ("target",),
            draws=("noise", "t", "r", "diagonal", "dropped"),
            constants={"omega": omega, "kappa": kappa},
        )

    def draw(self, data, *, generator=None, progress=0.0, step=0, steps=1):
        batch, device = len(data), data.device
        kind = {"generator": generator, "device": device}
        dtype = torch.float64 if data.dtype == torch.float64 else torch.float32
        pair = torch.sigmoid(torch.randn(2, batch, dtype=dtype, **kind) - 0.4)
        order = torch.randperm(batch, **kind)
        on_diagonal, no_label = round(0.75 * batch), round(self.drop * batch)
        diagonal = torch.zeros(batch, dtype=torch.bool, device=device)
        dropped = diagonal.clone()
        diagonal[order[:on_diagonal]] = True
        dropped[order[:no_label]] = True
        t, r = pair.amax(0), pair.amin(0)
        return {
            "noise": torch.randn(data.shape, dtype=data.dtype, **kind),
            "t": t,
            "r": torch.where(diagonal, t, r),
            "diagonal": diagonal,
            "dropped": dropped,
        }

    def bind(self, network):
        networks = dict(network) if isinstance(network, Mapping) else {"u": network}
        if self.slow and "slow" not in networks:
            networks["slow"] = copy.deepcopy(networks["u"]).requires_grad_(False)
        return BoundMeanFlow(self, networks)

    def jump(self, network, z, start, end, *, label=None, **conditions):
        net = network["u"] if isinstance(network, Mapping) else network
        label = torch.full((len(z),), NULL_LABEL, device=z.device) if label is None else label
        return z - rows(start - end, z) * net(z, start, end, label=label)

    def velocity(self, network, z, time, *, label=None, **conditions):
        net = network["u"] if isinstance(network, Mapping) else network
        label = torch.full((len(z),), NULL_LABEL, device=z.device) if label is None else label
        return net(z, time, time, label=label)


class BoundMeanFlow(nn.Module):
    def __init__(self, loss: MeanFlow, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.loss = loss
        self.networks = nn.ModuleDict(networks)

    @torch.no_grad()
    def update_averages(self, **when) -> None:
        if self.loss.slow:
            slow, u = self.networks["slow"], self.networks["u"]
            for average, weight in zip(slow.parameters(), u.parameters(), strict=True):
                average.lerp_(weight, 0.1)

    def forward(self, data, *, label=None, draws=None, progress=0.0, step=0, steps=1, terms=None):
        d = self.loss.draw(data) if draws is None else draws
        u = self.networks["u"]
        label = torch.full((len(data),), NULL_LABEL) if label is None else label
        seen = label.masked_fill(d["dropped"], NULL_LABEL)
        t, r = d["t"], d["r"]
        z = data + rows(t, data) * (d["noise"] - data)
        guided = self._guided(z, t, d["noise"] - data, label, d["dropped"])
        # rows on the diagonal need no derivative
        off = torch.nonzero(~d["diagonal"]).squeeze(1)
        target = guided.clone()

        def average(z, t, r):
            return u(z, t, r, label=seen[off])

        primals = (z[off], t[off].clone(), r[off].clone())
        tangents = (guided[off], torch.ones_like(t[off]), torch.zeros_like(t[off]))
        with torch.no_grad():
            _, change = torch.func.jvp(average, primals, tangents)
        target[off] -= rows((t - r)[off], data) * change
        prediction = u(z, t, r, label=seen)
        error = (prediction - target.detach()).square().flatten(1).sum(1)
        parts = {"target": (error / (error.detach() + 1e-2)).mean()}
        if self.loss.slow:
            followed = self.networks["slow"](z, t, r, label=seen).detach()
            parts["follow"] = 0.1 * (prediction - followed).square().mean()
        chosen = parts if terms is None else {k: parts[k] for k in terms}
        value = torch.stack(list(chosen.values())).sum()
        return value, {name: part.detach() for name, part in chosen.items()}

    @torch.no_grad()
    def _guided(self, z, t, velocity, label, dropped):
        omega, kappa, u = self.loss.omega, self.loss.kappa, self.networks["u"]
        if omega == 1.0 and kappa == 0.0:
            return velocity
        null = torch.full_like(label, NULL_LABEL)
        mix = omega * velocity + kappa * u(z, t, t, label=label)
        mix = mix + (1 - omega - kappa) * u(z, t, t, label=null)
        return torch.where(rows(dropped, z).bool(), velocity, mix)


class TinyNet(nn.Module):
    """A two-layer network on flattened states, with the label added to the times' features."""

    def __init__(
        self,
        shape=(1, 4, 4),
        classes: int | None = 3,
        width: int = 32,
        times: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = {"shape": list(shape), "classes": classes, "width": width}
        numbers = torch.Size(shape).numel()
        self.embed = nn.Linear(times, width)
        self.label = nn.Embedding((classes or 0) + 1, width)
        self.first = nn.Linear(numbers, width)
        self.drop = nn.Dropout(dropout)
        self.second = nn.Linear(width, numbers)

    def forward(self, z, *times, label=None):
        features = self.embed(torch.stack(times, 1).to(z.dtype))
        if label is not None:  # the null label, -1, is the last row
            features = features + self.label(label % self.label.num_embeddings)
        hidden = torch.tanh(self.first(z.flatten(1)) + features)
        return self.second(self.drop(hidden)).view_as(z)


def tiny_dataset(count: int = 60, classes: int | None = 3, shape=(1, 4, 4)) -> Dataset:
    """Random images whose mean tells the class."""
    random = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % (classes or 1)
    data = 0.3 * torch.randn(count, *shape, generator=random)
    data = data + labels.view(-1, 1, 1, 1) - 1
    train, held_out = split(data, labels if classes else None)
    return Dataset(DataCard("tiny", "tiny", tuple(shape), classes), train, held_out)


QUICK = ("steps=24", "batch=16", "log_every=5", "sample_every=0", "checkpoint_every=10",
         "tensorboard=no", "ema=0.9,0.99", "optimizer.warmup=5")  # fmt: skip


def tiny_net(seed: int = 0) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet(dropout=0.2)


def start(path: Path, dataset: Dataset | None = None, loss=None, *, words=(), **more):
    return train(
        loss or MeanFlow(slow=True),
        {"u": tiny_net()},
        dataset or tiny_dataset(),
        make_config([*QUICK, *words]),
        run_dir=path,
        progress=False,
        **more,
    )


def go_on(path: Path, dataset: Dataset | None = None, loss=None):
    """Resumes with networks of other random weights."""
    networks = {"u": tiny_net(seed=99)}
    return resume(
        path, loss or MeanFlow(slow=True), networks, dataset or tiny_dataset(), progress=False
    )


def log_of(path: Path) -> list[dict]:
    """The lines of metrics.jsonl without the one field that is a measured time."""
    return [
        {k: v for k, v in line.items() if k != "steps_per_second"}
        for line in read_metrics(path / "metrics.jsonl")
    ]


class Watched(Dataset):
    """Calls `then(step)` before each batch."""

    def __init__(self, then) -> None:
        whole = tiny_dataset()
        super().__init__(whole.card, whole.train, whole.held_out)
        object.__setattr__(self, "then", then)

    def batch(self, step, seed, size):
        self.then(step)
        return super().batch(step, seed, size)


def at(step: int, action):
    return Watched(lambda now: action() if now == step else None)


class Game:
    """Two learned networks and a frozen one: `follow` teaches a, `lead` teaches b; lead also sees
    a.
    """

    source = ""
    signature = ObjectiveSignature(
        "game",
        "",
        (network_signature("a"), network_signature("b"), network_signature("teacher", frozen=True)),
        ("follow", "lead"),
        ("t",),
    )

    def draw(self, data, *, generator=None, progress=0.0, step=0, steps=1):
        return {"t": torch.rand(len(data), generator=generator)}

    def bind(self, network):
        bound = BoundMeanFlow(MeanFlow(), dict(network))

        def forward(data, *, label=None, draws=None, terms=None, **when):
            t = draws["t"]
            a, b, teacher = (bound.networks[k](data, t, t, label=label) for k in network)
            parts = {"follow": (a - teacher.detach()).square().mean(), "lead": (b - a).abs().mean()}
            chosen = {k: v for k, v in parts.items() if terms is None or k in terms}
            return sum(chosen.values()), {k: v.detach() for k, v in chosen.items()}

        bound.forward = forward
        return bound

    def jump(self, network, z, start, end, *, label=None, **conditions):
        return network["a"](z, start, end, label=label)

    velocity = jump


def nets(seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {name: TinyNet(width=8) for name in ("a", "b", "teacher")}
