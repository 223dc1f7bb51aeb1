"""Data drawn given a noisy state: what an inner flow knows, several draws for each state.

From one state z of the outer path at a time t, an inner flow leads fresh noise to draws of the data
(or of what implies them) from p(data | z(t) = z). `sample` makes one such draw per state and per
step; here the state stays and the draws are many.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowdsl.diagnostics import fail
from flowdsl.runtime.dataset import Dataset
from flowdsl.runtime.grid import Block
from flowdsl.runtime.pictures import Layout
from flowdsl.runtime.protocols import CompiledLoss, HasPath, Networks, time_vector
from flowdsl.runtime.randomness import generator as seeded
from flowdsl.runtime.samplers import SampleOptions, Task
from flowdsl.runtime.sampling import CHUNK, check_sampler, evaluation_mode

MOST_SEARCHED = 1000  #: held-out rows among which one of each class is looked for


def sample_posterior(
    loss: CompiledLoss,
    networks: Networks,
    states: Tensor,
    time: float,
    count: int,
    *,
    label: Tensor | None = None,
    generator: torch.Generator | None = None,
    options: SampleOptions | None = None,
) -> Tensor:
    """`count` draws of the data given each state, without gradient: (states, count, *shape).

    `states` (states, *shape) stand on the outer path at `time`; `label` is (states,) int64, or None
    for no class. `options.inner` is the number of steps of the inner flow. Raises a
    `DiagnosticError` where the objective learns no inner flow, or the time is not on the path.
    """
    options = options or SampleOptions()
    check_posterior(loss, time, options)
    rows = states.repeat_interleave(count, dim=0)
    labels = None if label is None else label.to(states.device).repeat_interleave(count)
    parts = []
    with torch.no_grad(), evaluation_mode(networks):
        for start in range(0, len(rows), CHUNK):
            here = slice(start, start + CHUNK)
            task = Task(
                loss, networks, None if labels is None else labels[here], options, generator
            )
            parts.append(task.ahead(rows[here], time))
    return torch.cat(parts).view(len(states), count, *states.shape[1:])


def check_posterior(loss: CompiledLoss, time: float, options: SampleOptions) -> None:
    """Raises the `DiagnosticError` that drawing given a state at this time would raise, if any."""
    signature = loss.signature
    if signature.sampler != "transition":
        raise fail(
            "sample",
            f"{signature.name} learns no inner flow: nothing is drawn given a state",
            hint="an objective with `map inner: y(s) -> y(r) = …` under a state of its first path",
        )
    check_sampler(loss, options)
    low, high = sorted((signature.data_time, signature.noise_time))
    if not low <= time <= high or time == signature.data_time:
        raise fail(
            "sample",
            f"no state to be given at time {time:g}",
            hint=f"from {signature.noise_time:g} (noise) to before {signature.data_time:g} (data)",
        )


def posterior_blocks(
    loss: CompiledLoss,
    networks: Networks,
    dataset: Dataset,
    plan: Layout,
    times: Sequence[float],
    *,
    seed: int,
    device: torch.device,
    options: SampleOptions | None = None,
) -> list[Block]:
    """Held-out data, one per row; for each time the state they are noised to and draws given it.

    States (rows, columns, *shape). Every time has the same noise.
    """
    data, label = _one_per_row(dataset, plan)
    noise = torch.randn(data.shape, generator=seeded(seed, "given"))
    asked = None if plan.labels is None else label
    blocks = [Block("held-out data", data[:, None])]
    for time in times:
        check_posterior(loss, time, options or SampleOptions())
        assert isinstance(loss, HasPath)
        states = loss.path(data, noise, time_vector(data, time))
        draws = sample_posterior(
            loss, networks, states.to(device), time, plan.columns,
            label=None if asked is None else asked.to(device),
            generator=seeded(seed, "given", f"{time:g}", device=device), options=options,
        )  # fmt: skip
        blocks += [Block(f"time {time:g}", states[:, None]), Block("draws given it", draws.cpu())]
    return blocks


def _one_per_row(dataset: Dataset, plan: Layout) -> tuple[Tensor, Tensor | None]:
    """One held-out sample for every row, of its class where rows have classes."""
    batch = dataset.held_out.first(MOST_SEARCHED)
    if plan.labels is None or batch.label is None:
        if len(batch.data) < plan.rows:
            raise fail("sample", f"{plan.rows} held-out samples wanted, {len(batch.data)} there")
        return batch.data[: plan.rows], None
    found = []
    for label in plan.labels:
        (places,) = (batch.label == label).nonzero(as_tuple=True)
        if not len(places):
            raise fail("sample", f"no held-out sample of class {label}")
        found.append(int(places[0]))
    return batch.data[found], batch.label[found]
