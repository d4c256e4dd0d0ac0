"""Learning rates as a function of the step: linear warm-up, then constant or half a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from talk2dino.config import check_name

SCHEDULERS = ("linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """Learning rate per optimiser step, counted from 0 over all epochs (section 6)."""

    name: str = "linear"
    """`linear`: constant after the warm-up. `cosine`: falls to 0 over the steps that remain."""
    base_lr: float = 1e-4
    """The learning rate that the warm-up ends at."""
    warmup: int = 0
    """Steps of the linear rise from base_lr / warmup; 0 starts at base_lr."""
    total_steps: int = 1
    """Steps of the whole training; only the cosine needs it."""

    def __post_init__(self) -> None:
        check_name("scheduler", self.name, SCHEDULERS)
        if self.warmup < 0:
            raise ValueError(f"--warmup must not be negative, got {self.warmup}")
        if self.name == "cosine" and self.warmup >= self.total_steps:
            raise ValueError(
                f"--warmup {self.warmup} leaves nothing for the cosine: "
                f"the whole training has {self.total_steps} steps"
            )

    def learning_rate(self, step: int) -> float:
        """Learning rate of the update number `step`, the first being 0."""
        if step < self.warmup:
            return self.base_lr * (step + 1) / self.warmup
        if self.name == "linear":
            return self.base_lr
        progress = (step - self.warmup) / (self.total_steps - self.warmup)
        return self.base_lr * 0.5 * (1 + math.cos(math.pi * progress))
