"""Train your own network with a shipped objective: nothing of it comes from flowdsl.

Run: python examples/own_network.py      (about half a minute on a laptop)
"""

import torch
from torch import nn

import flowdsl


class PointNetwork(nn.Module):
    """A network for points in the plane, called as the spec says: u(z, t, r | label)."""

    def __init__(self, width: int = 128, classes: int = 2) -> None:
        super().__init__()
        self.label = nn.Embedding(classes + 1, width)  # the last row is the label of no class
        self.point = nn.Linear(4, width)
        self.body = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.out = nn.Linear(width, 2)

    def forward(self, z, t, r, *, label):
        label = torch.where(label < 0, self.label.num_embeddings - 1, label)  # -1 is no class
        hidden = self.point(torch.cat([z, t[:, None], (t - r)[:, None]], dim=1))
        return self.out(self.body(hidden + self.label(label)))


def two_moons(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Points on two interleaved half circles, and which of the two each is on."""
    label = torch.randint(2, (count,), generator=generator)
    angle = torch.pi * torch.rand(count, generator=generator)
    upper = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    lower = torch.stack([1 - torch.cos(angle), 0.5 - torch.sin(angle)], 1)
    points = torch.where(label[:, None] == 0, upper, lower) - torch.tensor([0.5, 0.25])
    return points + 0.05 * torch.randn(count, 2, generator=generator), label


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    loss = flowdsl.load("meanflow").compile()
    network = PointNetwork()
    bound = loss.bind(network)  # an nn.Module: wrap this one in DDP or torch.compile, not the net
    optimizer = torch.optim.AdamW(bound.parameters(), lr=2e-3)
    steps = 1500
    for step in range(steps):
        data, label = two_moons(512, generator)
        draws = loss.draw(data, generator=generator)
        value, metrics = bound(data, label=label, draws=draws, progress=step / steps)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 300 == 0:
            print(f"step {step:5d}   loss {metrics['target'].item():.3f}")

    noise = torch.randn(1000, 2, generator=generator)
    label = torch.randint(2, (1000,), generator=generator)
    one, zero = torch.ones(1000), torch.zeros(1000)
    with torch.no_grad():
        samples = loss.jump(network, noise, one, zero, label=label)  # one step: noise to data
    data, _ = two_moons(1000, generator)
    distance = torch.cdist(samples, data).min(dim=1).values
    print(f"one-step samples: median distance to the data {distance.median().item():.3f}")
    print(f"noise:            median distance to the data "
          f"{torch.cdist(noise, data).min(dim=1).values.median().item():.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
