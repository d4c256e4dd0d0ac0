"""A pretraining run: optimiser steps of all processes, epochs of them, and held-out captions."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from talk2dino.devices import mixed_precision
from talk2dino.methods.ovsegmentor.config import LR_BATCH, PretrainingRecipe, TrainConfig
from talk2dino.methods.ovsegmentor.data.samples import (
    EpochBatches,
    Failure,
    FailureLog,
    LoadedBatch,
    PretrainingSamples,
)
from talk2dino.methods.ovsegmentor.losses import infonce
from talk2dino.methods.ovsegmentor.model import OVSegmentor, PretrainingBatch
from talk2dino.processes import Processes, average_gradients
from talk2dino.training.run import Run, step_seed


def make_schedule(train: TrainConfig, world: int, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate after so many optimiser steps: a linear warm-up, then half a cosine.

    Rates grow with the samples per step. As published the cosine is not shifted by the warm-up:
    where the warm-up ends, the rate drops a little.
    """
    factor = train.batch_size * world * train.accumulate / LR_BATCH
    base, floor, first = (rate * factor for rate in (train.base_lr, train.min_lr, train.warmup_lr))
    warmup, total = (n * steps_per_epoch for n in (train.warmup_epochs, train.epochs))

    def rate(time: int) -> float:
        if time < warmup:
            return first + time * (base - first) / warmup
        return floor + (base - floor) * (1 + math.cos(math.pi * time / total)) / 2

    return rate


