"""One optimiser step: micro-batches, gradients of all processes, clipping, and the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from talk2dino.devices import mixed_precision
from talk2dino.methods.ovsegmentor.model import OVSegmentor, PretrainingBatch
from talk2dino.methods.ovsegmentor.pretraining.config import (
    LR_BATCH,
    PretrainingRecipe,
    TrainConfig,
)
from talk2dino.methods.ovsegmentor.projection import num_processes

BETAS = (0.9, 0.999)
EPS = 1e-8


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
    """AdamW over everything that is trained, in a group with weight decay and one without."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for name, p in trained if decays(name, p) is wanted],
            "weight_decay": train.weight_decay if wanted else 0.0,
        }
        for wanted in (True, False)
    ]
    fused = trained[0][1].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=train.base_lr, betas=BETAS, eps=EPS, fused=fused)


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter has weight decay: all but biases and vectors.

    As published that includes the similarity scale, which has no dimension.
    """
    return parameter.ndim != 1 and not name.endswith(".bias")


VALUES = ("loss", "matching", "entity", "mask", "gradient_norm")
"""What a step returns, in this order."""


class PretrainingStep:
    """Takes optimiser steps on a model; it stays in the mode it is in.

    Args:
        model: of stage 1 or 2, on its device.
        recipe: optimiser, accumulation, clipping, number type, EMA.
    """

    def __init__(self, model: OVSegmentor, recipe: PretrainingRecipe) -> None:
        self.model, self.recipe = model, recipe
        self.optimizer = make_optimizer(model, recipe.train)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # float16's small gradients vanish unless the loss is scaled up.
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=recipe.train.amp == "float16")

    def __call__(
        self, batches: Sequence[PretrainingBatch], seeds: Sequence[int], rate: float
    ) -> Tensor:
        """Update the model once.

        The gradient is the mean of the micro-batches' gradients, each of which is that of the
        losses over this micro-batch of all processes. It is clipped, and the teacher is moved,
        once.

        Args:
            batches: this process's micro-batches, on the model's device.
            seeds: of the noise and the dropout of each.
            rate: the learning rate.

        Returns:
            (5,) float32, on the device: `VALUES`, of this process. Without masks their loss is 0;
            so is the norm of a step that float16 left out.
        """
        self.optimizer.zero_grad(set_to_none=True)
        values = torch.stack(
            [
                self._backward(batch, seed, len(batches))
                for batch, seed in zip(batches, seeds, strict=True)
            ]
        ).mean(dim=0)
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
        return torch.cat([values, norm.detach().float().view(1)])

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the model."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _backward(self, batch: PretrainingBatch, seed: int, count: int) -> Tensor:
        """Add a micro-batch's share of the gradient; returns its losses (4,)."""
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            with mixed_precision(self.recipe.train.amp or "", device):
                losses = self.model(batch)
            self.scaler.scale(losses.total / count).backward()
        return torch.stack([part.detach().float() for part in losses])


def step_seed(seed: int, epoch: int, step: int, micro: int, rank: int) -> int:
    """The seed of the noise of one micro-batch: of its place in the run alone."""
    sequence = np.random.SeedSequence([seed, epoch, step, micro, rank])
    return int(sequence.generate_state(1)[0])


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes.

    A parameter without a gradient has none in any process: they compute the same losses.
    """
    world = num_processes()
    for parameter in parameters if world > 1 else ():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world
