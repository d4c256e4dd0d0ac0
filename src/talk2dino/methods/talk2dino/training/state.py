"""The state of an unfinished training on disk: enough to reach the same weights after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from talk2dino.files import load_torch, save_torch
from talk2dino.training.history import EpochRecord

KIND = "talk2dino unfinished training"


@dataclass(eq=False)
class TrainingState:
    """Where a training stands. Randomness is no part: it is a function of (seed, epoch, step)."""

    epoch: int = 0
    """Complete epochs."""
    step: int = 0
    """Complete steps of the epoch under way."""
    losses: list[float] = field(default_factory=list)
    """Loss of each of those steps."""
    records: list[EpochRecord] = field(default_factory=list)
    """One per complete epoch."""
    best_epoch: int | None = None
    """Epoch with the lowest validation loss so far, from 1."""
    best_weights: dict[str, Tensor] | None = None
    """Its weights, on the CPU."""
    heads: Tensor | None = None
    """(M,) head chosen for each caption in the last epoch, -1 where not chosen yet."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What the file holds."""

    state: TrainingState
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    settings: dict[str, Any]


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write the file whole or not at all; a kill in between leaves the previous one."""
    state = asdict(checkpoint.state)
    content = {
        "kind": KIND,
        "state": state,
        "weights": checkpoint.weights,
        "optimizer": checkpoint.optimizer,
        "settings": checkpoint.settings,
    }
    save_torch(content, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read the file.

    Raises:
        FileNotFoundError, ValueError: absent, damaged, or another kind of file.
    """
    content = load_torch(path)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError(f"{path} is not the state of an unfinished training; delete or move it")
    state = dict(content["state"])
    state["records"] = [EpochRecord(**record) for record in state["records"]]
    return Checkpoint(
        TrainingState(**state),
        content["weights"],
        content["optimizer"],
        present_settings(content["settings"]),
    )


def present_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training as they are written now.

    Earlier ones hold the keys of the triplet loss for every loss, and InfoNCE's temperature, which
    was 0.07, for none.
    """
    present = dict(settings)
    if present.get("train.ltype") == "infonce" and "train.temperature" not in present:
        present.pop("train.margin", None)
        present.pop("train.max_violation", None)
        present["train.temperature"] = 0.07
    return present
