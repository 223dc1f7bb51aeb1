"""The trainer: one loop, resumed exactly.

Everything random is a function of (seed, step), and everything that changes is in the checkpoint.
So a run that was stopped and resumed has the same losses, weights, averages and log, bit for bit,
as one that was not (on the same machine, with the same number of threads).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from flowdsl.diagnostics import DiagnosticError, fail
from flowdsl.runtime.dataset import Dataset, dataset_lines
from flowdsl.runtime.grid import save_picture
from flowdsl.runtime.pictures import (
    POINTS,
    data_block,
    layout,
    sample_blocks,
    sample_picture,
    shows_labels,
)
from flowdsl.runtime.protocols import CompiledLoss, Networks, as_argument, takes_labels
from flowdsl.runtime.randomness import derive_seed, generator
from flowdsl.runtime.sampling import check_sampler, possible_steps
from flowdsl.runtime.training.checkpoints import load_checkpoint, save_checkpoint
from flowdsl.runtime.training.config import TrainConfig
from flowdsl.runtime.training.device import autocast, choose_device, seeded_inside
from flowdsl.runtime.training.directory import RunDirectory, RunRecord, SavedSpec, versions
from flowdsl.runtime.training.interrupt import StopRequest, stop_on_signal
from flowdsl.runtime.training.log import MetricsFile, Window, tensorboard_writer
from flowdsl.runtime.training.parts import Moment, Part, backward, in_parts
from flowdsl.runtime.training.players import Learner, Player
from flowdsl.runtime.training.progress import Reporter, duration, reporter
from flowdsl.runtime.training.state import TrainState, load_frozen, save_frozen


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `exit_code` is 0, or 130 when Ctrl-C stopped it after a checkpoint."""

    path: Path
    step: int
    steps: int
    seconds: float
    exit_code: int = 0
    last: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.step == self.steps


def train(
    loss: CompiledLoss,
    networks: Networks,
    dataset: Dataset,
    config: TrainConfig,
    *,
    run_dir: Path | str,
    spec: SavedSpec | None = None,
    players: Sequence[Player] | None = None,
    progress: bool = True,
) -> RunResult:
    """Trains the networks on the dataset, into a new run directory.

    `networks` is one module, or one per role; any `nn.Module` with the spec's signature will do.
    They are trained in place. Raises `DiagnosticError` for a folder that is in use, a disk that is
    full, numbers that stay not finite.
    """
    directory, report = RunDirectory(run_dir), reporter(progress)
    device = choose_device(config.device)
    state = TrainState(loss, networks, config, players, device)
    directory.create(_record(state, dataset, config, spec or SavedSpec()), loss.source)
    save_frozen(state, directory)
    return Trainer(loss, dataset, config, state, directory, device, report).run()


def resume(
    run_dir: Path | str,
    loss: CompiledLoss,
    networks: Networks,
    dataset: Dataset,
    *,
    players: Sequence[Player] | None = None,
    progress: bool = True,
) -> RunResult:
    """Goes on from a run's last checkpoint to its end; `networks` only need the right shapes."""
    directory, report = RunDirectory(run_dir), reporter(progress)
    config = directory.record().config
    device = choose_device(config.device)
    state = TrainState(loss, networks, config, players, device)
    state.restore(load_checkpoint(directory.checkpoints), load_frozen(directory))
    if directory.source() != loss.source:
        report.message(
            f"warning: the loss now compiles to other code than when {run_dir} began; what it was "
            "trained with so far is in its loss.py"
        )
    return Trainer(loss, dataset, config, state, directory, device, report).run()


