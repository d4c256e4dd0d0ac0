"""The optimiser of the pretraining, and its learning rate at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from talk2dino.methods.ovsegmentor.pretraining.config import LR_BATCH, TrainConfig

BETAS = (0.9, 0.999)
EPS = 1e-8


@dataclass(frozen=True)
class CosineSchedule:
    """A linear warm-up, then half a cosine.

    As published the cosine is not shifted by the warm-up: where the warm-up ends, the rate drops
    a little.
    """

    base: float
    """Where the warm-up ends, and the cosine would begin."""
    floor: float
    """Where the cosine ends."""
    warmup: float
    """Where the warm-up begins."""
    warmup_steps: int
    """Its length."""
    total_steps: int
    """Of the whole run."""

    def value(self, time: int) -> float:
        """The curve after `time` optimiser steps."""
        if time < self.warmup_steps:
            return self.warmup + time * (self.base - self.warmup) / self.warmup_steps
        cosine = math.cos(math.pi * time / self.total_steps)
        return self.floor + (self.base - self.floor) * (1 + cosine) / 2

    def learning_rate(self, step: int) -> float:
        """The rate of update number `step`, the first being 0.

        As published it is the curve's value one step earlier; the first two updates share one.
        """
        return self.value(max(step - 1, 0))


def make_schedule(train: TrainConfig, world: int, steps_per_epoch: int) -> CosineSchedule:
    """The schedule of a recipe on `world` processes; rates grow with the samples per step."""
    factor = train.batch_size * world * train.accumulate / LR_BATCH
    return CosineSchedule(
        base=train.base_lr * factor,
        floor=train.min_lr * factor,
        warmup=train.warmup_lr * factor,
        warmup_steps=train.warmup_epochs * steps_per_epoch,
        total_steps=train.epochs * steps_per_epoch,
    )


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
