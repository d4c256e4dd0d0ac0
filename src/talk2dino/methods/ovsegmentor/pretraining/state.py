"""The state of an unfinished pretraining on disk: enough to go on to the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from talk2dino.files import load_torch, save_torch
from talk2dino.methods.ovsegmentor.model import OVSegmentor
from talk2dino.methods.ovsegmentor.pretraining.step import VALUES

KIND = "talk2dino unfinished OVSegmentor pretraining"
_OWN = "bridge_projector."


@dataclass(frozen=True)
class EpochRecord:
    """One row of the table; losses are means over the epoch's steps and the processes."""

    epoch: int
    """Counted from 1."""
    loss: float
    """The weighted sum."""
    matching: float
    """Images and captions."""
    entity: float
    """Completed captions and answers."""
    mask: float
    """Masks of paired images; 0 in stage 1."""
    gradient_norm: float
    """Before clipping."""
    held_out: float | None
    """Image-caption loss of the held-out captions; None without any."""
    learning_rate: float
    """Of the epoch's last step."""

    def logged(self, stage: int) -> dict[str, float]:
        """The row as loggers show it."""
        names = VALUES if stage > 1 else [name for name in VALUES if name != "mask"]
        values = {f"train/{name}": getattr(self, name) for name in names}
        held_out = {} if self.held_out is None else {"held_out/matching": self.held_out}
        return values | held_out | {"learning_rate": self.learning_rate}


@dataclass
class Progress:
    """Where a run stands. Randomness is no part: it is a function of (seed, epoch, step)."""

    epoch: int = 0
    """Complete epochs."""
    step: int = 0
    """Complete optimiser steps of the epoch under way."""
    sums: list[float] = field(default_factory=lambda: [0.0] * len(VALUES))
    """Sums of `VALUES` over those steps."""
    records: list[EpochRecord] = field(default_factory=list)
    """One per complete epoch."""
    best_epoch: int | None = None
    """Epoch with the lowest held-out loss so far, from 1."""
    samples: int = 0
    """Samples of this process so far, of which some images could not be read."""
    failures: int = 0
    """Images of this process that could not be read."""
    lost: dict[str, str] = field(default_factory=dict)
    """The first few of those, name -> reason."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What the file holds."""

    progress: list[Progress]
    """Of each process."""
    weights: dict[str, Tensor]
    """Of process 0."""
    own: list[dict[str, Tensor]]
    """Of each process: the statistics that are not shared."""
    step: dict[str, Any]
    """Optimiser and loss scale; see `PretrainingStep.state`."""
    settings: dict[str, Any]
    """What a run must share with this one to go on from it."""


def save_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write the file whole or not at all; a kill in between leaves the previous one."""
    content = {
        "kind": KIND,
        "progress": [asdict(progress) for progress in snapshot.progress],
        "weights": snapshot.weights,
        "own": snapshot.own,
        "step": snapshot.step,
        "settings": snapshot.settings,
    }
    save_torch(content, path)


def load_snapshot(path: Path) -> Snapshot:
    """Read the file.

    Raises:
        FileNotFoundError, ValueError: absent, damaged, or another kind of file.
    """
    content = load_torch(path)
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise ValueError(f"{path} is not the state of an unfinished pretraining; move it away")
    progress = []
    for values in content["progress"]:
        records = [EpochRecord(**record) for record in values["records"]]
        progress.append(Progress(**{**values, "records": records}))
    return Snapshot(
        progress, content["weights"], content["own"], content["step"], content["settings"]
    )


def own_statistics(model: OVSegmentor) -> dict[str, Tensor]:
    """The running statistics that differ between processes: the bridge's, as published."""
    return {name: buffer.cpu() for name, buffer in model.named_buffers() if name.startswith(_OWN)}