class Trainer:
    """The loop over the steps of one run. `train` and `resume` are the ways in."""

    def __init__(
        self,
        loss: CompiledLoss,
        dataset: Dataset,
        config: TrainConfig,
        state: TrainState,
        directory: RunDirectory,
        device: torch.device,
        report: Reporter,
    ) -> None:
        self.loss, self.dataset, self.config, self.state = loss, dataset, config, state
        self.directory, self.device, self.report = directory, device, report
        self.labelled = takes_labels(loss.signature)
        self.metrics_file = MetricsFile(directory.metrics, state.step)
        self.scalars = (
            tensorboard_writer(directory.tensorboard, state.step) if config.tensorboard else None
        )
        self.mark = (state.step, state.seconds)  # of the last line of the log
        self.pictures = True

    def run(self) -> RunResult:
        """Steps until the end, or until a signal asks to stop."""
        state, config, report = self.state, self.config, self.report
        report.start(self._title(), state.step, config.steps)
        for line in dataset_lines(self.dataset, labelled=self.labelled):
            report.message(line)
        self.pictures = self._can_sample()
        try:
            with seeded_inside(self.device), stop_on_signal() as stop:
                while state.step < config.steps and not stop.signal:
                    # step
                    started = time.perf_counter()
                    self._learn(state.step)
                    state.step += 1
                    state.seconds += time.perf_counter() - started
                    report.step(state.step)
                    # log, show, save
                    if self._due(config.log_every) or state.step == config.steps:
                        self._log()
                    if self._due(config.checkpoint_every):
                        self._save()
                    if self._due(config.sample_every):
                        self._picture()
                self._save()
                if state.step < config.steps:
                    self._log(partial=True)
                if state.step == config.steps and not self._due(config.sample_every):
                    self._picture()
                return self._result(stop)
        except torch.OutOfMemoryError as error:
            raise fail("train", f"out of memory: {error}", hint="a smaller batch") from error
        finally:
            report.stop()
            if self.scalars is not None:
                self.scalars.close()

    def _learn(self, step: int) -> None:
        """One step of every player whose turn it is, and of the averages."""
        config, state = self.config, self.state
        torch.manual_seed(derive_seed(config.seed, "network", step))  # dropout inside networks
        batch = self.dataset.batch(step, config.seed, config.batch).to(self.device)
        moment = Moment(step, config.steps)
        random = generator(config.seed, "draws", step, device=self.device)
        parts = in_parts(self.loss, batch, config.accumulate, moment, random)
        turns = [(one, one.player.due(step)) for one in state.learners]
        moved = [self._turn(one, terms, moment, parts) for one, terms in turns if terms != ()]
        if any(moved):
            state.bound.update_averages(progress=step / config.steps, step=step, steps=config.steps)
            for average in state.averages:
                average.update(state.networks, step)

    def _turn(
        self,
        learner: Learner,
        due: tuple[str, ...] | None,
        moment: Moment,
        parts: list[Part],
    ) -> bool:
        """Loss, gradient and optimiser step of one player; False when the step was skipped."""
        state = self.state
        for other in state.learners:
            other.optimizer.zero_grad(set_to_none=True)
        value, terms = backward(
            state.run,
            parts,
            moment,
            terms=due,
            labelled=self.labelled,
            context=partial(autocast, self.device, self.config.precision),
        )
        norm = learner.clip()
        if not state.guard.passes(value, norm):
            state.window.skipped += 1
            self.report.message(state.guard.report(moment.step, value, terms, norm))
            return False
        rate = learner.step(moment.step)
        prefix = "" if len(state.learners) == 1 else f"{learner.player.name}."
        of_player: dict[str, Tensor | float] = {
            "loss": value,
            "gradient_norm": norm,
            "learning_rate": rate,
        }
        state.window.add({f"{prefix}{name}": number for name, number in of_player.items()})
        state.window.add({f"terms.{name}": number for name, number in terms.items()})
        return True

    def _log(self, partial: bool = False) -> None:
        """One line for the steps since the last one, in the file, in TensorBoard, on the screen.

        A run that is stopped writes a `partial` one in the file, which gives way when it goes on.
        """
        state = self.state
        step, seconds = self.mark
        means = state.window.means()
        if partial and not means:
            return
        rate = (state.step - step) / max(state.seconds - seconds, 1e-9)
        record = {"step": state.step, **means, "skipped": state.window.skipped}
        record |= {"partial": True} if partial else {}
        self.metrics_file.write({**record, "steps_per_second": round(rate, 3)})
        if partial:
            return
        self.mark = (state.step, state.seconds)
        if self.scalars is not None:
            for name, value in {**means, "steps_per_second": rate}.items():
                self.scalars.add_scalar(name.replace(".", "/"), value, state.step)
        self.report.line(state.step, _shown(means), rate)
        state.last = means
        state.window = Window()

    def _picture(self) -> None:
        """The run's picture at this step. One that fails is told, and is not worth the run."""
        if not self.pictures:
            return
        try:
            image = self._samples()
            save_picture(image, self.directory.samples / f"step-{self.state.step:08d}.png")
        except DiagnosticError as error:
            self.pictures = False
            self.report.message(f"no pictures: {error.diagnostics[0].message}")
        except OSError as error:
            self.report.message(f"the picture was not written: {error}")

    def _samples(self) -> Image.Image:
        """Samples of the averaged weights, from the same noise every time."""
        card, config, state = self.dataset.card, self.config, self.state
        average = state.averages[0]
        plan = layout(card, labelled=shows_labels(self.loss, card))
        modules: dict[str, nn.Module] = {**state.networks, **dict(average.networks.items())}
        networks = as_argument(self.loss.signature, modules)
        blocks = sample_blocks(
            self.loss,
            networks,
            card,
            plan,
            possible_steps(self.loss.signature, config.sample_steps),
            seed=config.seed,
            device=self.device,
        )
        backdrop = None
        if card.pixels.kind == "points":
            backdrop = self.dataset.held_out.first(POINTS).data
        elif (real := data_block(self.dataset, plan)) is not None:
            blocks.append(real)
        title = f"{self.loss.signature.name} on {card.name}, step {state.step:,}"
        return sample_picture(
            blocks, card, plan, title=title, note=f"weights: {average.name}", backdrop=backdrop
        )

    def _save(self) -> None:
        save_checkpoint(self.directory.checkpoints, self.state.checkpoint(), self.config.keep)

    def _due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

    def _can_sample(self) -> bool:
        try:
            check_sampler(self.loss)
        except DiagnosticError as error:
            self.report.message(f"no pictures: {error.diagnostics[0].message}")
            return False
        return True

    def _title(self) -> str:
        config = self.config
        weights = sum(p.numel() for one in self.state.learners for p in one.parameters)
        return (
            f"{self.loss.signature.name} on {self.dataset.card.name}: {config.steps} steps of "
            f"{config.batch}, {weights / 1e6:.2f} M weights, {self.device}, {config.precision}"
        )

    def _result(self, stop: StopRequest) -> RunResult:
        state, path = self.state, self.directory.path
        finished = state.step == self.config.steps
        if finished:
            self.report.message(f"done, {duration(state.seconds)} of training: {path}")
        else:
            self.report.message(
                f"stopped and saved at step {state.step}; go on with: flowdsl train --resume {path}"
            )
        code = 0 if finished else stop.exit_code
        return RunResult(path, state.step, self.config.steps, state.seconds, code, state.last)


