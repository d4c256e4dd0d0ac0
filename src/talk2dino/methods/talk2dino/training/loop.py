"""The training loop: one projection, frozen features, one process or several."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from talk2dino.config import check_name
from talk2dino.methods.talk2dino.projection import Projection
from talk2dino.methods.talk2dino.recipe import TrainConfig
from talk2dino.methods.talk2dino.training.dataset import Batch, Pairs
from talk2dino.methods.talk2dino.training.distributed import Share
from talk2dino.methods.talk2dino.training.state import Checkpoint, TrainingState, save_checkpoint
from talk2dino.methods.talk2dino.training.step import BatchLoss
from talk2dino.processes import Processes
from talk2dino.training.history import EpochRecord
from talk2dino.training.run import epoch_order, weights_on_cpu
from talk2dino.training.schedules import Schedule

OPTIMIZERS = ("Adam", "AdamW")
CHECK_EVERY = 50
"""Steps between looks at the losses: each look makes a GPU wait."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """Everything besides the data and the model that the final weights depend on."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """Loss, learning rate, epochs and batches: the recipe's train section."""
    optimizer: str = "Adam"
    """Adam, or AdamW with `weight_decay`."""
    weight_decay: float = 0.05
    """AdamW only."""
    scheduler: str = "linear"
    """See talk2dino.training.schedules."""
    warmup: int = 0
    """Steps of linear warm-up."""
    seed: int = 123
    """Seeds the first weights, the order of every epoch, and sampled heads."""

    def __post_init__(self) -> None:
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        Schedule(self.scheduler, self.train.lr, self.warmup, total_steps=self.warmup + 1)
        if self.weight_decay < 0:
            raise ValueError(f"--weight_decay must not be negative, got {self.weight_decay}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")


@dataclass
class Hooks:
    """What happens around the loop; by default nothing."""

    progress: Callable[[Iterable[int], int, int], Iterable[int]] | None = None
    """(steps still to do, epoch from 1, steps of an epoch) -> the same steps, shown somewhere."""
    on_epoch: Callable[[EpochRecord], None] | None = None
    """Called after every epoch."""
    choose_heads: Callable[[Batch], Tensor] | None = None
    """If given, (B,) the head of every caption, recorded in the last epoch."""


