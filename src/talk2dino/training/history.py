"""The losses of a training, kept as a table and as a picture beside the weights."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from talk2dino.files import atomic_path


class Record(Protocol):
    """One row of a table; the fields are a training's own."""

    @property
    def epoch(self) -> int:
        """Counted from 1."""

    @property
    def training(self) -> float:
        """The loss to plot."""

    @property
    def validation(self) -> float | None:
        """The same after the epoch on what is not trained on; it chooses the epoch."""


@dataclass(frozen=True)
class EpochRecord:
    """The row of a training with one loss."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean over the epoch's batches."""
    val_loss: float | None
    """Mean over the validation batches after the epoch; None without a validation set."""
    learning_rate: float
    """Of the epoch's last step."""

    @property
    def training(self) -> float:
        """See Record."""
        return self.train_loss

    @property
    def validation(self) -> float | None:
        """See Record."""
        return self.val_loss

    def logged(self) -> dict[str, float]:
        """The row as loggers show it."""
        values = {"loss/train": self.train_loss, "learning_rate": self.learning_rate}
        return values if self.val_loss is None else values | {"loss/validation": self.val_loss}


def write_losses(records: Sequence[Any], path: Path) -> None:
    """Write the table as CSV: one line per record; what is None is an empty cell.

    Args:
        records: dataclasses of one type, one per epoch; their fields are the columns.
        path: the file.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(records[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def plot_losses(records: Sequence[Record], path: Path, title: str = "") -> None:
    """Draw both losses over the epochs, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    epochs = [record.epoch for record in records]
    axes.plot(epochs, [record.training for record in records], label="training")
    validated = [(r.epoch, r.validation) for r in records if r.validation is not None]
    if validated:
        axes.plot(*zip(*validated, strict=True), label="validation")
    if all(record.training > 0 for record in records):
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="mean loss per batch", title=title)
    axes.legend()
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
