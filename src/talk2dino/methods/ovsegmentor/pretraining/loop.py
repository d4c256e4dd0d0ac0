"""The pretraining loop: epochs of optimiser steps, in one process or several."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.files import save_torch
from talk2dino.methods.ovsegmentor.data.batches import EpochBatches, FailureLog, make_loader
from talk2dino.methods.ovsegmentor.data.dataset import Collate, LoadedBatch, PretrainingSamples
from talk2dino.methods.ovsegmentor.model import OVSegmentor
from talk2dino.methods.ovsegmentor.pretraining.config import PretrainingRecipe
from talk2dino.methods.ovsegmentor.pretraining.optimizer import make_optimizer, make_schedule
from talk2dino.methods.ovsegmentor.pretraining.selection import HeldOut
from talk2dino.methods.ovsegmentor.pretraining.state import (
    EpochRecord,
    Progress,
    Snapshot,
    own_statistics,
    save_snapshot,
)
from talk2dino.methods.ovsegmentor.pretraining.step import VALUES, PretrainingStep, step_seed
from talk2dino.processes import Processes
from talk2dino.training.run import weights_on_cpu

logger = logging.getLogger(__name__)


@dataclass
class Hooks:
    """What happens around the loop; by default nothing."""

    progress: Callable[[Iterable[int], int, int], Iterable[int]] | None = None
    """(steps still to do, epoch from 1, steps of an epoch) -> the same steps, shown somewhere."""
    on_values: Callable[[Mapping[str, float], int], None] | None = None
    """Called every `log_every` steps with named numbers and the steps so far."""
    on_epoch: Callable[[EpochRecord], None] | None = None
    """Called after every epoch."""


@dataclass
class StateFile:
    """Keeps a run's state on disk."""

    path: Path
    """The file."""
    best: Path
    """Weights of the best epoch so far."""
    settings: dict[str, Any]
    """What a run must share with the interrupted one to continue it."""
    seconds: float = 600.0
    """Time between two saves within an epoch; every epoch's end is saved anyway."""
    saved_at: float = field(default_factory=time.monotonic)
    """When it was saved last."""

    def is_due(self) -> bool:
        """Whether the last save lies back far enough."""
        return time.monotonic() - self.saved_at >= self.seconds