def network_config(network: nn.Module) -> object:
    """A network's own record of how it was built (`.config`) as plain data, or None."""
    config: Any = getattr(network, "config", None)
    if hasattr(config, "as_dict"):
        return config.as_dict()
    if hasattr(config, "model_dump"):
        return config.model_dump(mode="json")
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config)
    return dict(config) if isinstance(config, Mapping) else None


def _record(state: TrainState, dataset: Dataset, config: TrainConfig, spec: SavedSpec) -> RunRecord:
    """What run.json holds."""
    return RunRecord(
        objective=state.signature.name,
        title=state.signature.title,
        config=config,
        data=dataset.card,
        spec=spec,
        networks={name: network_config(net) for name, net in state.networks.items()},
        versions=versions(),
    )


def _shown(means: dict[str, float]) -> dict[str, float]:
    """What a line of progress shows: losses, gradient norms, and terms where there are several;
    squared errors, where the loss makes another number of them.
    """
    told = {k.removeprefix("terms."): v for k, v in means.items() if k.startswith("terms.")}
    terms = {k: v for k, v in told.items() if "." not in k}
    shown = {k: v for k, v in means.items() if k.endswith(("loss", "gradient_norm"))}
    if len(terms) > 1:
        return shown | told
    return shown | {k.rpartition(".")[2]: v for k, v in told.items() if k not in terms}
