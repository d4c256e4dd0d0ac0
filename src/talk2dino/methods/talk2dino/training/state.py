"""What a training of a projection keeps of itself while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from talk2dino.training.state import RunState

KIND = "talk2dino unfinished training"


@dataclass(eq=False)
class TrainingState(RunState):
    """Where a training stands."""

    losses: list[float] = field(default_factory=list)
    """Loss of each complete step of the epoch under way."""
    best_weights: dict[str, Tensor] | None = None
    """Weights of the best epoch, on the CPU."""
    heads: Tensor | None = None
    """(M,) head chosen for each caption in the last epoch, -1 where not chosen yet."""


def present_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training as they are written now.

    Earlier ones hold the keys of the triplet loss for every loss, and InfoNCE's temperature, which
    was 0.07, for none; and no temperature of a strategy.
    """
    present = {"model.routing_temperature": 0.1, **settings}
    if present.get("train.ltype") == "infonce" and "train.temperature" not in present:
        present.pop("train.margin", None)
        present.pop("train.max_violation", None)
        present["train.temperature"] = 0.07
    return present