class PretrainingRun:
    """A pretraining that can be stopped at any step and continued to the same weights.

    Args:
        model: with its first weights, on its device, the same in every process; it is trained.
        recipe: everything else that the result depends on.
        samples: training samples, the same in every process.
        collate: makes batches of them.
        held_out: chooses the epoch; None keeps the last one.
        processes: this process and its equals, which divide every step.
        workers: processes that read images.
    """

    def __init__(
        self,
        model: OVSegmentor,
        recipe: PretrainingRecipe,
        samples: PretrainingSamples,
        collate: Collate,
        held_out: HeldOut | None = None,
        processes: Processes | None = None,
        workers: int = 0,
    ) -> None:
        self.model, self.recipe, self.held_out = model, recipe, held_out
        self.processes = processes or Processes()
        train, rank, world = recipe.train, self.processes.rank, self.processes.count
        self.batches = EpochBatches(len(samples), train.batch_size, train.seed, rank, world)
        self.steps_per_epoch = self.batches.steps // train.accumulate
        if not self.steps_per_epoch:
            raise ValueError(
                f"{len(samples)} samples are fewer than one step takes "
                f"({world} x {train.accumulate} x {train.batch_size})"
            )
        pinned = model.device.type == "cuda"
        self.loader = make_loader(samples, self.batches, collate, workers, pinned)
        self.step = PretrainingStep(model, make_optimizer(model, train), recipe)
        self.schedule = make_schedule(train, world, self.steps_per_epoch)
        self.state = Progress()
        self.lost = FailureLog()
        self._pending: list[Tensor] = []  # values still on the device

    @property
    def steps_done(self) -> int:
        """Optimiser steps of the whole run so far."""
        return self.state.epoch * self.steps_per_epoch + self.state.step

    def run(self, hooks: Hooks, keeper: StateFile | None = None) -> None:
        """Train to the end.

        Raises:
            RuntimeError: a loss or a weight is not finite, with the epoch and the steps; or too
                many images could not be read.
        """
        self.model.train()
        self._save(keeper)
        while self.state.epoch < self.recipe.train.epochs:
            self._epoch(hooks, keeper)
            self._close_epoch(keeper)
            if hooks.on_epoch:  # first: a resumed run shows again what is not in the state
                hooks.on_epoch(self.state.records[-1])
            self._save(keeper)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a saved state."""
        rank = self.processes.rank
        self.state = snapshot.progress[rank]
        self.model.load_state_dict({**snapshot.weights, **snapshot.own[rank]})
        self.step.restore(snapshot.step)
        self.lost.samples, self.lost.failures = self.state.samples, self.state.failures
        self.lost.named = dict(self.state.lost)

    def _epoch(self, hooks: Hooks, keeper: StateFile | None) -> None:
        """Train from the state's step to the end of the epoch under way."""
        state, train = self.state, self.recipe.train
        self.batches.start_at(state.epoch, state.step * train.accumulate)
        loaded = iter(self.loader)
        steps: Iterable[int] = range(state.step, self.steps_per_epoch)
        if hooks.progress:
            steps = hooks.progress(steps, state.epoch + 1, self.steps_per_epoch)
        for step in steps:
            self._update([self._next(loaded) for _ in range(train.accumulate)], step)
            state.step += 1
            if state.step % train.log_every == 0 or state.step == self.steps_per_epoch:
                self._collect(hooks)
                if state.step < self.steps_per_epoch and self._is_due(keeper):
                    self._save(keeper)

    def _next(self, loaded: Any) -> LoadedBatch:
        batch: LoadedBatch = next(loaded)
        self.lost.add(batch.failures, len(batch.rows))
        return batch

    def _update(self, batches: list[LoadedBatch], step: int) -> None:
        train, epoch, rank = self.recipe.train, self.state.epoch, self.processes.rank
        inputs = [batch.inputs.to(self.model.device) for batch in batches]
        seeds = [step_seed(train.seed, epoch, step, i, rank) for i in range(len(inputs))]
        rate = self.schedule.learning_rate(epoch * self.steps_per_epoch + step)
        self._pending.append(self.step(inputs, seeds, rate))

    def _collect(self, hooks: Hooks) -> None:
        """Fetch the values that are still on the device, of all processes; check and show them."""
        own = torch.stack(self._pending).tolist()
        self._pending = []
        first = self.state.step - len(own)
        world = self.processes.count
        rows = [
            [math.fsum(values) / world for values in zip(*step, strict=True)]
            for step in zip(*self.processes.gather(own), strict=True)
        ]
        for number, row in enumerate(rows, start=first + 1):
            for name, value in zip(VALUES, row, strict=True):
                if not math.isfinite(value):
                    raise self._failure(f"{name.replace('_', ' ')}: {value}", number)
            self.state.sums = [a + b for a, b in zip(self.state.sums, row, strict=True)]
        if hooks.on_values:
            means = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
            hooks.on_values(self._named(means), self.steps_done)

    def _named(self, means: list[float]) -> dict[str, float]:
        values = {f"train/{name}": value for name, value in zip(VALUES, means, strict=True)}
        if self.recipe.stage == 1:
            del values["train/mask"]
        values["learning_rate"] = self.schedule.learning_rate(self.steps_done - 1)
        values["similarity_scale"] = self.model.scale.item()
        return values

    def _close_epoch(self, keeper: StateFile | None) -> None:
        """Record the epoch's means; keep the weights if the held-out captions like them best."""
        state = self.state
        held_out = self.held_out.loss(self.model) if self.held_out else None
        if held_out is not None and not math.isfinite(held_out):
            raise self._failure(f"the held-out loss is {held_out}", state.step)
        means = {n: s / self.steps_per_epoch for n, s in zip(VALUES, state.sums, strict=True)}
        rate = self.schedule.learning_rate(self.steps_done - 1)
        record = EpochRecord(epoch=state.epoch + 1, held_out=held_out, learning_rate=rate, **means)
        if held_out is not None:
            earlier = [r.held_out for r in state.records if r.held_out is not None]
            if held_out < min(earlier, default=math.inf):
                state.best_epoch = record.epoch
                if keeper and self.processes.rank == 0:
                    save_torch(weights_on_cpu(self.model), keeper.best)
        state.records.append(record)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, [0.0] * len(VALUES)

    def _is_due(self, keeper: StateFile | None) -> bool:
        """Whether the first process finds that it is time to save."""
        return bool(self.processes.broadcast(keeper is not None and keeper.is_due()))

    def _save(self, keeper: StateFile | None) -> None:
        """Write the state, after making sure that it is a good one; all processes take part."""
        if self.processes.count == 1 and keeper is None:
            return
        if not all(bool(p.isfinite().all()) for p in self.step.parameters):
            raise self._failure("a weight became infinite or not a number", self.state.step)
        self.state.samples, self.state.failures = self.lost.samples, self.lost.failures
        self.state.lost = dict(self.lost.named)
        parts = self.processes.gather((self.state, own_statistics(self.model)))
        if keeper is None or self.processes.rank > 0:
            return
        progress, own = [list(column) for column in zip(*parts, strict=True)]
        weights = dict(self.model.state_dict())
        save_snapshot(
            Snapshot(progress, weights, own, self.step.state(), keeper.settings), keeper.path
        )
        keeper.saved_at = time.monotonic()
        logger.debug("saved epoch %d, step %d", self.state.epoch, self.state.step)

    def _failure(self, what: str, step: int) -> RuntimeError:
        return RuntimeError(
            f"epoch {self.state.epoch + 1}, step {step} of {self.steps_per_epoch}: {what}. "
            "Training stopped. Try a lower base_lr, or float32 (amp: null)."
        )