def make_optimizer(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW, with its usual betas and eps, over what is trained: with weight decay and without.

    All but biases and vectors have it; as published also the similarity scale, which has no
    dimension.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decaying = [p for name, p in trained if p.ndim != 1 and not name.endswith(".bias")]
    others = [p for name, p in trained if p.ndim == 1 or name.endswith(".bias")]
    groups = [
        {"params": decaying, "weight_decay": train.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = trained[0][1].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=train.base_lr, fused=fused)


class PretrainingRun(Run):
    """One stage of pretraining.

    Args:
        model: with its first weights, on its device, the same in every process; it is trained, in
            the mode it is in.
        recipe: everything else that the result depends on.
        samples: training samples, the same in every process.
        held_out: choose the epoch; None keeps the last one.
        processes: this process and its equals, which divide every step.
        workers: processes that read images.
    """

    model: OVSegmentor
    advice = "Try a lower base_lr, or float32 (amp: null)."
    columns = ("loss", "matching", "entity", "mask", "gradient_norm")
    losses = ("matching", "held_out")
    shows_steps = True

    def __init__(
        self,
        model: OVSegmentor,
        recipe: PretrainingRecipe,
        samples: PretrainingSamples,
        held_out: PretrainingSamples | None = None,
        processes: Processes | None = None,
        workers: int = 0,
    ) -> None:
        self.recipe, self.samples = recipe, samples
        processes = processes or Processes()
        train, world = recipe.train, processes.count
        size, pinned = train.batch_size, model.device.type == "cuda"
        self.order = EpochBatches(samples, size, train.seed, processes, workers, pinned)
        steps = self.order.steps // train.accumulate
        if not steps:
            raise ValueError(
                f"{len(samples)} samples are fewer than one step takes "
                f"({world} x {train.accumulate} x {train.batch_size})"
            )
        super().__init__(model, make_optimizer(model, train), train.epochs, steps, processes)
        self.look_every = self.save_every = train.log_every
        self.saves_together = world > 1
        # float16's small gradients vanish unless the loss is scaled up.
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=train.amp == "float16")
        self.held_out: EpochBatches | None = None
        if held_out is not None:
            size = min(recipe.selection.batch_size, len(held_out) // world)
            self.held_out = EpochBatches(held_out, size, 0, processes, workers)
        rate_after = make_schedule(train, world, steps)
        # As published the value of one step earlier; the first two updates share one.
        self.schedule = lambda step: rate_after(max(step - 1, 0))
        self.curves = {name: f"train/{name}" for name in self.columns}
        self.curves |= {"held_out": "held_out/matching", "learning_rate": "learning_rate"}
        if recipe.stage == 1:
            del self.curves["mask"]
        self.unread = FailureLog()
        self.lost = ""
        """What all processes could not read, in one line, when the state was saved last."""

    def own_state(self) -> dict[str, Any]:
        """What is not shared, of each process: images lost, and the bridge's running statistics,
        which are per process as published."""
        buffers = self.model.named_buffers()
        own = {name: value.cpu() for name, value in buffers if name.startswith("bridge_projector.")}
        every = self.processes.gather((asdict(self.unread), own))
        lines = [FailureLog(**unread).summary() for unread, _ in every]
        self.lost = "; ".join(filter(None, lines))
        return {"every": every, "scaler": self.scaler.state_dict()}

    def go_on(self, saved: Mapping[str, Any]) -> None:
        unread, own = saved["every"][self.processes.rank]
        self.unread = FailureLog(**unread)
        self.model.load_state_dict(own, strict=False)
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])

    def batches(self) -> Iterator[list[LoadedBatch]]:
        accumulate = self.recipe.train.accumulate
        loaded = self.order.loaded(self.state.epoch, self.state.step * accumulate)
        while True:
            batch = list(itertools.islice(loaded, accumulate))
            for micro in batch:
                self.unread.add(micro.failures, len(micro.inputs.images))
            yield batch

    def take(self, batch: list[LoadedBatch], step: int) -> Tensor:
        seed, epoch, rank = self.recipe.train.seed, self.state.epoch, self.processes.rank
        inputs = [micro.inputs.to(self.model.device) for micro in batch]
        seeds = [step_seed(seed, epoch, step, i, rank) for i in range(len(inputs))]
        return self.update(inputs, seeds, self.learning_rate(step))

    def update(
        self, batches: Sequence[PretrainingBatch], seeds: Sequence[int], rate: float
    ) -> Tensor:
        """One optimiser step.

        The gradient is the mean of the micro-batches' gradients, each of which is that of the
        losses over this micro-batch of all processes. It is clipped, and the teacher is moved,
        once.

        Args:
            batches: this process's micro-batches, on the model's device.
            seeds: of the noise and the dropout of each.
            rate: the learning rate.

        Returns:
            (5,) float32, on the device: `columns`, of this process. Without masks their loss is 0;
            so is the norm of a step that float16 left out.
        """
        self.optimizer.zero_grad(set_to_none=True)
        device, values = self.model.device, []
        for batch, seed in zip(batches, seeds, strict=True):
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                with mixed_precision(self.recipe.train.amp or "", device):
                    losses = self.model(batch)
                self.scaler.scale(losses.total / len(batches)).backward()
            values.append(torch.stack([part.detach().float() for part in losses]))
        average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.train.clip_grad)
        if self.scaler.is_enabled():  # leaves out steps whose gradients overflow
            norm = norm.where(norm.isfinite(), 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.model.stage == "stage2":
            self.model.update_teacher(self.recipe.losses.ema)
        return torch.cat([torch.stack(values).mean(dim=0), norm.detach().float().view(1)])

    def shown(self, means: list[float]) -> dict[str, float]:
        values = dict(zip(self.columns, means, strict=True))
        values["learning_rate"] = self.learning_rate(self.state.step - 1)
        return {**self.named(values), "similarity_scale": self.model.scale.item()}

    @torch.no_grad()
    def judge(self) -> float | None:
        """The image-caption loss of the held-out captions: the mean over batches and processes.

        Only what segmentation uses is judged; the entity decoder is not.

        Raises:
            RuntimeError: in every process, if an image could not be read in any of them: epochs
                could not be compared.
        """
        if self.held_out is None:
            return None
        model, training, losses = self.model, self.model.training, []
        failures: list[Failure] = []
        model.eval()
        for batch in self.held_out.loaded(0):  # the same batches every time
            failures += batch.failures
            inputs = batch.inputs.to(model.device)
            with mixed_precision(self.recipe.train.amp or "", model.device):
                images = model.encode_images(inputs.images)
                captions = model.encode_texts(inputs.captions)
            losses.append(infonce(images.embedding, captions.embedding, model.scale))
        model.train(training)
        every = self.processes.gather((torch.stack(losses).mean().item(), failures[:1]))
        for _, failed in every:
            for name, reason in failed:
                raise RuntimeError(f"a held-out image: {name}: {reason}")
        return math.fsum(loss for loss, _ in every) / self.processes.count
