"""Networks for points in the plane, u(z, t, r | label): one that is right, and one for each fault
that `flowdsl doctor` is to find."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from flowdsl.runtime.nets.duals import innermost_transform, join, split


class Right(nn.Module):
    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.label = nn.Embedding(classes + 1, width)
        self.point = nn.Linear(4, width)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, 2)

    def embed(self, z: Tensor, t: Tensor, r: Tensor, label: Tensor) -> Tensor:
        label = torch.where(label < 0, self.label.num_embeddings - 1, label)
        return self.point(torch.cat([z, t[:, None], (t - r)[:, None]], 1)) + self.label(label)

    def hidden(self, x: Tensor) -> Tensor:
        return x

    def forward(
        self, z: Tensor, t: Tensor, r: Tensor, *, label: Tensor, w: Tensor | None = None
    ) -> Tensor:
        return self.out(self.body(self.hidden(self.embed(z, t, r, label))))


class FusedAttention(Right):
    def hidden(self, x):
        heads = x.view(-1, 2, 4, 4)
        return functional.scaled_dot_product_attention(heads, heads, heads).reshape(x.shape)


class Bag(Right):
    def hidden(self, x):
        halves = x.view(-1, 4, 8)
        rows = torch.arange(4).repeat(len(x), 1)
        return x + functional.embedding_bag(rows, halves[0]).repeat(1, 4)


class ReadsData(Right):
    def hidden(self, x):
        return x + 0.1 * x.data.sin()


class Complaining(torch.autograd.Function):
    """An exponential without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].exp()


class CustomFunction(Right):
    def hidden(self, x):
        return Complaining.apply(0.1 * x)


class WrongTangent(Right):
    """A rule for duals whose tangent is a tenth too large."""

    factor = 1.1

    def hidden(self, x):
        if innermost_transform() != "jvp":
            return x.sin()
        (value,), (tangent,) = split(x)
        return join(value.sin(), self.factor * value.cos() * tangent)


class ConstantTangent(WrongTangent):
    """The tangent is right, its gradient is not: the slope is taken for a constant."""

    def hidden(self, x):
        if innermost_transform() != "jvp":
            return x.sin()
        (value,), (tangent,) = split(x)
        return join(value.sin(), value.cos().detach() * tangent)


class BatchNorm(Right):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def hidden(self, x):
        return self.norm(x)


class Dropout(Right):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def hidden(self, x):
        return self.drop(x)


class Noisy(Right):
    def hidden(self, x):
        return x + 0.1 * torch.randn_like(x)


class WrongShape(Right):
    def forward(self, z, t, r, *, label, w=None):
        return super().forward(z, t, r, label=label)[:, :1]


class TwoResults(Right):
    def forward(self, z, t, r, *, label, w=None):
        return super().forward(z, t, r, label=label), t


class Unlabelled(Right):
    def forward(self, z, t, r):
        return super().forward(z, t, r, label=torch.full((len(z),), -1))


class NegativeLabel(Right):
    """Looks -1 up."""

    def embed(self, z, t, r, label):
        return self.point(torch.cat([z, t[:, None], (t - r)[:, None]], 1)) + self.label(label)


class FewClasses(Right):
    def __init__(self) -> None:
        super().__init__(classes=3)


class NotFinite(Right):
    def forward(self, z, t, r, *, label, w=None):
        return super().forward(z, t, r, label=label) / (t - r)[:, None]


class Raises(Right):
    def hidden(self, x):
        return self.missing(x)


class SwappedTimes(Right):
    def forward(self, z, r, t, *, label, w=None):
        return super().forward(z, t, r, label=label)


class IgnoresTime(Right):
    def embed(self, z, t, r, label):
        return super().embed(z, t, torch.zeros_like(r), label)


class HalfTime(Right):
    """Rounds the time to bfloat16, whatever the precision."""

    def embed(self, z, t, r, label):
        return super().embed(z, (8 * t.bfloat16()).sin().to(t), r, label)


class AutocastTime(Right):
    """Rounds the time to the type of autocast, where there is one."""

    frequency = 100.0

    def embed(self, z, t, r, label):
        if torch.is_autocast_enabled("cpu"):
            t = t.to(torch.get_autocast_dtype("cpu"))
        return super().embed(z, (self.frequency * t).sin().float(), r, label)


class DetachedTime(Right):
    """The derivative along t is cut."""

    def embed(self, z, t, r, label):
        return super().embed(z, t.detach(), r, label)


class CutOff(Right):
    """Parameters are cut off, derivatives are not."""

    def embed(self, z, t, r, label):
        label = torch.where(label < 0, self.label.num_embeddings - 1, label)
        embedding = self.label.weight.detach()[label]
        return self.point(torch.cat([z, t[:, None], (t - r)[:, None]], 1)) + embedding


class Overflows(Right):
    """Finite, but its square is not."""

    def forward(self, z, t, r, *, label, w=None):
        return 1e25 * super().forward(z, t, r, label=label)


class Unused(Right):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(3, 3)


class Frozen(Right):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class ThousandTimes(Right):
    """Times are scaled as in diffusion models."""

    def embed(self, z, t, r, label):
        return super().embed(z, (1000 * t).sin(), (1000 * r).sin(), label)


class OnlyFloat32(Right):
    def forward(self, z, t, r, *, label, w=None):
        return super().forward(z.float(), t.float(), r.float(), label=label)


class MixesRows(Right):
    def hidden(self, x):
        return x - x.mean(0, keepdim=True)


class ManyRows(Right):
    def hidden(self, x):
        if len(x) == 1:
            raise ValueError("one row is too few")
        return x


class Checkpointed(Right):
    def hidden(self, x):
        return checkpoint(self.body, x, use_reentrant=False)


class CannotBeCopied(Right):
    def __deepcopy__(self, memo):
        raise TypeError("it holds a file")


def data_parallel() -> nn.Module:
    return nn.DataParallel(Right())


def compiled_by_itself() -> nn.Module:
    return torch.compile(Right())


def needs_width(width: int) -> nn.Module:
    return Right(width)


def breaks() -> nn.Module:
    return Right(width="wide")  # type: ignore[arg-type]


def makes_nothing() -> None:
    return None


here = Right()
number = 3
