"""Change a shipped objective in two lines: `extends` it and give it another weighting.

Run: python examples/own_weighting.py      (seconds; no training)
"""

import torch
from torch import nn

import flowdsl

# The prelude's weights are functions of `error` (a sum of squares) or `mse` (their mean); so is
# yours. Whatever the loss is, the checker says whether the solution is still the flow map.
SPEC = """
objective gentle extends meanflow  "MeanFlow with a weight that fades with the length of the jump"
let           fade(h) = exp(-h^2 / 0.5)
loss          fade(t - r) * huber(error, c = 0.1)
"""


class Tiny(nn.Module):
    """The smallest network that fits u(z, t, r | label)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 8))

    def forward(self, z, t, r, *, label):
        return self.net(torch.cat([z, t[:, None], r[:, None]], dim=1))


def main() -> None:
    objective = flowdsl.loads(SPEC, "gentle")
    print(objective.check().render())
    loss = objective.compile()
    torch.manual_seed(0)
    data = torch.randn(64, 8)
    value, metrics = loss(Tiny(), data)
    print(f"\nloss {value.item():.4f}, terms {[*metrics]}")
    print("\nwhat is computed:\n")
    print(loss.source[loss.source.index("def loss") : loss.source.index("def jump")])


if __name__ == "__main__":
    main()
