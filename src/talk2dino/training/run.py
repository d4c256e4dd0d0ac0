"""The frame of every training: epochs of steps, stopped at any of them and continued exactly.

What a method adds is a subclass of `Run`: its batches, a step, its judgement, what is its own.
"""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from talk2dino.files import load_torch
from talk2dino.processes import Processes
from talk2dino.progress import Progress, silent

Record = Mapping[str, Any]
"""One row of the table of losses: `epoch`, counted from 1, and the numbers of a training."""
Log = Callable[[Mapping[str, float], int], object]
"""Shows named numbers at a place, see `Run.place`."""


@dataclass
class RunState:
    """Where a run stands. Randomness is no part: it is a function of (seed, epoch, step)."""

    epoch: int = 0
    """Complete epochs."""
    step: int = 0
    """Complete optimiser steps of the epoch under way."""
    records: list[Record] = field(default_factory=list)
    """One per complete epoch."""
    best_epoch: int | None = None
    """Epoch with the lowest validation loss so far, from 1."""
    losses: list[float] = field(default_factory=list)
    """Values of the complete steps of the epoch under way: `Run.columns` of each."""


def load_state(path: Path) -> dict[str, Any]:
    """Read the state of a run, and the `settings` that its job has added.

    Raises:
        FileNotFoundError, ValueError: absent, damaged, or another kind of file.
    """
    content = load_torch(path)
    if not isinstance(content, dict) or not {"settings", "best", "optimizer"} <= content.keys():
        raise ValueError(
            f"{path} is not the state of an unfinished training of this version; delete or move it"
        )
    return content


logger = logging.getLogger(__name__)


@dataclass
class Hooks:
    """What happens around the loop; by default nothing."""

    progress: Callable[[Iterable[int], int, int], Iterable[int]] = lambda steps, epoch, total: steps
    """(steps still to do, epoch from 1, steps of an epoch) -> the same steps, shown somewhere."""
    on_epoch: Callable[[Record], object] = lambda record: None
    """Called after every epoch with its record."""
    encoding: Progress = silent
    """Progress of what is done with the data before the first step."""
    log: Log = lambda values, place: None
    """What loggers show."""
    save: Callable[[dict[str, Any]], object] | None = None
    """Keeps what `Run.restore` takes: at every epoch's end, and when it is due within one."""
    seconds: float = 60.0
    """Between two saves within an epoch."""