class TrainingRun:
    """A training that can be stopped at any step and continued to the same weights.

    Args:
        model: the projection; trained in place, on the device of the pairs.
        pairs: training captions and images.
        validation: the same for the validation loss, or None.
        settings: see LoopSettings.
        processes: this process and its equals, which divide every batch; each has all pairs and
            the same weights, and they take every step together.
    """

    def __init__(
        self,
        model: Projection,
        pairs: Pairs,
        validation: Pairs | None,
        settings: LoopSettings,
        processes: Processes | None = None,
    ) -> None:
        if settings.train.save_best_model and validation is None:
            raise ValueError(
                "save_best_model: true chooses by validation loss: pass --val_dataset, "
                "or set save_best_model: false in the recipe"
            )
        self.model = model
        self.pairs = pairs
        self.validation = validation
        self.settings = settings
        self.state = TrainingState()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        several = processes is not None and processes.count > 1
        self.share = Share(processes, self.device) if processes and several else None
        self.loss = BatchLoss(model, settings.train, self.share, self.device.type == "cuda")
        self.optimizer = make_optimizer(self.parameters, settings)
        self.steps_per_epoch = math.ceil(len(pairs) / settings.train.batch_size)
        total_steps = self.steps_per_epoch * settings.train.num_epochs
        self.schedule = Schedule(
            settings.scheduler, settings.train.lr, settings.warmup, total_steps
        )
        self._generator = torch.Generator(self.device)
        self._pending: list[Tensor] = []  # losses still on the device

    def run(self, hooks: Hooks, checkpoint: StateFile | None = None) -> dict[str, Tensor]:
        """Train to the end.

        Args:
            hooks: progress, records and head choices.
            checkpoint: where the state is kept; None keeps none.

        Returns:
            The final weights, or those of the best epoch with `save_best_model`, on the CPU.

        Raises:
            RuntimeError: a loss or a weight is not finite; the message names epoch and step.
        """
        self.model.train()
        if checkpoint:
            checkpoint.save(self)
        while self.state.epoch < self.settings.train.num_epochs:
            self._epoch(hooks, checkpoint)
            self._close_epoch()
            if hooks.on_epoch:  # first: a resumed run shows again what is not in the state
                hooks.on_epoch(self.state.records[-1])
            if checkpoint:
                checkpoint.save(self)
        if self.settings.train.save_best_model and self.state.best_weights is not None:
            return self.state.best_weights
        return weights_on_cpu(self.model)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a saved state."""
        self.state = checkpoint.state
        self.model.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(checkpoint.optimizer)

    def checkpoint(self, settings: Mapping[str, Any]) -> Checkpoint:
        """The state now, after making sure that it is a good one."""
        self.collect_losses()
        if not all(bool(p.isfinite().all()) for p in self.parameters):
            raise self._failure("a weight became infinite or not a number", self.state.step)
        weights, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        return Checkpoint(self.state, dict(weights), optimizer, dict(settings))

    def collect_losses(self) -> None:
        """Fetch the losses that are still on the device; raise if one is not finite."""
        if not self._pending:
            return
        losses = torch.stack(self._pending).tolist()
        self._pending = []
        for loss in losses:
            self.state.losses.append(loss)
            if not math.isfinite(loss):
                raise self._failure(f"the loss is {loss}", len(self.state.losses))

    def _epoch(self, hooks: Hooks, checkpoint: StateFile | None) -> None:
        """Train from the state's step to the end of the epoch under way."""
        state, train = self.state, self.settings.train
        order = epoch_order(len(self.pairs), self.settings.seed, state.epoch, train.shuffle)
        indices = order.split(train.batch_size)[state.step :]
        record_heads = hooks.choose_heads if state.epoch == train.num_epochs - 1 else None
        if record_heads and state.heads is None:
            state.heads = torch.full((len(self.pairs),), -1)
        batches = self.pairs.batches(self._own(indices))
        first = state.step
        steps: Iterable[int] = range(first, self.steps_per_epoch)
        if hooks.progress:
            steps = hooks.progress(steps, state.epoch + 1, self.steps_per_epoch)
        for step in steps:
            batch = next(batches)
            if record_heads and state.heads is not None:
                self._record_heads(record_heads(batch), indices[step - first])
            self._pending.append(self._update(batch, len(indices[step - first]), step))
            state.step += 1
            if state.step % CHECK_EVERY == 0:
                self.collect_losses()
            if checkpoint and checkpoint.is_due():
                checkpoint.save(self)
        self.collect_losses()

    def _own(self, indices: Sequence[Tensor]) -> Sequence[Tensor]:
        """What this process embeds of each batch."""
        return indices if self.share is None else [self.share.own(index) for index in indices]

    def _record_heads(self, heads: Tensor, index: Tensor) -> None:
        """Keep the chosen heads of a batch, of all processes."""
        if self.share is not None:
            heads = self.share.gather(heads, len(index))
        assert self.state.heads is not None
        self.state.heads[index] = heads.cpu()

    def _update(self, batch: Batch, total: int, step: int) -> Tensor:
        """One optimiser step on a batch of `total` captions; returns the loss, on the device."""
        rate = self.schedule.learning_rate(self.state.epoch * self.steps_per_epoch + step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(batch, total, self._seeded(step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.share is not None:
            self.share.sum_gradients(self.parameters)
        self.optimizer.step()
        return loss.detach()

    def _seeded(self, step: int) -> torch.Generator:
        """The generator of one step, so that a resumed run draws what the first would have."""
        if not self.loss.draws:
            return self._generator
        draw = np.random.SeedSequence([self.settings.seed, self.state.epoch, step])
        return self._generator.manual_seed(int(draw.generate_state(1)[0]))

    def _close_epoch(self) -> None:
        """Validate, record the epoch's means, and keep the weights if they are the best."""
        state = self.state
        val_loss = self._validation_loss()
        last_step = (state.epoch + 1) * self.steps_per_epoch - 1
        train_loss = math.fsum(state.losses) / len(state.losses)
        rate = self.schedule.learning_rate(last_step)
        record = EpochRecord(state.epoch + 1, train_loss, val_loss, rate)
        if self.settings.train.save_best_model and val_loss is not None:
            best = min((r.val_loss for r in state.records if r.val_loss is not None), default=None)
            if best is None or val_loss < best:
                state.best_epoch, state.best_weights = record.epoch, weights_on_cpu(self.model)
        state.records.append(record)
        state.epoch, state.step, state.losses = state.epoch + 1, 0, []

    def _validation_loss(self) -> float | None:
        """Mean loss over the validation batches, in the order of the file."""
        if self.validation is None:
            return None
        indices = torch.arange(len(self.validation)).split(self.settings.train.batch_size)
        self.model.eval()
        with torch.no_grad():
            losses = [
                self.loss(batch, len(indices[step]), self._seeded(step))
                for step, batch in enumerate(self.validation.batches(self._own(indices)))
            ]
        self.model.train()
        mean = math.fsum(torch.stack(losses).tolist()) / len(losses)
        if not math.isfinite(mean):
            raise self._failure(f"the validation loss is {mean}", self.state.step)
        return mean

    def _failure(self, what: str, step: int) -> RuntimeError:
        return RuntimeError(
            f"epoch {self.state.epoch + 1}, step {step} of {self.steps_per_epoch}: {what}. "
            "Training stopped. Try a lower learning rate, or look for such values in the features."
        )


class StateFile:
    """Keeps a run's state on disk.

    Args:
        path: the file.
        settings: what a run must share with the interrupted one to continue it.
        seconds: time between two saves within an epoch; every epoch's end is saved anyway.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], seconds: float = 60.0) -> None:
        self.path = path
        self.settings = dict(settings)
        self.seconds = seconds
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last save lies back far enough."""
        return time.monotonic() - self._saved_at >= self.seconds

    def save(self, run: TrainingRun) -> None:
        """Write the state of `run`, unless it is not finite."""
        save_checkpoint(run.checkpoint(self.settings), self.path)
        self._saved_at = time.monotonic()
        logger.debug("saved epoch %d, step %d", run.state.epoch, run.state.step)


def make_optimizer(parameters: list[nn.Parameter], settings: LoopSettings) -> torch.optim.Optimizer:
    """Adam with betas (0.9, 0.999) and eps 1e-8, or AdamW: the loss is divided by B^2, so the
    gradients come close to eps and the division is part of the recipe (section 6)."""
    # One kernel over all parameters: the same arithmetic, fewer launches.
    fused = parameters[0].device.type in ("cpu", "cuda")
    if settings.optimizer == "AdamW":
        decay = settings.weight_decay
        return torch.optim.AdamW(parameters, lr=settings.train.lr, weight_decay=decay, fused=fused)
    return torch.optim.Adam(parameters, lr=settings.train.lr, fused=fused)
