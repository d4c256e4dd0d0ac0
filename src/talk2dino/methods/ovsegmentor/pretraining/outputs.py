"""The files of one pretraining: a folder that every command takes as weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from talk2dino.methods.ovsegmentor.checkpoints import CONFIG_FILE, MODEL_FILES, UNFINISHED_FILE
from talk2dino.methods.ovsegmentor.pretraining.state import EpochRecord
from talk2dino.training.history import EpochRecord as PlottedRecord
from talk2dino.training.history import plot_losses
from talk2dino.training.outputs import check_destroys


@dataclass(frozen=True)
class PretrainingOutputs:
    """Names of the files in a folder, beside the model's own."""

    folder: Path
    """Holds everything."""

    @property
    def complete(self) -> Path:
        """The last file of the weights to be written."""
        return self.folder / CONFIG_FILE

    @property
    def unfinished(self) -> Path:
        """State of a run under way, removed when it is complete."""
        return self.folder / UNFINISHED_FILE

    @property
    def best(self) -> Path:
        """Weights of the best epoch of a run under way."""
        return self.folder / "best.pth"

    @property
    def summary(self) -> Path:
        """Command, settings and results, as JSON."""
        return self.folder / "pretraining.json"

    @property
    def losses(self) -> Path:
        """Losses per epoch, as CSV."""
        return self.folder / "losses.csv"

    @property
    def plot(self) -> Path:
        """The same as a picture."""
        return self.folder / "losses.png"

    @property
    def results(self) -> tuple[str, ...]:
        """Names of what a complete run leaves; the last one makes the others valid."""
        return (self.summary.name, self.losses.name, self.plot.name, *MODEL_FILES)

    @property
    def log(self) -> Path:
        """Names the logs: TensorBoard writes to `<this>.tensorboard`."""
        return self.folder / self.folder.name

    @property
    def lock(self) -> Path:
        """Held while a run writes these files."""
        return self.folder / "lock"

    def remove_state(self) -> None:
        """Remove what a run goes on from."""
        for path in (self.unfinished, self.best):
            path.unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Remove the state of a run that is complete."""
        self.remove_state()
        self.lock.unlink(missing_ok=True)


def check_folder(outputs: PretrainingOutputs, overwrite: bool, resume: bool) -> None:
    """Raise if the run would destroy something, or could not write; see `check_destroys`."""
    check_destroys(
        *(outputs.unfinished, outputs.complete, overwrite, resume),
        begun=f"{outputs.folder} holds an unfinished pretraining.",
        done=f"{outputs.folder} holds a model already. Write elsewhere with --out, or replace "
        "it with --overwrite.",
    )


def plot_records(records: Sequence[EpochRecord], outputs: PretrainingOutputs) -> None:
    """Draw the image-caption loss in training and on the held-out captions."""
    plotted = [PlottedRecord(r.epoch, r.matching, r.held_out, r.learning_rate) for r in records]
    plot_losses(plotted, outputs.plot, title="image-caption loss")
