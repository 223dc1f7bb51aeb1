"""From a run's folder back to a loss and networks that can sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from flowdsl.diagnostics import did_you_mean, fail
from flowdsl.runtime.conditions import read_conditions, with_conditions
from flowdsl.runtime.dataset import DataCard
from flowdsl.runtime.protocols import CompiledLoss, Networks, as_argument
from flowdsl.runtime.randomness import derive_seed
from flowdsl.runtime.training.checkpoints import Checkpoint, load_checkpoint
from flowdsl.runtime.training.config import TrainConfig
from flowdsl.runtime.training.device import choose_device
from flowdsl.runtime.training.directory import RunDirectory, RunRecord, SavedSpec, last_run
from flowdsl.runtime.training.state import load_frozen

#: Turns a saved spec into a loss; whoever has a compiler supplies it.
CompileSpec = Callable[[SavedSpec], CompiledLoss]

#: Builds fresh networks for an objective, data and config.
BuildNetworks = Callable[[CompiledLoss, DataCard, TrainConfig], Networks]


@runtime_checkable
class Adopts(Protocol):
    """A network that can take over the weights of one that is built otherwise."""

    def adopt(self, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run that can sample: `networks` is in the form that the loss takes."""

    directory: RunDirectory
    record: RunRecord
    loss: CompiledLoss
    networks: Networks
    step: int
    weights: str
    device: torch.device


def load_run(
    run_dir: Path | str,
    compile_spec: CompileSpec,
    *,
    weights: str = "ema",
    step: int | None = None,
    device: str = "auto",
    build: BuildNetworks | None = None,
    conditions: str | None = None,
) -> LoadedRun:
    """The loss, compiled from the saved spec, and the networks of a checkpoint (the last, or of
    `step`).

    `weights`: "ema" for the first average, "ema-0.999" for one of several, "raw" for the weights
    themselves. `build` makes the networks of a run with modules of your own. `conditions` is a file
    of other embeddings than the run was trained with. Raises `DiagnosticError` for folders that are
    no runs, damaged checkpoints, unknown weights.
    """
    directory = RunDirectory(last_run(run_dir))
    record = directory.record()
    if conditions is not None:
        record = replace(record, data=with_conditions(record.data, conditions))
    checkpoint = load_checkpoint(directory.checkpoints, step)
    loss = compile_spec(record.spec)
    bound = loss.bind((build or bundled_networks)(loss, record.data, record.config))
    name = _weights_name(weights, checkpoint)
    tensors = {**checkpoint.tensors["networks"], **load_frozen(directory)}
    if name != "raw":
        tensors |= {f"networks.{key}": value for key, value in checkpoint.tensors[name].items()}
    try:
        bound.load_state_dict(tensors)
    except RuntimeError as error:
        raise fail(
            "run",
            f"the networks of {directory.path} do not fit what was built",
            facts=(("torch says", str(error).strip()),),
            hint="a run with modules of your own needs the function that builds them",
        ) from error
    place = choose_device(device)
    bound.to(place)
    bound.train(False)
    modules: Mapping[str, nn.Module] = dict(bound.networks.items())
    networks = as_argument(loss.signature, modules)
    return LoadedRun(directory, record, loss, networks, checkpoint.step, name, place)


def bundled_networks(loss: CompiledLoss, card: DataCard, config: TrainConfig) -> Networks:
    """The bundled network for every role but averages, which the loss makes."""
    from flowdsl.runtime.nets import build_network
    from flowdsl.runtime.nets.vectors import VectorEmbedding

    given = read_conditions(card.conditions).vectors if card.conditions else None
    width = None if given is None else given.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        modules: dict[str, nn.Module] = {
            signature.name: build_network(
                signature,
                shape=card.shape,
                classes=card.classes,
                size=config.size,
                patch=config.patch or card.patch,
                parts={**config.network.model_dump(), "condition_width": width},
            )
            for signature in loss.signature.networks
            if signature.average_of is None
        }
    for part in (part for module in modules.values() for part in module.modules()):
        if isinstance(part, VectorEmbedding) and given is not None:
            part.show(given)
    return as_argument(loss.signature, modules)


def start_from(networks: Networks, loss: CompiledLoss, sources: Mapping[str, Path]) -> None:
    """Copies the averaged weights of other runs into networks, by role: teachers and warm starts.

    From a run with several learned networks the one of the same role is taken, else the only one
    that gives a state. A network with a method `adopt(weights, config)` takes over what it can of
    one that is built otherwise. Raises
    `DiagnosticError` for unknown roles, and for weights of another shape.
    """
    roles = [network.name for network in loss.signature.networks]
    for role, path in sources.items():
        if role not in roles:
            raise fail(
                "train",
                f'{loss.signature.name} has no network "{role}"',
                facts=(("networks", ", ".join(roles)),),
                hint=did_you_mean(role, roles),
            )
        module = networks[role] if isinstance(networks, Mapping) else networks
        weights, described = _learned_weights(path, role)
        try:
            if described is not None and isinstance(module, Adopts):
                module.adopt(weights, described)
            else:
                module.load_state_dict(weights)
        except RuntimeError as error:
            raise fail(
                "train",
                f"the weights of {path} do not fit the network {role}",
                facts=(("torch says", str(error).strip()),),
                hint="train both with the same size, patch and data",
            ) from error
    for network in loss.signature.networks:
        if network.frozen and network.name not in sources:
            raise fail(
                "train",
                f"{network.name} does not learn, so it needs weights to start with",
                facts=(("spec", network.line),),
                hint=f"the run that trained it: --start {network.name}=runs/…",
            )


def _learned_weights(path: Path, role: str) -> tuple[dict[str, Tensor], Any]:
    """The first average of a run's learned network, and how that was built (None: not told).

    Of several learned networks it is the one of this role, else the only one that gives a state.
    """
    directory = RunDirectory(last_run(path))
    checkpoint = load_checkpoint(directory.checkpoints)
    average = checkpoint.tensors[_weights_name("ema", checkpoint)]
    described = directory.record().networks
    roles = sorted({key.partition(".")[0] for key in average})
    source = role
    if role not in roles:
        states = [name for name in roles if _gives_state(described.get(name))]
        if len(states) != 1:
            raise fail(
                "train", f'{path} has no network "{role}"', facts=(("it has", ", ".join(roles)),)
            )
        source = states[0]
    prefix = f"{source}."
    weights = {key.removeprefix(prefix): v for key, v in average.items() if key.startswith(prefix)}
    return weights, described.get(source)


def _gives_state(described: Any) -> bool:
    """Whether a network's own record does not say that it returns numbers alone."""
    heads = described.get("heads") if isinstance(described, Mapping) else None
    return not heads or any(head["kind"] == "state" for head in heads)


def _weights_name(weights: str, checkpoint: Checkpoint) -> str:
    averages = sorted(name for name in checkpoint.tensors if name.startswith("ema-"))
    if weights == "ema":
        return str(checkpoint.state["first_average"])
    known = ["raw", *averages]
    if weights not in known:
        raise fail(
            "run",
            f'the run has no weights "{weights}"',
            facts=(("known", ", ".join(known)),),
            hint=did_you_mean(weights, known),
        )
    return weights
