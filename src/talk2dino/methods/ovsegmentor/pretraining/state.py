"""What a pretraining keeps of itself while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from talk2dino.methods.ovsegmentor.model import OVSegmentor
from talk2dino.methods.ovsegmentor.pretraining.step import VALUES
from talk2dino.training.run import RunState

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

    @property
    def training(self) -> float:
        """See talk2dino.training.history.Record."""
        return self.matching

    @property
    def validation(self) -> float | None:
        """See talk2dino.training.history.Record."""
        return self.held_out

    def logged(self, stage: int) -> dict[str, float]:
        """The row as loggers show it."""
        names = VALUES if stage > 1 else [name for name in VALUES if name != "mask"]
        values = {f"train/{name}": getattr(self, name) for name in names}
        held_out = {} if self.held_out is None else {"held_out/matching": self.held_out}
        return values | held_out | {"learning_rate": self.learning_rate}


@dataclass
class Progress(RunState):
    """Where one process of a run stands."""

    sums: list[float] = field(default_factory=lambda: [0.0] * len(VALUES))
    """Sums of `VALUES` over the complete steps of the epoch under way."""
    samples: int = 0
    """Samples of this process so far, of which some images could not be read."""
    failures: int = 0
    """Images of this process that could not be read."""
    lost: dict[str, str] = field(default_factory=dict)
    """The first few of those, name -> reason."""


def own_statistics(model: OVSegmentor) -> dict[str, Tensor]:
    """The running statistics that differ between processes: the bridge's, as published."""
    return {name: buffer.cpu() for name, buffer in model.named_buffers() if name.startswith(_OWN)}