class Run(ABC):
    """A training that can be stopped at any step and continued to the same weights.

    Args:
        model: with its first weights, on its device, the same in every process; it is trained.
        optimizer: of its parameters.
        epochs: of the whole training.
        steps_per_epoch: optimiser steps.
        processes: this process and its equals, which take every step together.
    """

    advice: str
    """What to do when a value is not finite."""
    columns: tuple[str, ...]
    """Of a record: what `take` returns."""
    losses: tuple[str, str]
    """Of a record: the loss to plot, and the same on what is not trained on, as `judge` returns."""
    schedule: Callable[[int], float]
    """The learning rate of every step of the run, the first being 0."""
    curves: Mapping[str, str]
    """Name in a record -> what loggers call it."""
    shows_steps = False
    """Whether loggers are shown what `take` returns step by step, and not epoch by epoch."""
    look_every = 1
    """Steps between looks at the losses: each look makes a GPU wait."""
    save_every = 1
    """Steps between looks at the clock, which tells whether the state is to be saved."""
    saves_together = False
    """Whether every process has a part in the state."""
    keeps_best = True
    """Whether the epoch with the lowest loss of `judge` is kept, and not the last one."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        steps_per_epoch: int,
        processes: Processes | None = None,
    ) -> None:
        self.model, self.optimizer, self.state = model, optimizer, RunState()
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.processes = processes or Processes()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.best: dict[str, Tensor] | None = None  # weights of the best epoch, on the CPU
        self.pending: list[Tensor] = []  # values of steps, still on the device
        self.hooks, self.saved_at = Hooks(), time.monotonic()

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """What `take` is given, from the state's step to the end of the epoch under way."""

    @abstractmethod
    def take(self, batch: Any, step: int) -> Tensor:
        """One optimiser step; returns its `columns`, a vector on the device."""

    @abstractmethod
    def judge(self) -> float | None:
        """The loss after an epoch that chooses which one is kept, if there is one."""

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """What `go_on` needs besides the state, the weights and the optimiser."""

    @abstractmethod
    def go_on(self, saved: Mapping[str, Any]) -> None:
        """Take what `own_state` returned from what was saved."""

    def shown(self, means: list[float]) -> dict[str, float]:
        """What loggers show of the last steps while their epoch is under way: nothing."""
        return {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.state = RunState(**saved["state"])
        self.best = saved["best"]
        self.model.load_state_dict(saved["weights"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.go_on(saved)

    def learning_rate(self, step: int) -> float:
        """Of a step of the epoch under way."""
        return self.schedule(self.state.epoch * self.steps_per_epoch + step)

    def place(self, epoch: int, step: int = 0) -> int:
        """Where loggers show the values after so many epochs and steps."""
        return epoch * self.steps_per_epoch + step if self.shows_steps else epoch

    def named(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Those that loggers show, as they call them."""
        known = {name: value for name, value in values.items() if value is not None}
        return {curve: known[name] for name, curve in self.curves.items() if name in known}

    def run(self, hooks: Hooks) -> dict[str, Tensor]:
        """Train to the end.

        Returns:
            The final weights, or those of the best epoch if it is kept, on the CPU.

        Raises:
            RuntimeError: a loss or a weight is not finite; the message names epoch and step.
        """
        self.hooks = hooks
        self.model.train()
        self._save()
        while self.state.epoch < self.epochs:
            self._epoch()
            record = self._close_epoch()
            # First: a resumed run shows again what is not in the state.
            hooks.on_epoch(record)
            shown = {n: record[n] for n in self.losses[1:]} if self.shows_steps else record
            if values := self.named(shown):
                hooks.log(values, self.place(self.state.epoch))
            self._save()
        return self.best or weights_on_cpu(self.model)

    def failure(self, what: str, step: int) -> RuntimeError:
        """The error that says where a value was not finite."""
        return RuntimeError(
            f"epoch {self.state.epoch + 1}, step {step} of {self.steps_per_epoch}: {what}. "
            f"Training stopped. {self.advice}"
        )

    def _epoch(self) -> None:
        """Train from the state's step to the end of the epoch under way."""
        state, total = self.state, self.steps_per_epoch
        batches = self.batches()
        for step in self.hooks.progress(range(state.step, total), state.epoch + 1, total):
            self.pending.append(self.take(next(batches), step))
            state.step += 1
            if state.step == total or state.step % self.look_every == 0:
                self.collect()
            if state.step < total and state.step % self.save_every == 0 and self._is_due():
                self._save()

    def collect(self) -> None:
        """Fetch the values that are still on the device, check and keep them."""
        if not self.pending:
            return
        rows: list[list[float]] = torch.stack(self.pending).tolist()
        self.pending = []
        if self.saves_together:  # as means over the processes
            rows = [
                [math.fsum(values) / self.processes.count for values in zip(*step, strict=True)]
                for step in zip(*self.processes.gather(rows), strict=True)
            ]
        for row in rows:
            self.state.losses += row
            for name, value in zip(self.columns, row, strict=True):
                if not math.isfinite(value):
                    step = len(self.state.losses) // len(self.columns)
                    raise self.failure(f"{name} is {value}", step)
        means = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        if shown := self.shown(means):
            self.hooks.log(shown, self.place(self.state.epoch, self.state.step))

    def _close_epoch(self) -> Record:
        """Record the epoch's means, and keep the weights if they are the best."""
        state, judged, (_, column) = self.state, self.judge(), self.losses
        if judged is not None and not math.isfinite(judged):
            raise self.failure(f"{column} is {judged}", state.step)
        earlier = [record[column] for record in state.records if record[column] is not None]
        if self.keeps_best and judged is not None and judged < min(earlier, default=math.inf):
            state.best_epoch = state.epoch + 1
            if self.processes.rank == 0:
                self.best = weights_on_cpu(self.model)
        values, width = state.losses, len(self.columns)
        means = [math.fsum(values[i::width]) / state.step for i in range(width)]
        state.records.append(
            {
                "epoch": state.epoch + 1,
                **dict(zip(self.columns, means, strict=True)),
                column: judged,
                "learning_rate": self.learning_rate(self.steps_per_epoch - 1),
            }
        )
        state.epoch, state.step, state.losses = state.epoch + 1, 0, []
        return state.records[-1]

    def _is_due(self) -> bool:
        """Whether the last save lies back far enough; the first process tells the others."""
        hooks = self.hooks
        due = hooks.save is not None and time.monotonic() - self.saved_at >= hooks.seconds
        return bool(self.processes.broadcast(due)) if self.saves_together else due

    def _save(self) -> None:
        """Have the state kept, after making sure that it is a good one."""
        save = self.hooks.save
        if save is None and not self.saves_together:
            return
        self.collect()
        if not all(bool(p.isfinite().all()) for p in self.parameters):
            raise self.failure("a weight became infinite or not a number", self.state.step)
        own = self.own_state()
        if save is not None:
            weights, optimizer = dict(self.model.state_dict()), self.optimizer.state_dict()
            saved = {"state": asdict(self.state), "best": self.best, "weights": weights}
            save({**saved, "optimizer": optimizer, **own})
            self.saved_at = time.monotonic()
            logger.debug("saved epoch %d, step %d", self.state.epoch, self.state.step)


def epoch_order(count: int, seed: int, epoch: int, shuffle: bool = True) -> Tensor:
    """(count,) the captions of an epoch in order: a function of the seed and the epoch alone."""
    if not shuffle:
        return torch.arange(count)
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def step_seed(seed: int, epoch: int, step: int, *place: int) -> int:
    """The seed of what is drawn in one step: of its place in the run alone."""
    return int(np.random.SeedSequence([seed, epoch, step, *place]).generate_state(1)[0])


def weights_on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
